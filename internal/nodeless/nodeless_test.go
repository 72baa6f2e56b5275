package nodeless

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestAddressIsTheInstances(t *testing.T) {
	for id, want := range map[string]string{"0000": "100.127.0.0", "64bd": "100.127.100.189", "ffff": "100.127.255.255", "": "", "12": "", "zzzz": "", "123456": ""} {
		got, err := address(id)
		if (err == nil) != (want != "") || want != "" && got.String() != want {
			t.Errorf("address(%q) = %v, %v, want %q", id, got, err, want)
		}
	}
}

func TestSamePortIsKept(t *testing.T) {
	for _, c := range []struct{ listen, endpoint, want string }{
		{"127.0.0.1:0", "https://127.0.0.1:4711", "127.0.0.1:4711"},
		{"0.0.0.0:0", "https://127.0.0.1:4711", "0.0.0.0:4711"},
		{"127.0.0.1:6443", "https://127.0.0.1:6443", "127.0.0.1:6443"},
		{"127.0.0.1:0", "https://127.0.0.1", "127.0.0.1:0"},
	} {
		if got := samePort(c.listen, c.endpoint); got != c.want {
			t.Errorf("samePort(%s, %s) = %s, want %s", c.listen, c.endpoint, got, c.want)
		}
	}
}

// TestImageImports packs a program, imports it, and packs it again: the same program has the same name, another one
// another.
func TestImageImports(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	write := func(body string) *image {
		t.Helper()
		if err := os.WriteFile(path, []byte(body), 0o755); err != nil {
			t.Fatal(err)
		}
		i, err := openImage("coredns", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { i.file.Close() })
		return i
	}
	first := write(strings.Repeat("program", 1000))
	var archive bytes.Buffer
	if err := first.write(&archive); err != nil {
		t.Fatal(err)
	}
	var manifest []struct{ RepoTags, Layers []string }
	for r := tar.NewReader(bytes.NewReader(archive.Bytes())); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "manifest.json" {
			if err := json.NewDecoder(r).Decode(&manifest); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(manifest) != 1 || len(manifest[0].RepoTags) != 1 || manifest[0].RepoTags[0] != first.ref || !strings.HasPrefix(first.ref, "spillway.internal/coredns:") {
		t.Errorf("manifest = %+v, want one image named %s", manifest, first.ref)
	}
	if again := write(strings.Repeat("program", 1000)); again.ref != first.ref {
		t.Errorf("the same program is %s, then %s", first.ref, again.ref)
	}
	if other := write("another"); other.ref == first.ref {
		t.Errorf("another program has the same name %s", other.ref)
	}
}

// TestKeepStartsAgain keeps a program that ends: it starts again, is heard, and ends with the context.
func TestKeepStartsAgain(t *testing.T) {
	dir := t.TempDir()
	ctx, stop := context.WithCancel(t.Context())
	var starts atomic.Int32
	third := make(chan struct{})
	p := &program{name: "test", path: "/bin/sh", args: func() []string {
		if starts.Load() < 2 {
			return []string{"-c", "echo ready; echo fault >&2; exit 3"}
		}
		return []string{"-c", "echo ready; trap '' TERM; while :; do sleep 1; done"}
	}, line: func(line string) {
		if line == "ready" && starts.Add(1) == 3 {
			close(third)
		}
	}, grace: 200 * time.Millisecond, logFile: filepath.Join(dir, "log"), log: slog.New(slog.DiscardHandler)}
	ended := make(chan error, 1)
	go func() { ended <- keep(ctx, p) }()
	select {
	case <-third:
	case <-time.After(20 * time.Second):
		t.Fatalf("the program started %d times, want 3", starts.Load())
	}
	stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("keep = %v, want nil after a stop", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("a program that ignores SIGTERM was not killed")
	}
	body, err := os.ReadFile(p.logFile)
	if err != nil || strings.Count(string(body), "fault") != 2 {
		t.Errorf("log = %q, %v, want both faults", body, err)
	}
}

func TestLogIsBounded(t *testing.T) {
	l, err := openLog(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	line := []byte(strings.Repeat("x", 1<<20) + "\nlast line\n")
	for range 25 {
		if _, err := l.Write(line); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{l.path, l.path + ".1"} {
		info, err := os.Stat(path)
		if err != nil || info.Size() > maxLog+2<<20 {
			t.Errorf("%s: %v, %v, want at most about %d bytes", path, info, err, maxLog)
		}
	}
	if got := l.last(); got != "last line" {
		t.Errorf("last() = %q", got)
	}
}

func TestLinesAreCut(t *testing.T) {
	var got []string
	l := &lines{tell: func(s string) { got = append(got, s) }}
	for _, part := range []string{"rea", "dy x\nusa", "ble\n", strings.Repeat("y", maxLine+1), "\nend\n"} {
		_, _ = l.Write([]byte(part))
	}
	if want := "ready x|usable||end"; strings.Join(got, "|") != want {
		t.Errorf("lines = %q, want %s", got, want)
	}
}
