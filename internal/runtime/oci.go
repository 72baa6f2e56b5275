package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/sandbox"
)

// OCIConfig names an OCI runtime.
type OCIConfig struct {
	Path   string   // of the program
	Args   []string // before the command, "--platform=systrap" say
	Root   string   // its state directory, emptied by a reboot
	GVisor bool     // brings its own kernel: no filter of ours, and a guest for containers beside each other
}

// oci runs containers with an OCI runtime. The root file system is mounted and made safe by us before the runtime
// sees it: old runtimes follow links in a hostile image out to the host.
type oci struct {
	cfg    OCIConfig
	keeper func() Keeper
	tree   *cgroup.Tree
}

// NewOCI makes a runtime of an OCI runtime's program.
func NewOCI(cfg OCIConfig, keeper func() Keeper, tree *cgroup.Tree) Runtime {
	return &oci{cfg: cfg, keeper: keeper, tree: tree}
}

var _ Runtime = (*oci)(nil)

func (o *oci) Park(ctx context.Context, q SlotRequest) (Parked, error) {
	if q.ShareProcesses {
		return Parked{}, fmt.Errorf("a shared process namespace needs the parked runtime")
	}
	if q.HostNetwork || q.HostIPC {
		return Parked{}, errHostAccess
	}
	_, err := o.keeper().Park(ctx, keeper.Park{Slot: q.ID, Cgroups: o.tree.Dirs(q.Cgroup), V2: o.tree.Mode() == cgroup.V2,
		Label: q.Label, Bare: true})
	if err != nil {
		return Parked{}, fmt.Errorf("park slot %s: %w", q.ID, err)
	}
	slot, err := o.slot(ctx, q.ID)
	if err != nil {
		return Parked{}, err
	}
	return Parked{NetNS: slot.Namespaces["net"]}, nil
}

func (o *oci) slot(ctx context.Context, id string) (keeper.Slot, error) {
	slots, _, err := o.keeper().List(ctx)
	if err != nil {
		return keeper.Slot{}, err
	}
	for _, s := range slots {
		if s.ID == id {
			return s, nil
		}
	}
	return keeper.Slot{}, fmt.Errorf("slot %s does not exist", id)
}

func (o *oci) rootfs(dir string) string { return filepath.Join(dir, "rootfs") }

func (o *oci) layer(dir string) string { return filepath.Join(dir, "layer") }

var errHostAccess = errors.New("access to the host needs the parked runtime")

func (o *oci) Start(ctx context.Context, r *Run) (keeper.Container, error) {
	if r.Privileged || r.HostPID || r.HostIPC {
		return keeper.Container{}, errHostAccess
	}
	slot, err := o.slot(ctx, r.Slot)
	if err != nil {
		return keeper.Container{}, err
	}
	if err := o.setGroupWide(r, slot); err != nil {
		return keeper.Container{}, err
	}
	rootfs := o.rootfs(r.Dir)
	if err := os.MkdirAll(rootfs, 0o700); err != nil {
		return keeper.Container{}, err
	}
	// Of a start that its keeper did not live to finish. The kernel takes no writable layer twice that was mounted volatile.
	if err := o.unmount(r.Dir); err != nil {
		return keeper.Container{}, err
	}
	if err := os.RemoveAll(o.layer(r.Dir)); err != nil {
		return keeper.Container{}, err
	}
	copies, mounts := o.splitMounts(r.Mounts)
	err = sandbox.PrepareRoot(rootfs, &sandbox.Spec{Lower: r.Layers, Upper: o.layer(r.Dir), Mounts: mounts})
	for _, m := range copies {
		if err == nil {
			err = sandbox.CopyFile(rootfs, m)
		}
	}
	if err != nil {
		return keeper.Container{}, errors.Join(err, o.unmount(r.Dir))
	}
	bound := *r
	bound.Mounts = mounts
	r = &bound
	body, err := o.config(r, rootfs, slot.Namespaces)
	if err == nil {
		err = os.WriteFile(filepath.Join(r.Dir, "config.json"), body, 0o600)
	}
	if err != nil {
		return keeper.Container{}, errors.Join(err, o.unmount(r.Dir))
	}
	q := startRequest(r, o.tree)
	q.OCI = &keeper.OCI{Runtime: o.cfg.Path, Args: o.cfg.Args, Root: o.cfg.Root, Bundle: r.Dir, TTY: r.Process.TTY}
	c, err := o.run(ctx, r, q, slot.Namespaces)
	if errors.Is(err, keeper.ErrGone) || ctx.Err() != nil {
		return c, err // whether it runs is not known: its root stays
	}
	if err != nil {
		return c, errors.Join(err, o.unmount(r.Dir))
	}
	return c, nil
}

// run has the keeper run a container.
func (o *oci) run(ctx context.Context, r *Run, q keeper.Start, namespaces map[string]string) (c keeper.Container, err error) {
	if !o.cfg.GVisor {
		return o.keeper().Start(ctx, q)
	}
	settle, err := o.limitGuest(r)
	if err != nil {
		return c, err
	}
	if o.inGuest(r) {
		c, err = o.startInGuest(ctx, r, q, namespaces)
	} else {
		c, err = o.keeper().Start(ctx, q)
	}
	_ = settle() // the same files were written a moment ago; an agent that adopts writes them again
	return c, err
}

// inGuest says whether a run shares a guest kernel with others.
func (o *oci) inGuest(r *Run) bool { return o.cfg.GVisor && r.Guest != nil }

// splitMounts tells the files that are copied into the root from what is mounted. A guest kernel pays for each mount
// with a file server of its own, and the platform's files below /etc never change while a container runs.
func (o *oci) splitMounts(all []sandbox.Mount) (copies, mounts []sandbox.Mount) {
	for _, m := range all {
		if o.cfg.GVisor && m.File && strings.HasPrefix(m.Target, "/etc/") {
			copies = append(copies, m)
		} else {
			mounts = append(mounts, m)
		}
	}
	return copies, mounts
}

// setGroupWide sets the hostname of the slot's namespace: a runtime refuses to when it joins an existing one.
func (o *oci) setGroupWide(r *Run, slot keeper.Slot) error {
	if r.Hostname == "" || slot.Namespaces["uts"] == "" {
		return nil
	}
	return sandbox.SetHostname(slot.Namespaces["uts"], r.Hostname)
}

func (o *oci) config(r *Run, rootfs string, namespaces map[string]string) ([]byte, error) {
	spec, err := Spec(r, rootfs, namespaces)
	if err != nil {
		return nil, err
	}
	spec.Linux.CgroupsPath = o.tree.RuntimePath(r.Cgroup)
	if o.cfg.GVisor {
		spec.Linux.Seccomp = nil // the guest's calls never reach the host's kernel
		spec.Hostname = r.Hostname
		nameProcesses(r, spec)
	}
	if o.inGuest(r) {
		joinGuest(r, spec)
	}
	return json.Marshal(spec)
}

// sharedNamespaces are those that the containers of a group share, by their name under /proc/PID/ns.
var sharedNamespaces = []struct {
	kind specs.LinuxNamespaceType
	name string
}{{specs.NetworkNamespace, "net"}, {specs.IPCNamespace, "ipc"}, {specs.UTSNamespace, "uts"}}

// joined are the namespaces of a container: its own ones of processes and mounts, the slot's for the rest.
func joined(namespaces map[string]string) []specs.LinuxNamespace {
	all := []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}}
	for _, n := range sharedNamespaces {
		all = append(all, specs.LinuxNamespace{Type: n.kind, Path: namespaces[n.name]})
	}
	return all
}

// Spec is a run as OCI runtimes take it. Namespaces are joined by path; those without one are new.
func Spec(r *Run, rootfs string, namespaces map[string]string) (*specs.Spec, error) {
	process, err := ociProcess(r.Process, rootfs)
	if err != nil {
		return nil, err
	}
	shm := "size=64m"
	if r.ShmBytes > 0 {
		shm = fmt.Sprintf("size=%d", r.ShmBytes)
	}
	spec := &specs.Spec{
		Version: "1.0.2", // the newest that Debian's crun takes
		Process: process,
		Root:    &specs.Root{Path: rootfs, Readonly: r.ReadOnlyRoot},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=64k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", shm}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			Resources:  resources(r.Limits),
			Seccomp:    r.Seccomp,
			Sysctl:     r.Sysctls,
			Namespaces: joined(namespaces),
			MaskedPaths: []string{"/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug",
				"/proc/interrupts", "/proc/scsi", "/proc/acpi", "/proc/asound", "/sys/firmware", "/sys/devices/virtual/powercap"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	for _, m := range r.Mounts {
		mount, err := bind(m)
		if err != nil {
			return nil, err
		}
		spec.Mounts = append(spec.Mounts, mount)
	}
	return spec, nil
}

func bind(m sandbox.Mount) (specs.Mount, error) {
	source := m.Source
	if m.SubPath != "" {
		resolved, err := sandbox.ResolveBelow(m.Source, m.SubPath)
		if err != nil {
			return specs.Mount{}, err
		}
		source = resolved
	}
	options := []string{"rbind", "nosuid", "nodev"}
	if m.ReadOnly {
		options = append(options, "ro")
	}
	return specs.Mount{Destination: m.Target, Type: "bind", Source: source, Options: options}, nil
}

func resources(l cgroup.Limits) *specs.LinuxResources {
	deny := specs.LinuxDeviceCgroup{Allow: false, Access: "rwm"}
	res := &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{deny}, CPU: &specs.LinuxCPU{}}
	if l.MilliCPU > 0 {
		period, quota := uint64(100_000), l.MilliCPU*100
		res.CPU.Period, res.CPU.Quota = &period, &quota
	}
	if l.Shares > 0 {
		shares := uint64(max(l.Shares*1024/1000, 2))
		res.CPU.Shares = &shares
	}
	if l.Memory > 0 {
		res.Memory = &specs.LinuxMemory{Limit: &l.Memory}
	}
	if l.Pids > 0 {
		res.Pids = &specs.LinuxPids{Limit: &l.Pids}
	}
	return res
}

// ociProcess translates; names of users are looked up in the image by us, never by a runtime.
func ociProcess(p sandbox.Process, rootfs string) (*specs.Process, error) {
	who, err := sandbox.ResolveUser(rootfs, &p)
	if err != nil {
		return nil, err
	}
	caps := sandbox.CapNames(p.Caps)
	out := &specs.Process{Terminal: p.TTY, Args: p.Args, Env: who.Env, Cwd: who.Dir, NoNewPrivileges: p.NoNewPrivs,
		User:         specs.User{UID: who.UID, GID: who.GID, AdditionalGids: who.Groups},
		Capabilities: &specs.LinuxCapabilities{Bounding: caps}}
	if who.UID == 0 {
		out.Capabilities.Effective, out.Capabilities.Permitted = caps, caps
	}
	if p.TTY && p.Rows > 0 {
		out.ConsoleSize = &specs.Box{Height: uint(p.Rows), Width: uint(p.Cols)}
	}
	return out, nil
}

func (o *oci) Exec(ctx context.Context, id string, p sandbox.Process, s host.Streams) (int, error) {
	_, containers, err := o.keeper().List(ctx)
	if err != nil {
		return 0, err
	}
	for _, c := range containers {
		if c.ID != id || c.OCI == nil {
			continue
		}
		process, err := ociProcess(p, o.rootfs(c.OCI.Bundle))
		if err != nil {
			return 0, err
		}
		body, err := json.Marshal(process)
		if err != nil {
			return 0, err
		}
		return o.keeper().Exec(ctx, keeper.ExecRequest{ID: id, Process: p, OCISpec: body}, s)
	}
	return 0, &keeper.Error{Message: "container " + id + " is not running", NotFound: true}
}

func (o *oci) unmount(dir string) error {
	err := unix.Unmount(o.rootfs(dir), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == unix.EINVAL || err == unix.ENOENT {
		return nil // not mounted
	}
	return err
}

func (o *oci) Clean(ctx context.Context, id, dir string) error {
	if err := o.keeper().Forget(ctx, id); err != nil {
		return err
	}
	if err := o.unmount(dir); err != nil {
		return fmt.Errorf("unmount root of %s: %w", id, err)
	}
	return os.RemoveAll(dir)
}
