package keeper_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/sandbox"
)

// rig is a keeper process of the test's own with a busybox image.
type rig struct {
	t     testing.TB
	dir   string
	tree  *cgroup.Tree
	proc  *exec.Cmd
	k     *keeper.Client
	exits chan keeper.Container
	ended map[string]keeper.Container // exits that have been seen but not asked for
	image string
}

// TestMain lets the test binary be the keeper and its inits.
func TestMain(m *testing.M) {
	if os.Args[0] == "spillway-init" {
		os.Exit(sandbox.Main(os.Args[1:]))
	}
	if dir := os.Getenv("KEEPER_DIR"); dir != "" {
		if err := keeper.Serve(keeper.Config{Dir: dir, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func newRig(t testing.TB) *rig { return newRigIn(t, cgroup.Open) }

// newRigIn is a rig with the cgroups that open gives.
func newRigIn(t testing.TB, open func(base string) (*cgroup.Tree, error)) *rig {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("needs busybox-static")
	}
	r := &rig{t: t, exits: make(chan keeper.Container, 64), ended: map[string]keeper.Container{}}
	if r.dir, err = os.MkdirTemp("/run", "spillway-test-"); err != nil {
		t.Fatal(err)
	}
	if r.tree, err = open(filepath.Base(r.dir)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r.k != nil {
			_, containers, _ := r.k.List(context.Background())
			for _, c := range containers {
				r.kill(c.ID)
			}
		}
		r.proc.Process.Kill()
		r.proc.Wait()
		if err := r.tree.Remove(""); err != nil {
			t.Error(err)
		}
		os.RemoveAll(r.dir)
	})
	r.image = filepath.Join(t.TempDir(), "image")
	for _, dir := range []string{"bin", "etc", "tmp"} {
		os.MkdirAll(filepath.Join(r.image, dir), 0o755)
	}
	body, _ := os.ReadFile(busybox)
	os.WriteFile(filepath.Join(r.image, "bin/busybox"), body, 0o755)
	for _, name := range []string{"sh", "sleep", "cat", "ls", "id", "echo", "stty", "hostname", "head"} {
		os.Symlink("busybox", filepath.Join(r.image, "bin", name))
	}
	r.spawn()
	return r
}

func (r *rig) spawn() {
	self, _ := os.Executable()
	r.proc = exec.Command(self)
	r.proc.Env = append(os.Environ(), "KEEPER_DIR="+filepath.Join(r.dir, "run"))
	r.proc.Stderr = os.Stderr
	r.proc.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := r.proc.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.dial()
}

func (r *rig) dial() {
	for deadline := time.Now().Add(5 * time.Second); ; {
		k, err := keeper.Dial(filepath.Join(r.dir, "run"), func(c keeper.Container) { r.exits <- c })
		if err == nil {
			r.k = k
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// refused dials the keeper again and again until the function that it gives is called, which says how often nobody listened.
func (r *rig) refused() func() int {
	ctx, cancel := context.WithCancel(context.Background())
	n := make(chan int)
	go func() {
		times := 0
		for ctx.Err() == nil {
			c, err := net.Dial("unix", keeper.Socket(filepath.Join(r.dir, "run")))
			if err == nil {
				c.Close()
			} else {
				times++
			}
		}
		n <- times
	}()
	return func() int { cancel(); return <-n }
}

func (r *rig) park(slot string) {
	r.t.Helper()
	for _, path := range []string{slot, slot + "/c"} {
		if err := r.tree.Make(path); err != nil {
			r.t.Fatal(err)
		}
	}
	p := keeper.Park{Slot: slot, Cgroups: r.tree.Dirs(slot + "/c"), V2: r.tree.Mode() == cgroup.V2, Label: json.RawMessage(`{"a":1}`)}
	if _, err := r.k.Park(context.Background(), p); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) start(id, slot string, process sandbox.Process) (keeper.Container, error) {
	logs := filepath.Join(r.dir, "logs", id)
	os.MkdirAll(logs, 0o700)
	return r.k.Start(context.Background(), keeper.Start{ID: id, Slot: slot, Cgroups: r.tree.Dirs(slot + "/c"),
		V2: r.tree.Mode() == cgroup.V2, LogDir: logs, LogFile: 1 << 20, LogMax: 2,
		Spec: &sandbox.Spec{ID: id, Lower: []string{r.image}, Upper: filepath.Join(r.dir, "rw-"+id), Hostname: "test", Process: process}})
}

func (r *rig) run(id string, script string) keeper.Container {
	r.t.Helper()
	r.park("s-" + id)
	if _, err := r.start(id, "s-"+id, sandbox.Process{Args: []string{"sh", "-c", script}, NoNewPrivs: true}); err != nil {
		r.t.Fatal(err)
	}
	return r.exit(id)
}

func (r *rig) exit(id string) keeper.Container {
	r.t.Helper()
	for {
		if c, ok := r.ended[id]; ok {
			delete(r.ended, id) // ids are used again
			return c
		}
		select {
		case c := <-r.exits:
			r.ended[c.ID] = c // others are asked for later
		case <-time.After(10 * time.Second):
			r.t.Fatalf("container %s did not end", id)
		}
	}
}

func (r *rig) kill(id string) { _ = r.k.Signal(context.Background(), id, int(unix.SIGKILL)) }

func (r *rig) log(id string) string {
	body, _ := os.ReadFile(filepath.Join(r.dir, "logs", id, "log"))
	var out []string
	for line := range strings.Lines(string(body)) {
		if f := strings.SplitN(line, " ", 4); len(f) == 4 {
			out = append(out, f[1]+" "+strings.TrimSuffix(f[3], "\n"))
		}
	}
	return strings.Join(out, "\n")
}

func TestContainerRunsAndEnds(t *testing.T) {
	r := newRig(t)
	c := r.run("one", "echo out; echo err >&2; hostname; id; exit 7")
	if c.ExitCode == nil || *c.ExitCode != 7 {
		t.Errorf("exit code = %v, want 7", c.ExitCode)
	}
	log := r.log("one")
	for _, want := range []string{"O out", "E err", "O test", "uid=0 gid=0"} {
		if !strings.Contains(log, want) {
			t.Errorf("log lacks %q:\n%s", want, log)
		}
	}
	if err := r.k.Forget(context.Background(), "one"); err != nil {
		t.Error(err)
	}
}

func TestExecFailureHasItsExitCode(t *testing.T) {
	r := newRig(t)
	r.park("s")
	_, err := r.start("bad", "s", sandbox.Process{Args: []string{"no-such-program"}})
	e, ok := err.(*keeper.Error)
	if !ok || e.ExitCode != sandbox.ExitNotFound {
		t.Fatalf("start = %v, want exit code %d", err, sandbox.ExitNotFound)
	}
	// The slot goes on: the next container joins its namespaces.
	if _, err := r.start("good", "s", sandbox.Process{Args: []string{"sh", "-c", "exit 3"}}); err != nil {
		t.Fatal(err)
	}
	if c := r.exit("good"); *c.ExitCode != 3 {
		t.Errorf("exit code = %d, want 3", *c.ExitCode)
	}
}

func TestExecJoinsAndPassesTheExitCode(t *testing.T) {
	r := newRig(t)
	r.park("s")
	if _, err := r.start("c", "s", sandbox.Process{Args: []string{"sleep", "1000"}}); err != nil {
		t.Fatal(err)
	}
	var out, errs bytes.Buffer
	streams := host.Streams{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errs}
	code, err := r.k.Exec(context.Background(), keeper.ExecRequest{ID: "c", Process: sandbox.Process{
		Args: []string{"sh", "-c", "cat; echo; hostname; echo bad >&2; exit 5"}}}, streams)
	if err != nil || code != 5 || out.String() != "hello\ntest\n" || errs.String() != "bad\n" {
		t.Errorf("exec = %d, %v, %q, %q", code, err, out.String(), errs.String())
	}
	out.Reset()
	code, err = r.k.Exec(context.Background(), keeper.ExecRequest{ID: "c", Process: sandbox.Process{
		Args: []string{"sh", "-c", "stty size; ls /proc/1/cmdline"}, TTY: true, Rows: 24, Cols: 80}}, host.Streams{Stdout: &out})
	if err != nil || code != 0 || !strings.Contains(out.String(), "24 80") {
		t.Errorf("exec with a terminal = %d, %v, %q", code, err, out.String())
	}
}

func TestKeeperDeathLosesNothing(t *testing.T) {
	r := newRig(t)
	r.park("s")
	r.park("idle")
	script := "trap 'exit 9' TERM; while :; do echo tick; sleep 0.05; done"
	if _, err := r.start("c", "s", sandbox.Process{Args: []string{"sh", "-c", script}}); err != nil {
		t.Fatal(err)
	}
	r.proc.Process.Kill()
	r.proc.Wait()
	<-r.k.Gone()
	r.spawn()
	slots, containers, err := r.k.List(context.Background())
	if err != nil || len(containers) != 1 || containers[0].Exited || len(slots) != 1 || string(slots[0].Label) != `{"a":1}` {
		t.Fatalf("after the keeper's death: slots %v, containers %v, %v", slots, containers, err)
	}
	// The container's namespaces are the slot's again: another can join them.
	if _, err := r.start("d", "s", sandbox.Process{Args: []string{"sh", "-c", "exit 4"}}); err != nil {
		t.Fatal(err)
	}
	if c := r.exit("d"); *c.ExitCode != 4 {
		t.Errorf("exit code = %d, want 4", *c.ExitCode)
	}
	_ = r.k.Signal(context.Background(), "c", int(unix.SIGTERM))
	c := r.exit("c")
	if c.ExitCode == nil || *c.ExitCode != 9 {
		t.Errorf("exit code of an adopted container = %v, want 9 from the kernel (Linux 6.15)", c.ExitCode)
	}
}

func TestUpgradeInPlaceLosesNothing(t *testing.T) {
	r := newRig(t)
	r.park("s")
	r.park("idle")
	if _, err := r.start("c", "s", sandbox.Process{Args: []string{"sh", "-c", "trap 'exit 9' TERM; while :; do echo tick; sleep 0.05; done"}}); err != nil {
		t.Fatal(err)
	}
	self, _ := os.Executable()
	refused := r.refused()
	if err := r.k.Upgrade(context.Background(), self); err != nil {
		t.Fatal(err)
	}
	<-r.k.Gone()
	r.dial()
	if n := refused(); n > 0 {
		t.Errorf("%d callers were refused during the upgrade: an agent would start another keeper", n)
	}
	slots, containers, err := r.k.List(context.Background())
	if err != nil || len(containers) != 1 || containers[0].Exited || len(slots) != 1 || string(slots[0].Label) != `{"a":1}` {
		t.Fatalf("after the upgrade: slots %v, containers %v, %v", slots, containers, err)
	}
	if _, err := r.start("d", "s", sandbox.Process{Args: []string{"sh", "-c", "exit 4"}}); err != nil {
		t.Fatal(err)
	}
	if c := r.exit("d"); *c.ExitCode != 4 {
		t.Errorf("exit code = %d, want 4", *c.ExitCode)
	}
	if err := r.k.Upgrade(context.Background(), os.DevNull); err == nil {
		t.Error("an empty file took the keeper's place")
	}
	_ = r.k.Signal(context.Background(), "c", int(unix.SIGTERM))
	if c := r.exit("c"); c.ExitCode == nil || *c.ExitCode != 9 {
		t.Errorf("exit code = %v, want 9: it is still the keeper's own child", c.ExitCode)
	}
}

func TestHostileRoot(t *testing.T) {
	r := newRig(t)
	outside := t.TempDir()
	for _, name := range []string{"dev", "proc", "sys", "etc"} {
		os.RemoveAll(filepath.Join(r.image, name))
		if err := os.Symlink(outside, filepath.Join(r.image, name)); err != nil {
			t.Fatal(err)
		}
	}
	c := r.run("hostile", "ls -la /dev/null; ls -d /proc/1")
	if c.ExitCode == nil || *c.ExitCode != 0 {
		t.Errorf("container with links for /dev, /proc, /sys, /etc: exit code %v\n%s", c.ExitCode, r.log("hostile"))
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Errorf("%d entries were created on the host: %v", len(entries), entries)
	}
}

func BenchmarkStart(b *testing.B) {
	r := newRig(b)
	for i := range b.N {
		b.StopTimer()
		slot := fmt.Sprintf("s%d", i)
		r.park(slot)
		b.StartTimer()
		if _, err := r.start(slot, slot, sandbox.Process{Args: []string{"sh", "-c", "exit 0"}}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		r.exit(slot)
		r.k.Forget(context.Background(), slot)
		r.k.Unpark(context.Background(), slot)
	}
}

func BenchmarkPark(b *testing.B) {
	r := newRig(b)
	for i := range b.N {
		slot := fmt.Sprintf("s%d", i)
		r.park(slot)
		b.StopTimer()
		r.k.Unpark(context.Background(), slot)
		b.StartTimer()
	}
}
