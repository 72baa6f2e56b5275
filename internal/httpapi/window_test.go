package httpapi

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

// TestUnreadBodiesHoldUpNobody: requests of one client share a connection, and its window.
func TestUnreadBodiesHoldUpNobody(t *testing.T) {
	stop := make(chan struct{})
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stalled" {
			<-stop
			return
		}
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil || n != streamBuffer {
			t.Errorf("body of %d bytes, %v, want %d", n, err, streamBuffer)
		}
	})
	s := httptest.NewUnstartedServer(h)
	s.Config = Server(h, slog.New(slog.DiscardHandler))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	defer close(stop)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	post := func(path string, size int) error {
		r, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+path, bytes.NewReader(make([]byte, size)))
		if err != nil {
			return err
		}
		resp, err := s.Client().Do(r)
		if err == nil {
			resp.Body.Close()
		}
		return err
	}
	for range connectionStreams - 8 {
		go func() { _ = post("/stalled", 2*streamBuffer) }()
	}
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
		if err := post("/read", streamBuffer); err != nil {
			t.Fatalf("a body beside unread ones did not arrive: %v", err)
		}
	}
}

// TestQuietStreamsAreNotCutOff: the time that a reader has for a batch does not bound the time between two.
func TestQuietStreamsAreNotCutOff(t *testing.T) {
	const limit = 50 * time.Millisecond
	h := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		control := http.NewResponseController(w)
		for _, text := range []string{"a", "b"} {
			if _, err := push(w, control, []byte(text), limit); err != nil {
				t.Error(err)
			}
			time.Sleep(4 * limit)
		}
	})
	s := httptest.NewUnstartedServer(h)
	s.Config = Server(h, slog.New(slog.DiscardHandler))
	s.EnableHTTP2 = true
	s.StartTLS()
	defer s.Close()
	resp, err := s.Client().Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "ab" {
		t.Errorf("stream = %q, %v, want ab", body, err)
	}
}
