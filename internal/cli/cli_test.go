package cli

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/httpapi"
	"spillway.dev/spillway/internal/identity"
	"spillway.dev/spillway/internal/sim"
	"spillway.dev/spillway/internal/store/mem"
)

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

// testMain keeps tokens of test platforms out of the user's cache.
func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "spillway-cli-test-")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	os.Setenv("XDG_CACHE_HOME", dir)
	return m.Run()
}

// TestScripts runs the scripts in testdata, each against a platform of its own with one simulated host.
//
// Commands beside testscript's: spillway ARG... runs the real command line; code N checks its exit code. $STDIN names
// the file that is its standard input.
func TestScripts(t *testing.T) {
	codes := map[*testscript.TestScript]int{}
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(e *testscript.Env) error {
			config, stop, err := startPlatform(e.WorkDir)
			if err != nil {
				return err
			}
			e.Defer(stop)
			e.Setenv("SPILLWAY_CONFIG", config)
			e.Setenv("HOME", e.WorkDir)
			return nil
		},
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"spillway": func(ts *testscript.TestScript, neg bool, args []string) {
				var stdin io.Reader = strings.NewReader("")
				if name := ts.Getenv("STDIN"); name != "" {
					stdin = strings.NewReader(ts.ReadFile(name))
				}
				ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
				defer cancel()
				code := Run(ctx, args, ts.Getenv, stdin, ts.Stdout(), ts.Stderr())
				codesMu.lock(func() { codes[ts] = code })
				if (code != 0) != neg {
					ts.Fatalf("spillway %s: exit code %d", strings.Join(args, " "), code)
				}
			},
			"code": func(ts *testscript.TestScript, _ bool, args []string) {
				var got int
				codesMu.lock(func() { got = codes[ts] })
				if want, err := strconv.Atoi(args[0]); err != nil || got != want {
					ts.Fatalf("exit code %d, want %s", got, args[0])
				}
			},
		},
	})
}

// gate is a lock for state that scripts, which run side by side, share.
type gate chan struct{}

var codesMu = make(gate, 1)

func (g gate) lock(f func()) {
	g <- struct{}{}
	defer func() { <-g }()
	f()
}

// startPlatform is a whole platform in this process; it gives the path of its client.json.
func startPlatform(dir string) (string, func(), error) {
	dir = filepath.Join(dir, ".platform")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", nil, err
	}
	log := slog.New(slog.DiscardHandler)
	ctx, cancel := context.WithCancel(context.Background())
	st := mem.New()
	ctrl, err := controller.New(ctx, controller.Config{Store: st, Location: "local", Log: log, Reserved: []netip.Prefix{netip.MustParsePrefix("10.64.0.0/16")}})
	if err != nil {
		cancel()
		return "", nil, err
	}
	done := make(chan error, 1)
	go func() { done <- ctrl.Run(ctx) }()
	h := sim.NewHost("h1", nil, ctrl.From("h1"))
	ctrl.Connect(h)
	stop := func() { h.Close(); cancel(); <-done }
	ids, first, err := identity.Open(ctx, st, log, nil)
	if err != nil {
		stop()
		return "", nil, err
	}
	authority, err := identity.OpenAuthority(dir)
	if err != nil {
		stop()
		return "", nil, err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		stop()
		return "", nil, err
	}
	srv := httpapi.Server(httpapi.New(httpapi.Config{Controller: ctrl, Identity: ids, Log: log, Version: "test"}), log)
	srv.TLSConfig = authority.TLS()
	go srv.ServeTLS(l, "", "")
	if _, err := ids.WriteClient(ctx, dir, "https://"+l.Addr().String(), "local", first); err != nil {
		stop()
		return "", nil, err
	}
	config := filepath.Join(dir, "client.json")
	var out bytes.Buffer
	env := func(k string) string { return map[string]string{"SPILLWAY_CONFIG": config}[k] }
	a := &app{getenv: env, stdout: &out, stderr: &out}
	api, err := a.client()
	if err == nil {
		_, err = api.PutResourceGroup(ctx, "default", nil)
	}
	return config, func() { srv.Close(); stop() }, err
}

func TestNameOfImage(t *testing.T) {
	for image, want := range map[string]string{
		"nginx": "nginx", "registry.test:5000/team/My_App:1.2": "my-app", "docker.io/library/busybox@sha256:abc": "busybox", "a/b.c:v": "b-c",
	} {
		if got := nameOf(image); got != want {
			t.Errorf("nameOf(%s) = %q, want %q", image, got, want)
		}
	}
}

func TestBarsFitTheTerminal(t *testing.T) {
	var out bytes.Buffer
	b := &bars{w: &out, width: 60, layers: map[string]host.Progress{}}
	b.tell(host.Progress{Layer: "sha256:0123456789abcdef", Phase: "downloading", Done: 50, Total: 100})
	b.tell(host.Progress{Layer: "sha256:fedcba", Phase: "unpacking", Total: 100})
	b.tell(host.Progress{Layer: "sha256:0123456789abcdef", Phase: "done\x1b[2J", Done: 100, Total: 100})
	b.tellEvents([]event{{Name: "Pulled", Message: "x"}, {Name: layerEvent, Message: "sha256:aaaa downloading 512/2048 bytes"}})
	text := out.String()
	if !strings.Contains(text, "aaaa         downloading [====") || !strings.Contains(text, "0123456789ab downloading [=====") || !strings.Contains(text, "\x1b[2A") || strings.Contains(text, "\x1b[2J") {
		t.Errorf("bars = %q", text)
	}
	for l := range strings.Lines(text) {
		if n := len([]rune(strings.ReplaceAll(l, "\x1b[K", ""))); n > 66 {
			t.Errorf("line %q is %d wide", l, n)
		}
	}
}

func TestBytesAndAges(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1536: "1.5 KiB", 5 << 30: "5.0 GiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0s", 90 * time.Second: "90s", 3 * time.Minute: "3m", 30 * time.Hour: "30h", 80 * time.Hour: "3d"} {
		if got := age(d); got != want {
			t.Errorf("age(%s) = %q, want %q", d, got, want)
		}
	}
}
