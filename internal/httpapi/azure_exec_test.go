package httpapi_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/coder/websocket"

	"spillway.dev/spillway/internal/httpapi"
)

// dial opens a WebSocket as Azure's clients do: no token, no subprotocol, any origin.
func (w *world) dial(ctx context.Context, uri string, header http.Header) (*websocket.Conn, error) {
	pem, err := os.ReadFile(w.config.CAFile)
	w.must(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	uri = strings.Replace(uri, "wss://platform", "wss"+strings.TrimPrefix(w.config.Endpoint, "https"), 1)
	conn, resp, err := websocket.Dial(ctx, uri, &websocket.DialOptions{
		HTTPHeader: header,
		HTTPClient: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, NextProtos: []string{"http/1.1"}}}},
	})
	if resp != nil && resp.Body != nil {
		_ = resp.Body.Close()
	}
	return conn, err
}

// runningWorld is a world with one running group.
func runningWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, httpapi.Rate{})
	if a := w.call("PUT", w.groupPath("web"), "2023-05-01", body()); a.status != 201 {
		t.Fatal(a.text)
	}
	w.waitState("web", "Running")
	return w
}

// ask gets a ticket for exec or attach.
func (w *world) ask(what string, b any) (uri, password string) {
	w.t.Helper()
	a := w.call("POST", w.groupPath("web")+"/containers/main/"+what, "2023-05-01", b)
	if a.status != 200 {
		w.t.Fatalf("%s = %d %s", what, a.status, a.text)
	}
	return at(a.body, "webSocketUri").(string), at(a.body, "password").(string)
}

func TestAzureExec(t *testing.T) {
	w := runningWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	uri, password := w.ask("exec", map[string]any{"command": "cat", "terminalSize": map[string]any{"rows": 24, "cols": 80}})
	if !strings.HasPrefix(uri, "wss://platform/execstream/sessionId/") || !strings.HasSuffix(uri, "&rows=24&cols=80") {
		t.Errorf("webSocketUri = %s", uri)
	}
	conn, err := w.dial(ctx, uri, http.Header{"Origin": {"http://localhost:1234"}})
	if err != nil {
		t.Fatalf("dial = %v", err)
	}
	defer conn.CloseNow()
	for _, frame := range []struct {
		kind websocket.MessageType
		data string
	}{{websocket.MessageText, password}, {websocket.MessageBinary, "x"}} {
		if err := conn.Write(ctx, frame.kind, []byte(frame.data)); err != nil {
			t.Fatal(err)
		}
	}
	if _, data, err := conn.Read(ctx); err != nil || string(data) != "x" {
		t.Errorf("echo = %q, %v", data, err)
	}
	if again, err := w.dial(ctx, uri, nil); err == nil {
		_ = again.CloseNow()
		t.Error("a used ticket opened a second stream")
	}
}

func TestAzureExecRefusals(t *testing.T) {
	w := runningWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	uri, _ := w.ask("exec", map[string]any{"command": "cat"})
	wrong, err := w.dial(ctx, uri, nil)
	if err != nil {
		t.Fatalf("dial = %v", err)
	}
	defer wrong.CloseNow()
	if err := wrong.Write(ctx, websocket.MessageText, []byte("guess")); err != nil {
		t.Fatal(err)
	}
	if _, data, err := wrong.Read(ctx); websocket.CloseStatus(err) != websocket.StatusPolicyViolation {
		t.Errorf("a wrong password read %q, %v, want a policy violation", data, err)
	}

	for _, b := range []any{map[string]any{}, map[string]any{"command": ""}, map[string]any{"command": []any{"a"}}, map[string]any{"command": "a", "tty": true}, map[string]any{"command": "a", "extra": 1}, map[string]any{"command": "a", "terminalSize": map[string]any{"rows": 70000, "cols": 1}}} {
		if a := w.call("POST", w.groupPath("web")+"/containers/main/exec", "2023-05-01", b); a.status != 400 {
			t.Errorf("exec %v = %d %s, want 400", b, a.status, a.text)
		}
	}
}

func TestAzureAttach(t *testing.T) {
	w := runningWorld(t)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	uri, password := w.ask("attach", nil)
	attached, err := w.dial(ctx, uri, http.Header{"Authorization": {password}})
	if err != nil {
		t.Fatalf("attach = %v", err)
	}
	defer attached.CloseNow()
	if err := attached.Write(ctx, websocket.MessageBinary, []byte("hi")); err != nil {
		t.Fatal(err)
	}
	if _, data, err := attached.Read(ctx); err != nil || string(data) != "hi" {
		t.Errorf("attach = %q, %v", data, err)
	}
	uri, _ = w.ask("attach", nil)
	if bad, err := w.dial(ctx, uri, http.Header{"Authorization": {"guess"}}); err == nil {
		_ = bad.CloseNow()
		t.Error("attach with a wrong password was let in")
	}
}

// TestTokenIsRenewedAndCached: commands share a token on the disk, and one that the server does not know is replaced.
func TestTokenIsRenewedAndCached(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	if _, err := w.client.GetResourceGroup(t.Context(), "default"); err != nil {
		t.Fatal(err)
	}
	dir := os.Getenv("XDG_CACHE_HOME") + "/spillway"
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != 1 {
		t.Fatalf("cache = %v, %v, want one file", files, err)
	}
	path := dir + "/" + files[0].Name()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the cache = %v, %v, want 0600", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte(`{"access":"stale","expires":"2999-01-01T00:00:00Z"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := w.newClient()
	if _, err := fresh.ImportImage(t.Context(), strings.NewReader("busybox:1\nxyz")); err != nil {
		t.Errorf("ImportImage with a stale token = %v", err)
	}
	if data, err := os.ReadFile(path); err != nil || strings.Contains(string(data), "stale") {
		t.Errorf("the cache still holds the stale token: %v", err)
	}
}
