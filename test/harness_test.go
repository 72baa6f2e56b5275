package test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
)

// patience bounds every wait of a test.
const patience = 40 * time.Second

// options of a platform.
type options struct {
	args []string // of spillway up
	env  []string
	dir  string    // data directory; "": a new one
	bin  *binaries // nil: those of the tree
	on   *machine  // nil: this one
}

// platform is one running `spillway up` with its data directory, seen by one test.
type platform struct {
	*testing.T
	*process
	client *client.Client
}

// process is what tests share of a platform.
type process struct {
	bin  binaries
	opt  options
	dir  string
	id   string // instance
	logs *os.File
	// gateway is the address of the platform in the groups' network.
	gateway string

	mu   sync.Mutex // guards cmd and wait
	cmd  *exec.Cmd
	wait chan struct{}
}

// newPlatform starts one; the caller destroys it.
func newPlatform(o options) (*platform, error) {
	bin, err := built()
	if o.bin != nil {
		bin, err = *o.bin, nil
	}
	if err != nil {
		return nil, err
	}
	dir := o.dir
	if dir == "" {
		if dir, err = os.MkdirTemp(work, "data-"); err != nil {
			return nil, err
		}
	}
	logs, err := os.OpenFile(dir+".log", os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	p := &platform{process: &process{bin: bin, opt: o, dir: dir, logs: logs}}
	if err := p.up(); err != nil {
		return nil, errors.Join(err, p.destroy())
	}
	return p, nil
}

// startPlatform starts one that the test owns; at the end it is purged and the machine looked over.
func startPlatform(t *testing.T, o options) *platform {
	t.Helper()
	p, err := newPlatform(o)
	if err != nil {
		t.Fatalf("start platform: %v", err)
	}
	t.Cleanup(func() {
		if err := p.destroy(); err != nil {
			t.Errorf("end of the platform: %v", err)
		}
		if t.Failed() {
			t.Logf("log of the platform:\n%s", p.tail(120))
		}
	})
	return p.in(t)
}

// in is the same platform for another test.
func (p *platform) in(t *testing.T) *platform {
	return &platform{T: t, process: p.process, client: p.client}
}

// up starts the process and waits for its ready line.
func (p *platform) up(env ...string) error {
	if err := awaitPorts(p.opt.env); err != nil {
		return err
	}
	listen := "127.0.0.1:0"
	if p.opt.on != nil {
		listen = p.opt.on.addr + ":0"
	}
	cmd := p.opt.on.command(p.bin.spillway, append([]string{"up", "--data-dir", p.dir, "--listen", listen}, p.opt.args...)...)
	cmd.Env = append(append(append(os.Environ(), "SPILLWAY_KEEPER="+p.bin.keeper), p.opt.env...), env...)
	cmd.Stderr = p.logs
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	p.mu.Lock()
	p.cmd, p.wait = cmd, done
	p.mu.Unlock()
	ready := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		ready <- line
		_ = cmd.Wait()
		close(done)
	}()
	select {
	case line := <-ready:
		if !strings.HasPrefix(line, "ready https://") {
			<-done
			return fmt.Errorf("first line of spillway up = %q (%v), want ready\n%s", line, cmd.ProcessState, p.tail(20))
		}
	case <-time.After(patience):
		return fmt.Errorf("spillway up is not ready after %s\n%s", patience, p.tail(20))
	}
	if p.client, err = p.opt.on.client(filepath.Join(p.dir, "client.json")); err != nil {
		return err
	}
	p.id, p.gateway, err = instanceOf(p.dir)
	return err
}

// signal sends a signal to the process and waits for its end.
func (p *process) signal(sig syscall.Signal) error {
	p.mu.Lock()
	cmd, wait := p.cmd, p.wait
	p.mu.Unlock()
	if cmd == nil {
		return nil
	}
	_ = cmd.Process.Signal(sig)
	select {
	case <-wait:
		return nil
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		return fmt.Errorf("spillway up did not end after signal %d", sig)
	}
}

// keeperPid finds the keeper of this platform.
func (p *process) keeperPid() int {
	return findProcess(func(argv []string) bool {
		return len(argv) > 1 && strings.HasSuffix(argv[0], "spillway-keeper") && argv[1] == "/run/spillway/"+p.id
	})
}

// destroy stops and purges the platform, then looks whether anything is left.
func (p *platform) destroy() error {
	err := p.signal(syscall.SIGTERM)
	cmd := p.opt.on.command(p.bin.spillway, "down", "--data-dir", p.dir, "--purge")
	cmd.Env = append(os.Environ(), "SPILLWAY_KEEPER="+p.bin.keeper)
	out, purge := cmd.CombinedOutput()
	if purge != nil {
		err = errors.Join(err, fmt.Errorf("purge: %w\n%s", purge, out))
	}
	if p.client != nil {
		p.client.Close()
	}
	if p.id != "" {
		err = errors.Join(err, p.opt.on.inside(func() error { return leftovers(p.id, p.dir, p.gateway) }))
	}
	p.logs.Close()
	if entries, _ := os.ReadDir(p.dir); err == nil && len(entries) > 0 && p.opt.dir == "" {
		err = fmt.Errorf("purge left %s in the data directory", entries[0].Name())
	}
	return err
}

// tail gives the last lines of the platform's log.
func (p *process) tail(lines int) string {
	body, _ := os.ReadFile(p.dir + ".log")
	all := strings.Split(strings.TrimSpace(string(body)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// cli runs a client command and gives what it printed, and its exit code.
func (p *platform) cli(args ...string) (string, string, int) {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.bin.spillway, args...)
	cmd.Env = append(os.Environ(), "SPILLWAY_CONFIG="+filepath.Join(p.dir, "client.json"))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		p.Fatalf("spillway %s: %v", strings.Join(args, " "), err)
	} else if ok {
		return stdout.String(), stderr.String(), exit.ExitCode()
	}
	return stdout.String(), stderr.String(), 0
}

// importImage loads an archive.
func (p *platform) importImage(archive string, err error) error {
	if err != nil {
		return err
	}
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = p.client.ImportImage(context.Background(), f)
	return err
}

// logsOf reads a container's log.
func (p *platform) logsOf(name, container string, opt host.LogOptions) string {
	p.Helper()
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	var out bytes.Buffer
	if err := p.client.Logs(ctx, client.Target{Group: name, Container: container}, opt, &out); err != nil {
		p.Fatalf("logs of %s/%s: %v", name, container, err)
	}
	return out.String()
}

// awaitLog waits until a container's log holds a text.
func (p *platform) awaitLog(name, container, text string) string {
	p.Helper()
	var last string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(30 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(p.Context(), patience)
		var out bytes.Buffer
		_ = p.client.Logs(ctx, client.Target{Group: name, Container: container}, host.LogOptions{}, &out)
		cancel()
		if last = out.String(); strings.Contains(last, text) {
			return last
		}
	}
	p.Fatalf("log of %s/%s never had %q:\n%s\n%s", name, container, text, last, p.describe(name))
	return ""
}

// exec runs a shell command in a container and gives its output and exit code.
func (p *platform) exec(name, container, script string) (string, int) {
	p.Helper()
	out, code, err := p.tryExec(name, container, script)
	if err != nil {
		p.Fatalf("exec in %s/%s: %v\n%s", name, container, err, p.describe(name))
	}
	return out, code
}

func (p *platform) tryExec(name, container, script string) (string, int, error) {
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	var out lockedBuffer
	code, err := p.client.Exec(ctx, client.Target{Group: name, Container: container}, host.ExecRequest{Command: []string{"/bin/sh", "-c", script}},
		host.Streams{Stdout: &out, Stderr: &out})
	return strings.TrimSpace(out.String()), code, err
}

// lockedBuffer is a buffer for two writers.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

var _ io.Writer = (*lockedBuffer)(nil)
