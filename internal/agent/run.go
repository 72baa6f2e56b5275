package agent

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/image"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/runtime"
	"spillway.dev/spillway/internal/sandbox"
	"spillway.dev/spillway/internal/seccomp"
	"spillway.dev/spillway/internal/volume"
)

const (
	sigTerm = int(unix.SIGTERM)
	sigKill = int(unix.SIGKILL)
)

// makeRun decides everything of one run of a container.
func (w *worker) makeRun(l runLabel, c *group.Container, img image.Image) (*runtime.Run, error) {
	position := w.position(c.Name)
	r := &runtime.Run{ID: l.id(), Slot: w.m.Slot.ID, Label: l.json(), Relabel: w.slotLabel(),
		Cgroup: cgroupOf(w.m.Slot.ID, position, &w.g.Spec), Limits: w.limits(c),
		Layers: img.Layers, Dir: w.a.path("runs", l.id()), Stdin: c.Stdin, LogDir: w.a.logDir(l),
		Process: process(c, img, hostname(w.g)), Seccomp: runtime.DefaultProfile(),
		Privileged: c.IsPrivileged(), HostPID: w.g.Spec.HostPID, HostIPC: w.g.Spec.HostIPC}
	w.address(&r.Process)
	if c.Target != "" && w.m.Container(c.Target) != nil {
		r.ProcessesOf = w.label(c.Target).id()
	}
	if s := c.Security; s != nil {
		r.ReadOnlyRoot = s.ReadOnlyRoot
		if s.Seccomp != "" {
			profile, err := seccomp.Parse(s.Seccomp)
			if err != nil {
				return nil, err
			}
			r.Seccomp = profile
		}
		if s.Privileged {
			r.Seccomp = nil
		}
	}
	var err error
	if r.Guest, err = w.guest(c); err != nil {
		return nil, err
	}
	if l.Attempt == 1 && position == 0 || w.g.Spec.Isolation == group.IsolationGVisor { // each guest kernel is a new one
		r.Hostname, r.Sysctls = hostname(w.g), w.g.Spec.Sysctls
		if w.g.Spec.HostNetwork {
			r.Hostname = "" // it is the machine's
		}
	}
	if w.sources == nil && w.m.Volumes {
		// Prepared by an earlier agent: asking again finds them.
		if _, err := w.prepare(w.a.ctx); err != nil {
			return nil, err
		}
	}
	r.Mounts = w.mounts(l, c)
	if err := w.makeCgroup(r.Cgroup, l, position); err != nil {
		return nil, err
	}
	w.a.trimLogs(l)
	return r, os.MkdirAll(r.LogDir, 0o700)
}

// makeCgroup makes a run's cgroup ready. The first container of a slot that has nobody beside it finds its own.
func (w *worker) makeCgroup(path string, l runLabel, position int) error {
	if !nested(&w.g.Spec) {
		if l.Attempt == 1 && l.Epoch == 1 {
			return nil
		}
		return w.a.tree.Leaf(path) // an earlier epoch may have had several containers
	}
	if position == 0 && l.Attempt == 1 {
		if err := w.a.keeper.Load().Dismiss(w.a.ctx, w.m.Slot.ID); err != nil {
			return err
		}
		if err := w.a.tree.Limit(w.m.Slot.ID, w.groupLimits()); err != nil {
			return err
		}
	}
	return w.a.tree.Make(path)
}

// groupLimits are what the cgroup of a group of several containers enforces: the sum of theirs, and no limit where one
// of them has none.
func groupLimits(s *group.Spec) cgroup.Limits {
	var sum cgroup.Limits
	var free cgroup.Limits // positive: one of them is without
	for _, list := range [][]group.Container{s.InitContainers, s.Containers} {
		for i := range list {
			l := limits(&list[i])
			sum.MilliCPU, sum.Shares, sum.Memory, sum.Pids = sum.MilliCPU+l.MilliCPU, sum.Shares+l.Shares, sum.Memory+l.Memory, sum.Pids+l.Pids
			if l.MilliCPU == 0 {
				free.MilliCPU++
			}
			if l.Memory == 0 {
				free.Memory++
			}
		}
	}
	if free.MilliCPU > 0 {
		sum.MilliCPU = 0
	}
	if free.Memory > 0 {
		sum.Memory = 0
	}
	return sum
}

// address puts the group's address where its placeholder stands.
func (w *worker) address(p *sandbox.Process) {
	mark := w.g.Spec.Placeholder
	if mark == "" || w.m.Slot == nil {
		return
	}
	for _, list := range [][]string{p.Args, p.Env} {
		for i, text := range list {
			list[i] = strings.ReplaceAll(text, mark, w.m.Slot.IP)
		}
	}
}

func (w *worker) slotLabel() []byte {
	l := slotLabel{Addr: w.m.Slot.IP, Public: w.m.Slot.Public, Ready: true, UID: w.m.UID, Host: w.m.Slot.Host, Own: w.a.wishOf(w.g) != wish{}}
	n, _ := strconv.ParseUint(strings.TrimPrefix(w.m.Slot.ID, "s"), 10, 32)
	l.Index = uint32(n)
	return l.json()
}

// limits are what the container's cgroup enforces.
func limits(c *group.Container) cgroup.Limits {
	limit := c.Limit()
	return cgroup.Limits{MilliCPU: limit.MilliCPU, Shares: max(c.Requests.MilliCPU, leastShares), Memory: limit.Memory, Pids: group.DefaultPidsLimit}
}

// leastShares is the weight of a container that asks for no processor: it gets what the others leave.
const leastShares = 2

// process joins what the container says with what its image says.
func process(c *group.Container, img image.Image, hostname string) sandbox.Process {
	p := sandbox.Process{Args: command(c, img), Env: environment(c, img, hostname), Dir: img.Config.WorkingDir, User: img.Config.User,
		Caps: sandbox.Caps(nil, nil), NoNewPrivs: true, TTY: c.TTY}
	if c.WorkingDir != "" {
		p.Dir = c.WorkingDir
	}
	s := c.Security
	if s == nil {
		return p
	}
	p.Caps, p.NoNewPrivs, p.NonRoot = sandbox.Caps(s.AddCaps, s.DropCaps), !s.AllowEscalation, s.RunAsNonRoot
	if s.Privileged {
		p.Privileged, p.NoNewPrivs, p.Caps = true, false, sandbox.PrivilegedCaps(s.DropCaps)
	}
	if s.User != nil {
		p.User = strconv.FormatInt(*s.User, 10)
	}
	if s.Group != nil {
		name, _, _ := strings.Cut(p.User, ":")
		p.User = name + ":" + strconv.FormatInt(*s.Group, 10)
	}
	for _, g := range s.ExtraGroups {
		p.Groups = append(p.Groups, uint32(g))
	}
	return p
}

func command(c *group.Container, img image.Image) []string {
	if len(c.Command) > 0 {
		return append(append([]string{}, c.Command...), c.Args...)
	}
	args := img.Config.Cmd
	if len(c.Args) > 0 {
		args = c.Args
	}
	return append(append([]string{}, img.Config.Entrypoint...), args...)
}

func environment(c *group.Container, img image.Image, hostname string) []string {
	values := map[string]int{}
	var env []string
	set := func(name, value string) {
		entry := name + "=" + value
		if at, ok := values[name]; ok {
			env[at] = entry
			return
		}
		values[name] = len(env)
		env = append(env, entry)
	}
	for _, e := range img.Config.Env {
		name, value, _ := strings.Cut(e, "=")
		set(name, value)
	}
	set("HOSTNAME", hostname)
	for _, e := range c.Env {
		set(e.Name, e.Value)
	}
	return env
}

// stopSignal is what a container is asked to stop with.
func (w *worker) stopSignal(c *group.Container) int {
	name := c.StopSignal
	if name == "" {
		if img, ok := w.a.cfg.Images.Lookup(c.Image, w.g.Ref.Subscription); ok {
			name = img.Config.StopSignal
		}
	}
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
		return n
	}
	if name != "" {
		if sig := unix.SignalNum("SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")); sig != 0 {
			return int(sig)
		}
	}
	return sigTerm
}

// mounts are the group's files and the container's volumes.
func (w *worker) mounts(l runLabel, c *group.Container) []sandbox.Mount {
	files := w.a.files(w.m.UID)
	mounts := []sandbox.Mount{
		{Source: filepath.Join(files, "hosts"), Target: "/etc/hosts", File: true},
		{Source: filepath.Join(files, "hostname"), Target: "/etc/hostname", File: true},
		{Source: w.resolvPath(), Target: "/etc/resolv.conf", File: true},
	}
	for _, m := range c.Mounts {
		source := w.sources[m.Volume]
		mounts = append(mounts, sandbox.Mount{Source: source.Path, SubPath: filepath.Join(source.SubPath, m.SubPath), Target: m.Path, ReadOnly: m.ReadOnly || source.ReadOnly, Host: source.Host})
	}
	if len(c.ConfigMap) > 0 {
		source := w.sources[volume.ContainerConfigMap(c.Name)]
		mounts = append(mounts, sandbox.Mount{Source: source.Path, Target: "/mnt/configmap/" + c.Name, ReadOnly: true})
	}
	if c.MessagePath != "" {
		path := w.messagePath(l)
		if err := os.WriteFile(path, nil, 0o666); err == nil && os.Chmod(path, 0o666) == nil {
			mounts = append(mounts, sandbox.Mount{Source: path, Target: c.MessagePath, File: true})
		}
	}
	return mounts
}

func (w *worker) messagePath(l runLabel) string { return w.a.files(w.m.UID, "message."+l.Name) }

// message reads a container's last words, bounded and made printable.
func (w *worker) message(l runLabel, k keeper.Container) string {
	c := w.spec(l.Name)
	if c == nil || c.MessagePath == "" {
		return ""
	}
	f, err := os.OpenFile(w.messagePath(l), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, group.MaxMessage)
	n, _ := f.Read(buf)
	if text := strings.ToValidUTF8(string(buf[:max(n, 0)]), "?"); text != "" || !c.MessageFromLog || k.ExitCode != nil && *k.ExitCode == 0 {
		return text
	}
	return w.a.lastOutput(l)
}
