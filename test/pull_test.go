package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	refs "github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"spillway.dev/spillway/internal/client"
)

// registryServer is a registry on loopback that asks for a user and counts who reads blobs.
type registryServer struct {
	addr string

	mu    sync.Mutex
	blobs int
}

const (
	registryUser     = "puller"
	registryPassword = "open sesame"
)

func newRegistry(t *testing.T, private bool) *registryServer {
	t.Helper()
	s := &registryServer{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if private && r.Method == http.MethodGet && (user != registryUser || password != registryPassword) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			s.mu.Lock()
			s.blobs++
			s.mu.Unlock()
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	s.addr = strings.TrimPrefix(server.URL, "http://")
	return s
}

// push is done past the server's own check: tests push as its owner.
func (s *registryServer) push(t *testing.T, repo string, img v1.Image, err error) string {
	t.Helper()
	if err != nil {
		t.Skip(err)
	}
	ref, err := refs.ParseReference(s.addr+"/"+repo, refs.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithTransport(owner{})); err != nil {
		t.Fatal(err)
	}
	return ref.String()
}

type owner struct{}

func (owner) RoundTrip(r *http.Request) (*http.Response, error) {
	r.SetBasicAuth(registryUser, registryPassword)
	return http.DefaultTransport.RoundTrip(r)
}

func TestPullWithCredentials(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	s := newRegistry(t, true)
	img, err := busyboxImage(entry{path: "mark", body: s.addr})
	ref := s.push(t, "team/tool:1", img, err)
	creds := func(password string) M {
		return M{"imageRegistryCredentials": []M{{"server": s.addr, "username": registryUser, "password": password}}}
	}
	wrong := p.create("wrong", []M{container("c", "cat /mark", M{"image": ref})}, creds("nonsense"))
	g := p.await(wrong, "the refusal", func(g *client.Group) bool { return strings.Contains(events(g), "BackOff") })
	if g.State() != "Pending" || !strings.Contains(detail(g, 0), "ImagePullBackOff") {
		t.Errorf("state %s, detail %q; want Pending, ImagePullBackOff", g.State(), detail(g, 0))
	}
	n := p.create("pull", []M{container("c", "cat /mark", M{"image": ref})}, creds(registryPassword))
	twin := p.create("twin", []M{container("c", "cat /mark", M{"image": ref})}, creds(registryPassword))
	g = p.awaitState(n, "Succeeded")
	p.awaitState(twin, "Succeeded")
	if !strings.Contains(events(g), "Pulled") || !strings.Contains(events(g), "PullingLayer") {
		t.Errorf("events do not tell of the pull and its layers:\n%s", events(g))
	}
	if s.blobs > 3 {
		t.Errorf("%d blobs were read for one image of a configuration and two layers", s.blobs)
	}
	// A password is not a key to what another tenant has pulled, and never comes back.
	if strings.Contains(string(g.Raw), registryPassword) {
		t.Error("the answer shows the registry's password")
	}
}

func TestMissingImageBacksOff(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	s := newRegistry(t, false)
	n := p.create("missing", []M{container("c", "true", M{"image": s.addr + "/no/such:1"})})
	g := p.await(n, "back-off", func(g *client.Group) bool { return strings.Contains(events(g), "BackOff") })
	if !strings.Contains(events(g), "Failed to pull image") || !strings.Contains(events(g), "/no/such:1") {
		t.Errorf("events do not name the image:\n%s", events(g))
	}
	img, err := busyboxImage()
	s.push(t, "no/such:1", img, err)
	p.awaitState(n, "Succeeded")
}

func TestImagesInUseStay(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	const ref = "registry.test/short-lived:1"
	img, err := busyboxImage(entry{path: "short", body: "x"})
	if err != nil {
		t.Skip(err)
	}
	path, err := archive(ref, img)
	if err := p.importImage(path, err); err != nil {
		t.Fatal(err)
	}
	n := p.create("user", []M{container("c", sleeper, M{"image": ref})})
	p.running(n)
	if err := p.client.RemoveImage(context.Background(), ref); err == nil {
		t.Error("an image in use was removed")
	}
	p.remove(n)
	waitFor(t, "the image to be free", func() bool { return p.client.RemoveImage(context.Background(), ref) == nil })
}

func TestCommandLine(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := name("cli")
	if out, stderr, code := p.cli("run", image, "--name", n, "--wait", "--cpu", "0.1", "--memory", "0.1", "--", "sh", "-c", "echo from the shell; "+sleeper); code != 0 {
		t.Fatalf("run: %d\n%s%s", code, out, stderr)
	}
	t.Cleanup(func() { p.remove(n) })
	p.awaitLog(n, "", "from the shell")
	for line, want := range map[string]string{"ps": n, "ps -o json": `"name": "` + n + `"`, "logs " + n: "from the shell", "show " + n: "Running", "events " + n: "Started", "top": n, "export " + n: image, "host ls": "", "image ls": "busybox"} {
		if out, stderr, code := p.cli(strings.Fields(line)...); code != 0 || !strings.Contains(out, want) {
			t.Errorf("spillway %s = %d, lacks %q:\n%s%s", line, code, want, out, stderr)
		}
	}
	if out, _, code := p.cli("exec", n, "--", "sh", "-c", "echo in; exit 21"); code != 21 || out != "in\n" {
		t.Errorf("exec = %q, %d; want in, 21", out, code)
	}
	if _, _, code := p.cli("show", "no-such-group"); code != 3 {
		t.Errorf("show of a missing group exits with %d, want 3", code)
	}
	if _, _, code := p.cli("rm", n); code != 0 {
		t.Errorf("rm exits with %d", code)
	}
}

func TestImageByHand(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	s := newRegistry(t, false)
	img, err := busyboxImage(entry{path: "hand", body: fmt.Sprint(bytes.Repeat([]byte("x"), 100))})
	ref := s.push(t, "by/hand:2", img, err)
	if out, stderr, code := p.cli("image", "pull", ref); code != 0 {
		t.Fatalf("image pull: %d\n%s%s", code, out, stderr)
	}
	if out, _, _ := p.cli("image", "ls"); !strings.Contains(out, "by/hand:2") {
		t.Errorf("image ls lacks the pulled image:\n%s", out)
	}
	if _, stderr, code := p.cli("image", "rm", ref); code != 0 {
		t.Errorf("image rm: %d %s", code, stderr)
	}
}
