package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"spillway.dev/spillway/internal/fault"
)

// registryServer is a registry on loopback whose requests a test can look at and spoil.
type registryServer struct {
	addr  string
	spoil atomic.Pointer[func(w http.ResponseWriter, r *http.Request, next http.Handler) bool]

	mu   sync.Mutex
	seen []string // METHOD path range
}

func newRegistry(t *testing.T) *registryServer {
	t.Helper()
	s := &registryServer{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, r.Method+" "+r.URL.Path+" "+r.Header.Get("Range"))
		s.mu.Unlock()
		if f := s.spoil.Load(); f != nil && (*f)(w, r, inner) {
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	s.addr = strings.TrimPrefix(srv.URL, "http://")
	return s
}

func (s *registryServer) spoilWith(f func(w http.ResponseWriter, r *http.Request, next http.Handler) bool) {
	s.spoil.Store(&f)
}

func (s *registryServer) count(method, part string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, line := range s.seen {
		if strings.HasPrefix(line, method+" ") && strings.Contains(line, part) {
			n++
		}
	}
	return n
}

func (s *registryServer) push(t *testing.T, repo string, img v1.Image) string {
	t.Helper()
	ref := s.addr + "/" + repo
	tag, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, img); err != nil {
		t.Fatal(err)
	}
	return ref
}

func layer(t testing.TB, headers ...*tar.Header) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		body := []byte(h.PAXRecords["SPILLWAY.body"])
		h.PAXRecords = nil
		h.Size = int64(len(body))
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func file(path, body string) *tar.Header {
	return &tar.Header{Name: path, Typeflag: tar.TypeReg, PAXRecords: map[string]string{"SPILLWAY.body": body}}
}

func build(t testing.TB, arch string, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture = "linux", arch
	cfg.Config = v1.Config{Cmd: []string{"/hello"}, Env: []string{"A=" + arch}, User: "7"}
	cfg.Created = v1.Time{Time: time.Unix(1e9, 0)}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	return img
}

func open(t testing.TB, cfg Config) *Store {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to unpack layers")
	}
	if cfg.Root == "" {
		cfg.Root = t.TempDir()
	}
	s, err := Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func ensure(t *testing.T, s *Store, ref string) Image {
	t.Helper()
	img, err := s.Ensure(context.Background(), Request{Ref: ref, Tenant: "t1"})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func code(err error) string {
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return e.ARMCode()
	}
	return fmt.Sprint(err)
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(data)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func tarDir(t *testing.T, dir string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	return b.Bytes()
}
