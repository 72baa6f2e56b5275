package virtualnode

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

func TestLogOptions(t *testing.T) {
	for _, c := range []struct {
		query string
		tail  int
		limit int64
		err   string
	}{
		{"", 0, -1, ""},
		{"tailLines=5&follow=true&timestamps=true&previous=true", 5, -1, ""},
		{"tailLines=0", -1, -1, ""}, // none, which is not all
		{"limitBytes=10", 0, 10, ""},
		{"tailLines=-1", 0, 0, "must not be negative"},
		{"tailLines=x", 0, 0, "must not be negative"},
		{"limitBytes=0", 0, 0, "must be greater than 0"},
		{"sinceSeconds=0", 0, 0, "must be greater than 0"},
		{"sinceTime=yesterday", 0, 0, "sinceTime"},
	} {
		opt, limit, err := logOptions(httptest.NewRequest("GET", "/containerLogs/a/b/c?"+c.query, nil))
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: error = %v, want %q", c.query, err, c.err)
			}
			continue
		}
		if err != nil || opt.Tail != c.tail || limit != c.limit {
			t.Errorf("%q = %+v, limit %d, %v, want tail %d, limit %d", c.query, opt, limit, err, c.tail, c.limit)
		}
		all := strings.Contains(c.query, "follow")
		if opt.Follow != all || opt.Timestamps != all || opt.Previous != all {
			t.Errorf("%q = %+v", c.query, opt)
		}
	}
	opt, _, err := logOptions(httptest.NewRequest("GET", "/?sinceTime=2026-03-04T05:06:07Z", nil))
	if err != nil || !opt.Since.Equal(time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)) {
		t.Errorf("since = %s, %v", opt.Since, err)
	}
}

// TestLogLimit: a reader that asked for some bytes gets as many, and the reading ends.
func TestLogLimit(t *testing.T) {
	w := httptest.NewRecorder()
	stopped := false
	l := &logWriter{w: w, left: 5, stop: func() { stopped = true }}
	for _, part := range []string{"abc", "defg", "hij"} {
		if n, err := l.Write([]byte(part)); n != len(part) || err != nil {
			t.Fatalf("Write(%q) = %d, %v", part, n, err)
		}
	}
	if w.Body.String() != "abcde" || !stopped || !l.begun {
		t.Errorf("got %q, stopped %v, want abcde", w.Body, stopped)
	}
}
