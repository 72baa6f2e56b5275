// Package runtimetest is the conformance suite of runtimes: what every implementation of runtime.Runtime must do,
// under a real keeper, with a real image, on a real kernel.
//
// It needs root, the keeper's program and a static busybox, and leaves nothing behind. It never looks inside an
// implementation. Start at Run.
package runtimetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/runtime"
	"spillway.dev/spillway/internal/sandbox"
)

// Subject is what is proved.
type Subject struct {
	// Make makes the runtime. state is a directory for its own use.
	Make func(keeper func() runtime.Keeper, tree *cgroup.Tree, state string) runtime.Runtime
	// Guest runtimes bring a kernel of their own: limits and filters of the host's kernel are not seen inside.
	Guest bool
	// Beside runs every container in a guest that its slot's containers share.
	Beside bool
}

// patience bounds every wait.
const patience = 20 * time.Second

// Run runs the suite. program is the keeper's.
func Run(t *testing.T, program string, s Subject) {
	r := newRig(t, program, s)
	tests := map[string]func(*rig, *testing.T){
		"exit codes": exits, "program that does not exist": missing, "signals": signals, "streams": streams, "stdin": stdin,
		"environment and directory": environment, "users": users, "no root": nonRoot, "exec": execs, "exec terminal": execTerminal,
		"terminal": terminal, "read-only root": readOnly, "privileges": privileges, "masked paths": masked, "hostile root": hostile,
		"mounts": mounts, "sub-paths": subPaths, "memory": memory, "tasks": tasks, "log rotation": rotation, "slot is shared": shared,
		"clean": clean, "hostname": hostname, "side by side": sideBySide,
	}
	if s.Guest {
		tests["shared processes"], tests["end of a guest"], tests["added container"] = sharedProcesses, endOfGuest, added
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(r, t) })
	}
}

type rig struct {
	Subject
	rt      runtime.Runtime
	dir     string
	tree    *cgroup.Tree
	k       *keeper.Client
	image   string
	next    atomic.Int64
	mu      sync.Mutex // guards the maps
	exited  map[string]keeper.Container
	waiters map[string]chan struct{}
}

func newRig(t *testing.T, program string, s Subject) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("root is missing")
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox is missing: apt-get install busybox-static")
	}
	r := &rig{Subject: s, exited: map[string]keeper.Container{}, waiters: map[string]chan struct{}{}}
	if r.dir, err = os.MkdirTemp("", "spillway-runtime-"); err != nil {
		t.Fatal(err)
	}
	if r.tree, err = cgroup.Open("spillway-" + filepath.Base(r.dir)); err != nil {
		t.Fatal(err)
	}
	r.startKeeper(t, program)
	r.image = r.layer(t, busybox)
	r.rt = s.Make(func() runtime.Keeper { return r.k }, r.tree, filepath.Join(r.dir, "state"))
	return r
}

func (r *rig) startKeeper(t *testing.T, program string) {
	t.Helper()
	run := filepath.Join(r.dir, "run")
	if err := os.MkdirAll(run, 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, run)
	cmd.Args[0] = "spillway-keeper"
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if r.k != nil {
			if err := r.k.Quit(context.Background()); err != nil {
				t.Errorf("end the keeper: %v", err)
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		if err := r.tree.Remove(""); err != nil {
			t.Errorf("cgroups are left: %v", err)
		}
		if r.Guest { // runsc keeps a namespace in its state directory for as long as that lasts
			for unix.Unmount(filepath.Join(r.dir, "state", "null-netns"), unix.MNT_DETACH) == nil {
			}
		}
		body, _ := os.ReadFile("/proc/self/mountinfo")
		if strings.Contains(string(body), r.dir) {
			t.Errorf("mounts are left below %s", r.dir)
		}
		_ = os.RemoveAll(r.dir)
		if t.Failed() {
			t.Logf("keeper:\n%s", log.String())
		}
	})
	for deadline := time.Now().Add(patience); ; time.Sleep(2 * time.Millisecond) {
		k, err := keeper.Dial(run, r.onExit)
		if err == nil {
			r.k = k
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the keeper does not answer: %v", err)
		}
	}
}

// layer makes an image of one layer.
func (r *rig) layer(t *testing.T, busybox string) string {
	t.Helper()
	dir := filepath.Join(r.dir, "layer")
	for _, sub := range []string{"bin", "etc", "tmp", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	body, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"bin/busybox": string(body),
		"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/home/web:/bin/sh\n",
		"etc/group":  "root:x:0:\nweb:x:1000:\nextra:x:2000:web\n", "bin/data": "no program"}
	for name, text := range files {
		mode := os.FileMode(0o644)
		if name == "bin/busybox" {
			mode = 0o755
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, applet := range strings.Fields("sh cat echo id ls sleep kill grep head tail wc yes mkdir rm touch mount mknod stty tty env readlink true false seq test hostname dd awk ps stat printf ln umount nc") {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (r *rig) onExit(c keeper.Container) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exited[c.ID] = c
	if w := r.waiters[c.ID]; w != nil {
		close(w)
		delete(r.waiters, c.ID)
	}
}

// slot parks a slot and gives it up at the end of the test.
func (r *rig) slot(t *testing.T) string {
	t.Helper()
	id := fmt.Sprintf("s%03d", r.next.Add(1)) // none begins another: runsc takes beginnings for the whole
	for _, path := range []string{id, id + "/0"} {
		if err := r.tree.Make(path); err != nil {
			t.Fatal(err)
		}
	}
	parked, err := r.rt.Park(t.Context(), runtime.SlotRequest{ID: id, Cgroup: id + "/0"})
	if err != nil {
		t.Fatalf("park: %v", err)
	}
	if err := loopbackUp(parked.NetNS); err != nil {
		t.Fatalf("bring up loopback: %v", err)
	}
	t.Cleanup(func() {
		if err := r.k.Unpark(context.Background(), id); err != nil {
			t.Errorf("unpark: %v", err)
		}
		if err := r.tree.Remove(id); err != nil {
			t.Errorf("cgroups of the slot: %v", err)
		}
	})
	return id
}

// spec is a run of a shell script in a slot.
func (r *rig) spec(slot, script string) *runtime.Run {
	id := fmt.Sprintf("c%03d", r.next.Add(1))
	run := &runtime.Run{ID: id, Slot: slot, Cgroup: slot + "/0", Limits: cgroup.Limits{MilliCPU: 1000, Memory: 256 << 20, Pids: 128},
		Layers: []string{r.image}, Dir: filepath.Join(r.dir, "runs", id), Seccomp: runtime.DefaultProfile(), LogDir: filepath.Join(r.dir, "logs", id),
		Process: sandbox.Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}, Caps: sandbox.Caps(nil, nil), NoNewPrivs: true}}
	if r.Beside {
		r.join(run)
	}
	return run
}

// join makes a run one of several that are in a slot at the same time.
func (r *rig) join(runs ...*runtime.Run) {
	for _, run := range runs {
		run.Guest = &runtime.Guest{Limits: cgroup.Limits{MilliCPU: 2000, Memory: 512 << 20, Pids: 256}, Renew: func(context.Context) error { return nil }}
		if r.Guest {
			run.Cgroup = run.Slot
		}
	}
}

// start starts a run; at the end of the test it is killed and cleaned up.
func (r *rig) start(t *testing.T, run *runtime.Run) (keeper.Container, error) {
	t.Helper()
	for _, dir := range []string{run.LogDir, filepath.Dir(run.Dir)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { r.clean(t, run) })
	return r.rt.Start(t.Context(), run)
}

func (r *rig) clean(t *testing.T, run *runtime.Run) {
	t.Helper()
	ctx := context.Background()
	_ = r.k.Signal(ctx, run.ID, 9)
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err = r.rt.Clean(ctx, run.ID, run.Dir); err == nil {
			return
		}
	}
	t.Errorf("clean: %v", err)
}

func (r *rig) mustStart(t *testing.T, run *runtime.Run) keeper.Container {
	t.Helper()
	c, err := r.start(t, run)
	if err != nil {
		t.Fatalf("start: %v", err)
	}
	return c
}

// end waits for a run's end.
func (r *rig) end(t *testing.T, id string) keeper.Container {
	t.Helper()
	r.mu.Lock()
	c, ok := r.exited[id]
	w := r.waiters[id]
	if !ok && w == nil {
		w = make(chan struct{})
		r.waiters[id] = w
	}
	r.mu.Unlock()
	if ok {
		return c
	}
	select {
	case <-w:
	case <-time.After(patience):
		t.Fatalf("container %s did not end within %s", id, patience)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.exited[id]
}

// output runs a script to its end and gives what it wrote.
func (r *rig) output(t *testing.T, run *runtime.Run) (string, int) {
	t.Helper()
	r.mustStart(t, run)
	c := r.end(t, run.ID)
	if c.ExitCode == nil {
		t.Fatal("the exit code is unknown")
	}
	return r.log(run), *c.ExitCode
}

// log gives the text of a run's log.
func (r *rig) log(run *runtime.Run) string {
	body, _ := os.ReadFile(filepath.Join(run.LogDir, "log"))
	var out []string
	for line := range strings.SplitSeq(string(body), "\n") {
		if f := strings.SplitN(line, " ", 4); len(f) == 4 {
			out = append(out, f[3])
		}
	}
	return strings.Join(out, "\n")
}

// awaitLog waits for a text in the log.
func (r *rig) awaitLog(t *testing.T, run *runtime.Run, text string) {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if strings.Contains(r.log(run), text) {
			return
		}
	}
	t.Fatalf("the log never had %q: %q", text, r.log(run))
}

// exec runs a script in a running container.
func (r *rig) exec(t *testing.T, id, script string, stdin io.Reader) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out bytes.Buffer
	p := sandbox.Process{Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/bin"}, Caps: sandbox.Caps(nil, nil), NoNewPrivs: true}
	code, err := r.rt.Exec(ctx, id, p, host.Streams{Stdin: stdin, Stdout: &out, Stderr: io.Discard})
	if err != nil {
		t.Fatalf("exec %q: %v", script, err)
	}
	return strings.TrimSpace(out.String()), code
}
