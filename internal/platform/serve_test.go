package platform

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"testing"
	"time"

	"spillway.dev/spillway/internal/httpapi"
	"spillway.dev/spillway/internal/identity"
)

// TestServeStopsInTime stops a server while one request never ends by itself and another ends soon.
func TestServeStopsInTime(t *testing.T) {
	authority, err := identity.OpenAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	entered := make(chan struct{}, 2)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		if r.URL.Path == "/soon" {
			time.Sleep(300 * time.Millisecond)
			_, _ = io.WriteString(w, "done")
			return
		}
		<-r.Context().Done()
	})
	server := httpapi.Server(handler, slog.New(slog.DiscardHandler))
	server.TLSConfig = authority.TLS()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- serve(ctx, server, l) }()

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 10 * time.Second}
	soon := make(chan string, 1)
	go func() { _, _ = client.Get("https://" + l.Addr().String() + "/stuck") }()
	go func() {
		resp, err := client.Get("https://" + l.Addr().String() + "/soon")
		if err != nil {
			soon <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		soon <- string(body)
	}()
	for range 2 {
		select {
		case <-entered:
		case <-time.After(10 * time.Second):
			t.Fatal("the requests did not arrive")
		}
	}
	begin := time.Now()
	stop()
	if err := <-ended; err != nil {
		t.Errorf("serve() = %v, want nil after a stop", err)
	}
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("the server took %s to stop", took)
	}
	if got := <-soon; got != "done" {
		t.Errorf("a request that was under way got %q, want its answer", got)
	}
}
