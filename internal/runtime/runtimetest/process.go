package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/sandbox"
)

// sleeper runs until it is stopped.
const sleeper = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done"

func exits(r *rig, t *testing.T) {
	slot := r.slot(t)
	for _, code := range []int{0, 1, 42, 255} {
		if _, got := r.output(t, r.spec(slot, "exit "+itoa(code))); got != code {
			t.Errorf("exit code %d, want %d", got, code)
		}
	}
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

func missing(r *rig, t *testing.T) {
	slot := r.slot(t)
	for program, want := range map[string]int{"/no/such/program": 127, "nosuchprogram": 127, "/bin/data": 126} {
		run := r.spec(slot, "")
		run.Process.Args = []string{program}
		_, err := r.start(t, run)
		if err == nil {
			t.Errorf("%s: started, want a failure", program)
			continue
		}
		failure, ok := errors.AsType[*keeper.Error](err)
		if !ok || failure.ExitCode != want {
			t.Errorf("%s: %v, want exit code %d", program, err, want)
		}
		if program != "/bin/data" && !strings.Contains(err.Error(), program) { // crun only says that permission is denied
			t.Errorf("%s: %q does not name the program", program, err)
		}
	}
}

func signals(r *rig, t *testing.T) {
	slot := r.slot(t)
	run := r.spec(slot, "trap 'echo caught; exit 5' TERM; echo up; while :; do sleep 1000 & wait $!; done")
	r.mustStart(t, run)
	r.awaitLog(t, run, "up")
	if err := r.k.Signal(t.Context(), run.ID, 15); err != nil {
		t.Fatal(err)
	}
	if c := r.end(t, run.ID); c.ExitCode == nil || *c.ExitCode != 5 {
		t.Errorf("end after SIGTERM = %+v, want exit code 5", c)
	}
	run = r.spec(slot, sleeper)
	r.mustStart(t, run)
	if err := r.k.Signal(t.Context(), run.ID, 9); err != nil {
		t.Fatal(err)
	}
	if c := r.end(t, run.ID); c.ExitCode == nil || *c.ExitCode != 137 {
		t.Errorf("end after SIGKILL = %+v, want exit code 137", c)
	}
}

func streams(r *rig, t *testing.T) {
	run := r.spec(r.slot(t), "echo out; echo err >&2; printf 'no end'")
	out, _ := r.output(t, run)
	for _, want := range []string{"out", "err", "no end"} {
		if !strings.Contains(out, want) {
			t.Errorf("log %q lacks %q", out, want)
		}
	}
}

func stdin(r *rig, t *testing.T) {
	run := r.spec(r.slot(t), "read line; echo got $line; exit 3")
	run.Stdin = true
	r.mustStart(t, run)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	in, out := io.Pipe()
	done := make(chan error, 1)
	go func() {
		_, err := r.k.Attach(ctx, run.ID, host.Streams{Stdin: in, Stdout: io.Discard})
		done <- err
	}()
	if _, err := out.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	if c := r.end(t, run.ID); c.ExitCode == nil || *c.ExitCode != 3 {
		t.Errorf("end = %+v, want exit code 3", c)
	}
	if err := <-done; err != nil {
		t.Errorf("attach: %v", err)
	}
	if out := r.log(run); !strings.Contains(out, "got hello") {
		t.Errorf("log %q, want got hello", out)
	}
}

func environment(r *rig, t *testing.T) {
	run := r.spec(r.slot(t), `echo "$MINE|$HOME|$(readlink /proc/self/cwd)"`)
	run.Process.Env = append(run.Process.Env, "MINE=a b'c")
	run.Process.Dir = "/made/for/me"
	if out, _ := r.output(t, run); !strings.HasPrefix(out, "a b'c|/root|") {
		t.Errorf("output %q, want the variable and the home of root", out)
	}
	run = r.spec(r.slot(t), "pwd")
	run.Process.Dir = "/made/for/me"
	if out, _ := r.output(t, run); out != "/made/for/me" {
		t.Errorf("directory %q, want the one that was asked for", out)
	}
}

func users(r *rig, t *testing.T) {
	slot := r.slot(t)
	for user, want := range map[string]string{
		"web": "uid=1000(web) gid=1000(web)", "1000": "uid=1000(web) gid=1000(web)", "1000:2000": "uid=1000(web) gid=2000(extra)",
		"4711": "uid=4711 gid=0(root)", "4711:web": "uid=4711 gid=1000(web)", "": "uid=0(root) gid=0(root)",
	} {
		run := r.spec(slot, "id")
		run.Process.User = user
		run.Process.Groups = []uint32{3000}
		out, _ := r.output(t, run)
		if !strings.HasPrefix(out, want) || !strings.Contains(out, "3000") {
			t.Errorf("user %q: %q, want %s and the group 3000", user, out, want)
		}
	}
	run := r.spec(slot, "id")
	run.Process.User = "nobody-knows"
	if _, err := r.start(t, run); err == nil || !strings.Contains(err.Error(), "nobody-knows") {
		t.Errorf("an unknown user: %v, want a failure that names it", err)
	}
}

func nonRoot(r *rig, t *testing.T) {
	run := r.spec(r.slot(t), "id")
	run.Process.NonRoot = true
	if _, err := r.start(t, run); err == nil {
		t.Error("a container that must not run as root ran as root")
	}
}

func execs(r *rig, t *testing.T) {
	run := r.spec(r.slot(t), sleeper)
	r.mustStart(t, run)
	if out, code := r.exec(t, run.ID, "echo in; echo not >&2; exit 17", nil); out != "in" || code != 17 {
		t.Errorf("exec = %q, %d; want in, 17", out, code)
	}
	if out, _ := r.exec(t, run.ID, "cat", strings.NewReader("through")); out != "through" {
		t.Errorf("stdin came back as %q", out)
	}
	if out, _ := r.exec(t, run.ID, "ps | grep -c 'sleep 1000' || true", nil); out == "0" {
		t.Error("exec does not see the container's processes")
	}
	var wg sync.WaitGroup
	for n := range 4 {
		wg.Go(func() {
			if out, code := r.exec(t, run.ID, "echo "+itoa(n)+"; exit "+itoa(n), nil); out != itoa(n) || code != n {
				t.Errorf("exec %d side by side = %q, %d", n, out, code)
			}
		})
	}
	wg.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	code, err := r.rt.Exec(ctx, run.ID, sandbox.Process{Args: []string{"/no/such"}, Caps: sandbox.Caps(nil, nil)}, host.Streams{Stdout: io.Discard, Stderr: io.Discard})
	if err == nil && code == 0 {
		t.Error("exec of a missing program succeeded")
	}
	if _, err := r.rt.Exec(ctx, "nobody", sandbox.Process{Args: []string{"/bin/true"}}, host.Streams{Stdout: io.Discard}); err == nil {
		t.Error("exec in a container that does not exist succeeded")
	}
}

// screen is what a terminal shows.
type screen struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

func execTerminal(r *rig, t *testing.T) {
	run := r.spec(r.slot(t), sleeper)
	r.mustStart(t, run)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	in, keys := io.Pipe()
	sizes := make(chan host.Size, 1)
	var seen screen
	done := make(chan int, 1)
	go func() {
		code, err := r.rt.Exec(ctx, run.ID, sandbox.Process{Args: []string{"/bin/sh"}, Env: []string{"PATH=/bin"}, Caps: sandbox.Caps(nil, nil), TTY: true, Rows: 20, Cols: 70},
			host.Streams{Stdin: in, Stdout: &seen, Resize: sizes})
		in.CloseWithError(io.ErrClosedPipe)
		if err != nil {
			t.Errorf("exec with a terminal: %v", err)
		}
		done <- code
	}()
	show := func(line, want string) {
		for deadline := time.Now().Add(patience / 2); time.Now().Before(deadline); time.Sleep(30 * time.Millisecond) {
			if _, err := io.WriteString(keys, line+"\n"); err != nil {
				return
			}
			if time.Sleep(30 * time.Millisecond); strings.Contains(seen.String(), want) {
				return
			}
		}
		t.Errorf("%s never showed %q:\n%s", line, want, seen.String())
	}
	show("stty size", "20 70")
	sizes <- host.Size{Rows: 33, Cols: 44}
	show("stty size", "33 44")
	if _, err := io.WriteString(keys, "exit 6\n"); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != 6 {
		t.Errorf("exit code %d, want 6", code)
	}
}

func terminal(r *rig, t *testing.T) {
	run := r.spec(r.slot(t), "tty; test -t 1 && echo terminal; exit 2")
	run.Process.TTY = true
	r.mustStart(t, run)
	if c := r.end(t, run.ID); c.ExitCode == nil || *c.ExitCode != 2 {
		t.Errorf("end = %+v, want exit code 2", c)
	}
	if out := r.log(run); !strings.Contains(out, "terminal") {
		t.Errorf("log %q, want a terminal", out)
	}
}

func hostname(r *rig, t *testing.T) {
	run := r.spec(r.slot(t), "hostname")
	run.Hostname = "named-by-us"
	if out, _ := r.output(t, run); out != "named-by-us" {
		t.Errorf("hostname %q, want named-by-us", out)
	}
}
