package httpapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/httpapi"
	"spillway.dev/spillway/internal/identity"
	"spillway.dev/spillway/internal/sim"
	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/store/mem"
	"spillway.dev/spillway/internal/store/sealed"
)

// patience is how long anything may take in these tests.
const patience = 10 * time.Second

// world is a whole platform in one process, with a simulated host.
type world struct {
	t       testing.TB
	inner   *mem.Store
	store   store.Store
	ctrl    *controller.Controller
	ids     *identity.Service
	host    *sim.Host
	handler http.Handler
	client  *client.Client
	config  client.Config
	stop    context.CancelFunc
	done    chan error
	// stopping tells the API that its server stops.
	stopping chan struct{}
}

// newWorld starts a platform that gives groups what allow says of its hosts.
func newWorld(t testing.TB, rate httpapi.Rate, allow ...string) *world {
	t.Helper()
	w := &world{t: t, inner: mem.New(), done: make(chan error, 1), stopping: make(chan struct{})}
	dir := t.TempDir()
	if tt, ok := t.(*testing.T); ok {
		tt.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	}
	key, err := sealed.LoadKey(filepath.Join(dir, "key"))
	w.must(err)
	w.store, err = sealed.New(w.inner, key)
	w.must(err)
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	w.ctrl, err = controller.New(ctx, controller.Config{Store: w.store, Location: "local", Log: log, Reserved: []netip.Prefix{netip.MustParsePrefix("10.64.0.0/16")}})
	w.must(err)
	go func() { w.done <- w.ctrl.Run(ctx) }()
	var first *identity.First
	w.ids, first, err = identity.Open(ctx, w.store, log, nil)
	w.must(err)
	w.host = sim.NewHost("h1", nil, w.ctrl.From("h1"))
	w.ctrl.Connect(w.host)
	given, err := group.ParseAllowance(allow)
	w.must(err)
	w.handler = httpapi.New(httpapi.Config{Controller: w.ctrl, Identity: w.ids, Log: log, Version: "test", Allow: given, Rate: rate, Stopping: w.stopping})
	w.serve(dir, log, first)
	w.must2(w.client.PutResourceGroup(t.Context(), "default", nil))
	return w
}

// serve opens the API on a free port.
func (w *world) serve(dir string, log *slog.Logger, first *identity.First) {
	authority, err := identity.OpenAuthority(dir)
	w.must(err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	server := httpapi.Server(w.handler, log)
	server.TLSConfig = authority.TLS()
	go func() { _ = server.ServeTLS(l, "", "") }()
	c, err := w.ids.WriteClient(context.Background(), dir, "https://"+l.Addr().String(), "local", first)
	w.must(err)
	w.config = client.Config(c)
	w.client, err = client.New(w.config)
	w.must(err)
	w.t.Cleanup(func() {
		w.client.Close()
		_ = server.Close()
		w.host.Close()
		w.stop()
		if err := <-w.done; err != nil {
			w.t.Errorf("controller: %v", err)
		}
	})
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) must2(_ any, err error) {
	w.t.Helper()
	w.must(err)
}

// body is a small valid group; command programs the simulated host.
func body(command ...string) map[string]any {
	return map[string]any{"location": "local", "properties": map[string]any{
		"osType": "Linux", "restartPolicy": "Never",
		"containers": []any{map[string]any{"name": "main", "properties": map[string]any{
			"image": "busybox", "command": command, "resources": map[string]any{"requests": map[string]any{"cpu": 0.5, "memoryInGB": 0.5}},
		}}},
	}}
}

// answer is what a raw call got.
type answer struct {
	status int
	header http.Header
	body   map[string]any
	text   string
}

// call makes a raw request with the administrator's token.
func (w *world) call(method, path, version string, body any) answer {
	w.t.Helper()
	data, err := json.Marshal(body)
	w.must(err)
	if body == nil {
		data = nil
	}
	token, _, err := w.ids.Token(w.config.ClientID, w.config.ClientSecret)
	w.must(err)
	return w.raw(method, path+"?api-version="+version, map[string]string{"Authorization": "Bearer " + token, "Content-Type": "application/json"}, data)
}

// raw makes a request as it is, without a network.
func (w *world) raw(method, path string, header map[string]string, body []byte) answer {
	w.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), method, "https://platform"+path, bytes.NewReader(body))
	w.must(err)
	for k, v := range header {
		req.Header.Set(k, v)
	}
	rec := newRecorder()
	w.handler.ServeHTTP(rec, req)
	a := answer{status: rec.status, header: rec.header, text: rec.body.String()}
	_ = json.Unmarshal(rec.body.Bytes(), &a.body) // not every answer is an object
	return a
}

// recorder is a response writer in memory.
type recorder struct {
	header http.Header
	body   bytes.Buffer
	status int
}

func newRecorder() *recorder { return &recorder{header: http.Header{}, status: http.StatusOK} }

func (r *recorder) Header() http.Header { return r.header }

func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }

func (r *recorder) WriteHeader(status int) { r.status = status }

func (w *world) groupPath(name string) string {
	return "/subscriptions/" + w.config.SubscriptionID + "/resourceGroups/default/providers/Microsoft.ContainerInstance/containerGroups/" + name
}

// code is the error code of an answer.
func (a answer) code() string {
	e, _ := a.body["error"].(map[string]any)
	s, _ := e["code"].(string)
	return s
}

// at walks into a JSON answer: properties.containers.0.name.
func at(v any, path ...any) any {
	for _, p := range path {
		switch key := p.(type) {
		case string:
			m, _ := v.(map[string]any)
			v = m[key]
		case int:
			l, _ := v.([]any)
			if key >= len(l) {
				return nil
			}
			v = l[key]
		}
	}
	return v
}

// waitState waits until a group is in a state.
func (w *world) waitState(name, state string) *client.Group {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	g, err := w.client.WaitFor(ctx, "", name, func(g *client.Group) (bool, error) { return g.State() == state, nil })
	if err != nil {
		w.t.Fatalf("wait for %s to be %s: %v", name, state, err)
	}
	return g
}

// requestable says whether a path and query can be sent at all, and end: a watch or a followed log would not.
func requestable(path, query string) bool {
	u, err := url.Parse("https://platform" + path + "?" + query)
	if err != nil || !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "?#") || u.Host != "platform" {
		return false
	}
	_, err = http.NewRequest(http.MethodGet, u.String(), nil)
	lower := strings.ToLower(u.RawQuery)
	return err == nil && !strings.Contains(lower, "watch") && !strings.Contains(lower, "follow") && !strings.ContainsAny(lower, "%#")
}

// newClient is a second client, as another command would have.
func (w *world) newClient() *client.Client {
	w.t.Helper()
	c, err := client.New(w.config)
	w.must(err)
	w.t.Cleanup(c.Close)
	return c
}
