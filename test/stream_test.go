package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
	vocabulary "spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

func TestLogOptions(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("logs", []M{container("c", "for i in 1 2 3 4 5; do echo line $i; done; sleep 1.2; echo late; printf unfinished; "+sleeper)})
	p.awaitLog(n, "c", "line 5")
	middle := time.Now()
	p.awaitLog(n, "c", "late")
	if out := p.logsOf(n, "c", host.LogOptions{Tail: 2}); !strings.HasPrefix(out, "line 5\nlate\n") && out != "line 4\nline 5\nlate\n" {
		t.Errorf("tail 2 = %q, want line 5, late", out)
	}
	if out := p.logsOf(n, "c", host.LogOptions{Since: middle}); !strings.HasPrefix(out, "late\n") {
		t.Errorf("since = %q, want late", out)
	}
	out := p.logsOf(n, "c", host.LogOptions{Tail: 1, Timestamps: true})
	stamp, rest, _ := strings.Cut(strings.TrimSpace(out), " ")
	if when, err := time.Parse(time.RFC3339Nano, stamp); err != nil || time.Since(when) > time.Minute || !strings.HasPrefix(rest, "late") {
		t.Errorf("timestamps = %q: %v", out, err)
	}
	if out := p.logsOf(n, "c", host.LogOptions{LimitBytes: 5}); len(out) > 5 {
		t.Errorf("limit of 5 bytes gave %q", out)
	}
}

func TestLogFollow(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("follow", []M{container("c", "for i in 1 2 3; do echo tick $i; sleep 0.3; done")})
	p.awaitLog(n, "c", "tick 1")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out bytes.Buffer
	if err := p.client.Logs(ctx, client.Target{Group: n, Container: "c"}, host.LogOptions{Follow: true}, &out); err != nil {
		t.Fatalf("follow: %v", err)
	}
	if out.String() != "tick 1\ntick 2\ntick 3\n" {
		t.Errorf("followed %q, want three ticks and the end", out.String())
	}
}

func TestLogFloodIsBounded(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("flood", []M{container("c", "yes 0123456789012345678901234567890123456789012345678901234567890123 | head -c 60000000; echo; echo end; "+sleeper)})
	p.awaitTail(n, "end")
	logs, _ := filepath.Glob(filepath.Join(p.dir, "agent/logs/*/c/*"))
	deep, _ := filepath.Glob(filepath.Join(p.dir, "agent/logs/*/*/*/log*"))
	var total int64
	for _, path := range append(logs, deep...) {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			total += info.Size()
		}
	}
	if most := int64(vocabulary.MaxLogFile*vocabulary.MaxLogFiles) + 1<<20; total > most {
		t.Errorf("logs take %d bytes on disk, want at most %d", total, most)
	}
	if out := p.logsOf(n, "c", host.LogOptions{Tail: 1}); out != "end\n" {
		t.Errorf("tail 1 = %q, want end", out)
	}
}

// awaitTail waits for the last line of a long log.
func (p *platform) awaitTail(n, want string) {
	p.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if g := p.get(n); g.State() == "Running" && strings.TrimSpace(p.logsOf(n, "", host.LogOptions{Tail: 1})) == want {
			return
		}
	}
	p.Fatalf("the log never ended in %q", want)
}

func TestExec(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("exec", []M{container("c", sleeper, M{"securityContext": M{"runAsUser": 1000}, "environmentVariables": []M{{"name": "MINE", "value": "v"}}})})
	p.running(n)
	if out, code := p.exec(n, "c", `id -u; echo "$MINE $FROM_IMAGE"; exit 42`); code != 42 || out != "1000\nv yes" {
		t.Errorf("exec = %q, %d; want the container's user and environment, 42", out, code)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out bytes.Buffer
	code, err := p.client.Exec(ctx, client.Target{Group: n}, host.ExecRequest{Command: []string{"/bin/cat"}, Stdin: true},
		host.Streams{Stdin: strings.NewReader("through\n"), Stdout: &out, Stderr: io.Discard})
	if err != nil || code != 0 || out.String() != "through\n" {
		t.Errorf("cat with stdin = %q, %d, %v; want through, 0", out.String(), code, err)
	}
	out.Reset()
	args := []string{"/bin/printf", "%s|", "a b", "", `"q"`, "$HOME", "*"}
	if _, err := p.client.Exec(ctx, client.Target{Group: n}, host.ExecRequest{Command: args}, host.Streams{Stdout: &out, Stderr: io.Discard}); err != nil || out.String() != `a b||"q"|$HOME|*|` {
		t.Errorf("arguments came as %q, %v", out.String(), err)
	}
	code, err = p.client.Exec(ctx, client.Target{Group: n}, host.ExecRequest{Command: []string{"/no/such"}}, host.Streams{Stdout: io.Discard, Stderr: io.Discard})
	if err == nil && code != 127 {
		t.Errorf("exec of a missing program = %d, %v; want 127 or an error", code, err)
	}
	if _, err := p.client.Exec(ctx, client.Target{Group: n, Container: "nobody"}, host.ExecRequest{Command: []string{"x"}}, host.Streams{Stdout: io.Discard}); err == nil {
		t.Error("exec in an unknown container worked")
	}
}

func TestExecTerminal(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("tty", []M{container("c", sleeper)})
	p.running(n)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	sizes := make(chan host.Size, 1)
	r, w := io.Pipe()
	var out lockedBuffer
	type result struct {
		code int
		err  error
	}
	done := make(chan result, 1)
	go func() {
		code, err := p.client.Exec(ctx, client.Target{Group: n}, host.ExecRequest{Command: []string{"/bin/sh"}, TTY: true, Stdin: true, Size: host.Size{Rows: 31, Cols: 97}},
			host.Streams{Stdin: r, Stdout: &out, Resize: sizes})
		done <- result{code, err}
	}()
	fmt.Fprintln(w, "stty size")
	waitFor(t, "the first size", func() bool { return strings.Contains(out.String(), "31 97") })
	sizes <- host.Size{Rows: 11, Cols: 22}
	waitFor(t, "the second size", func() bool {
		fmt.Fprintln(w, "stty size")
		time.Sleep(50 * time.Millisecond)
		return strings.Contains(out.String(), "11 22")
	})
	fmt.Fprintln(w, "tty; exit 9")
	r2 := <-done
	if r2.err != nil || r2.code != 9 || !strings.Contains(out.String(), "/dev/pts/") {
		t.Errorf("terminal ended with %d, %v; output:\n%s", r2.code, r2.err, out.String())
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience / 2); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain for %s", what)
}

func TestAttach(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("attach", []M{container("c", `while read line; do echo "got $line"; [ "$line" = end ] && exit 6; done`, M{"stdin": true})})
	p.running(n)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	r, w := io.Pipe()
	var out lockedBuffer
	done := make(chan error, 1)
	go func() {
		done <- p.client.Attach(ctx, client.Target{Group: n}, host.Streams{Stdin: r, Stdout: &out, Stderr: &out})
	}()
	fmt.Fprintln(w, "one")
	waitFor(t, "an answer", func() bool { return strings.Contains(out.String(), "got one") })
	fmt.Fprintln(w, "end")
	if err := <-done; err != nil {
		t.Errorf("attach: %v", err)
	}
	if g := p.awaitState(n, "Failed"); exitCode(g, 0) != 6 {
		t.Errorf("exit code %d, want 6", exitCode(g, 0))
	}
}

func TestExecEndsWithItsCaller(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("gone", []M{container("c", sleeper)})
	p.running(n)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		_, _ = p.client.Exec(ctx, client.Target{Group: n}, host.ExecRequest{Command: []string{"/bin/sleep", "54321"}}, host.Streams{Stdout: io.Discard, Stderr: io.Discard})
	}()
	there := func() bool { out, _ := p.exec(n, "c", "ps"); return strings.Contains(out, "sleep 54321") }
	waitFor(t, "the command", there)
	cancel()
	waitFor(t, "the command's end", func() bool { return !there() })
}
