package bench

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/runtime"
	"spillway.dev/spillway/internal/sandbox"
)

// crun is a bare OCI runtime: the same limits, namespaces, mounts, capabilities and filter as our own containers, with
// a new network namespace that nobody connects.
type crun struct {
	label   string
	path    string
	args    []string
	dir     string
	bundle  string
	exiting string // bundle whose payload exits
	// arrival takes the moment when the payload's output arrives instead of the payload's own time: a guest kernel has
	// a clock of its own.
	arrival bool
}

func openCrun(_ context.Context, o peerOptions) (engine, error) {
	path, err := find("crun")
	if err != nil {
		return nil, err
	}
	return newCrun("crun", path, nil, o.dir, false)
}

func newCrun(label, path string, args []string, dir string, gvisor bool) (*crun, error) {
	c := &crun{label: label, path: path, args: args, dir: filepath.Join(dir, label), arrival: gvisor}
	root := filepath.Join(c.dir, "rootfs")
	if err := writeRoot(root); err != nil {
		return nil, err
	}
	var err error
	if c.bundle, err = c.writeBundle("stay", root, []string{"/payload"}, gvisor); err != nil {
		return nil, err
	}
	c.exiting, err = c.writeBundle("exit", root, []string{"/payload", "exit"}, gvisor)
	return c, err
}

func (c *crun) writeBundle(name, root string, argv []string, gvisor bool) (string, error) {
	bundle := filepath.Join(c.dir, name)
	if err := os.MkdirAll(bundle, 0o755); err != nil {
		return "", err
	}
	spec, err := runtime.Spec(&runtime.Run{Seccomp: runtime.DefaultProfile(), Limits: cgroup.Limits{MilliCPU: 1000, Shares: 1000, Memory: 1 << 30, Pids: 4096},
		Process: sandbox.Process{Args: argv, Caps: sandbox.Caps(nil, nil), NoNewPrivs: true}}, root, nil)
	if err != nil {
		return "", err
	}
	if gvisor {
		spec.Linux.Seccomp = nil
		spec.Linux.CgroupsPath = "/spillway-bench-" + c.label // without one, runsc limits nothing
	}
	body, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	return bundle, os.WriteFile(filepath.Join(bundle, "config.json"), body, 0o644)
}

func (c *crun) name() string { return c.label }

func (c *crun) argv(args ...string) []string {
	return append(append([]string{c.path, "--root", filepath.Join(c.dir, "state")}, c.args...), args...)
}

// start runs `crun run` in the foreground, as a user would, and reads the payload's first output.
func (c *crun) start(ctx context.Context, id string) (time.Duration, time.Duration, error) {
	begin, arrived, line, err := foreground(ctx, c.argv("run", "--bundle", c.bundle, id)...)
	if err != nil {
		return 0, 0, err
	}
	if c.arrival {
		return arrived - begin, 0, nil
	}
	at, err := stamp(line)
	return at - begin, 0, err
}

// runToEnd runs the payload that exits and waits for `crun run` to have cleaned up.
func (c *crun) runToEnd(ctx context.Context, id string) error {
	_, err := command(ctx, nil, c.argv("run", "--bundle", c.exiting, id)...)
	return err
}

func (c *crun) remove(ctx context.Context, id string) error {
	_, err := command(ctx, nil, c.argv("delete", "--force", id)...)
	// The run in the foreground cleans up too when its container is killed: whoever comes second finds nothing.
	if _, gone := os.Stat(filepath.Join(c.dir, "state", id)); os.IsNotExist(gone) {
		return nil
	}
	return err
}

func (c *crun) close() {
	// runsc keeps an empty network namespace mounted here.
	_ = unix.Unmount(filepath.Join(c.dir, "state", "null-netns"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	_ = os.RemoveAll(c.dir)
}
