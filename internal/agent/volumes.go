package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/converge"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/runtime"
	"spillway.dev/spillway/internal/sandbox"
	"spillway.dev/spillway/internal/volume"
)

// volumes prepares the group's volumes. Repositories are cloned in the background.
func (w *worker) volumes(ctx context.Context) bool {
	sources, err := w.prepare(ctx)
	if err != nil {
		w.m.Prepared(converge.Volumes, time.Now(), err)
		return false
	}
	clones := map[string]volume.Source{}
	for name, s := range sources {
		if s.Clone != nil {
			clones[name] = s
		}
	}
	if len(clones) == 0 {
		w.m.Prepared(converge.Volumes, time.Now(), nil)
		return true
	}
	rt, err := w.runtime()
	if err != nil {
		w.m.Prepared(converge.Volumes, time.Now(), err)
		return false
	}
	gvisor := w.g.Spec.Isolation == group.IsolationGVisor
	slot, uid, dir := w.m.Slot, w.m.UID, w.a.path("volumes", w.m.UID)
	w.a.wg.Go(func() {
		var err error
		for _, name := range slices.Sorted(maps.Keys(clones)) {
			if gvisor {
				err = w.a.restoreNetwork(ctx, slot) // the clone before this one had a kernel of its own
			}
			if err == nil {
				err = w.a.clone(ctx, rt, slot.ID, uid, clones[name])
			}
			if err != nil {
				err = fmt.Errorf("volume %s: %w", name, err)
				break
			}
			if err = w.a.cfg.Volumes.Cloned(dir, name); err != nil {
				break
			}
		}
		w.post(func() { w.m.Prepared(converge.Volumes, time.Now(), err) })
	})
	return false
}

// prepare finds out where the group's volumes are, making what is missing.
func (w *worker) prepare(ctx context.Context) (map[string]volume.Source, error) {
	if !hasVolumes(&w.g.Spec) {
		return nil, nil
	}
	dir := w.a.path("volumes", w.m.UID)
	sources, err := w.a.cfg.Volumes.Prepare(ctx, dir, &w.g.Spec)
	if err != nil {
		return nil, err
	}
	w.sources = sources
	return sources, nil
}

func hasVolumes(s *group.Spec) bool {
	if len(s.Volumes) > 0 {
		return true
	}
	for _, list := range [][]group.Container{s.Containers, s.InitContainers} {
		for _, c := range list {
			if len(c.ConfigMap) > 0 {
				return true
			}
		}
	}
	return false
}

// updateVolumes brings changed config maps into a running group.
func (w *worker) updateVolumes() {
	if !w.m.Volumes {
		return
	}
	changed, err := w.a.cfg.Volumes.Update(w.a.ctx, w.a.path("volumes", w.m.UID), &w.g.Spec)
	if err != nil {
		w.m.Event(time.Now(), "", group.Warning, "FailedMount", err.Error())
	} else if len(changed) > 0 {
		w.log.Info("volumes updated", "volumes", changed)
	}
}

// clonePatience bounds a clone from outside; the command has its own limit inside.
const clonePatience = 10 * time.Minute

// clone runs the clone of a repository in a container of its own, in the group's network: no capabilities, nothing of
// the host but this program and the certificates.
func (a *Agent) clone(ctx context.Context, rt runtime.Runtime, slot, uid string, s volume.Source) error {
	layer, err := a.toolLayer()
	if err != nil {
		return err
	}
	env, err := s.Clone.Env()
	if err != nil {
		return err
	}
	l := runLabel{UID: uid, Name: "_clone", Attempt: int(time.Now().UnixNano() & 0x7fffffff)}
	cg := slot + "-clone" // beside the group's: processes may wait in that
	if err := a.tree.Make(cg); err != nil {
		return err
	}
	defer func() { _ = a.tree.Remove(cg) }()
	run := &runtime.Run{ID: l.id(), Slot: slot, Label: l.json(), Cgroup: cg,
		Limits: cgroup.Limits{MilliCPU: 1000, Memory: 1 << 30, Pids: 64}, Layers: []string{layer}, Dir: a.path("runs", l.id()), ReadOnlyRoot: true,
		Mounts: []sandbox.Mount{{Source: s.Path, Target: volume.CloneTarget}, {Source: a.resolv, Target: "/etc/resolv.conf", File: true}},
		Process: sandbox.Process{Args: []string{"/spillway", volume.CloneCommand}, Env: []string{env, "GOGC=50"}, NoNewPrivs: true,
			Caps: sandbox.Caps([]string{"DAC_OVERRIDE", "FOWNER", "CHOWN"}, []string{"ALL"})},
		Seccomp: runtime.DefaultProfile(), LogDir: a.path("logs", uid, "_clone")}
	if err := os.MkdirAll(run.LogDir, 0o700); err != nil {
		return err
	}
	_ = os.Remove(filepath.Join(run.LogDir, "log"))
	if _, err := rt.Start(ctx, run); err != nil {
		return err
	}
	defer func() { _ = rt.Clean(context.WithoutCancel(ctx), l.id(), run.Dir) }()
	code, err := a.waitRun(ctx, l.id())
	if err != nil {
		return err
	}
	if code != 0 {
		var out bytes.Buffer
		_ = readLogs(ctx, run.LogDir, host.LogOptions{Tail: 1}, func() bool { return true }, &out)
		return fmt.Errorf("git clone: %s", bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// waitRun waits for the end of a run that no worker looks after.
func (a *Agent) waitRun(ctx context.Context, id string) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, clonePatience)
	defer cancel()
	client := a.keeper.Load()
	_, _ = client.Attach(ctx, id, host.Streams{Stdout: io.Discard})
	_, containers, err := client.List(context.WithoutCancel(ctx))
	if err != nil {
		return 0, err
	}
	for _, c := range containers {
		if c.ID == id && c.Exited && c.ExitCode != nil {
			return *c.ExitCode, nil
		}
	}
	_ = client.Signal(context.WithoutCancel(ctx), id, sigKill)
	return 0, errors.Join(ctx.Err(), fmt.Errorf("clone did not end"))
}

// toolLayer is an image layer with this program and the certificates of the host.
func (a *Agent) toolLayer() (string, error) {
	dir := a.path("tools")
	if err := os.MkdirAll(filepath.Join(dir, "etc/ssl/certs"), 0o755); err != nil {
		return "", err
	}
	target := filepath.Join(dir, "spillway")
	if err := copyFile("/proc/self/exe", target, 0o755); err != nil {
		return "", err
	}
	if err := copyFile("/etc/ssl/certs/ca-certificates.crt", filepath.Join(dir, "etc/ssl/certs/ca-certificates.crt"), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	return dir, nil
}

func copyFile(from, to string, mode os.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if a, err := in.Stat(); err == nil {
		if b, err := os.Stat(to); err == nil && a.Size() == b.Size() && !a.ModTime().After(b.ModTime()) {
			return nil
		}
	}
	out, err := os.OpenFile(to+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	return os.Rename(to+".new", to)
}

// overLimit says which limit on disk a group exceeds, "" when none.
func (a *Agent) overLimit(ctx context.Context, uid, dir string, spec *group.Spec) (string, error) {
	excess, err := a.cfg.Volumes.Measure(ctx, dir, spec)
	if err != nil {
		return "", err
	}
	for _, e := range excess {
		return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %d bytes", e.Volume, e.Limit), nil
	}
	if spec.EphemeralStorage == 0 {
		return "", nil
	}
	total, err := volume.Size(ctx, a.path("logs", uid))
	if err != nil {
		return "", err
	}
	runs, _ := filepath.Glob(a.path("runs", uid+".*"))
	for _, path := range append(runs, dir) {
		n, err := volume.Size(ctx, path)
		if err != nil {
			return "", err
		}
		total += n
	}
	if total > spec.EphemeralStorage {
		return fmt.Sprintf("Ephemeral local storage usage of %d bytes exceeds the limit of %d bytes", total, spec.EphemeralStorage), nil
	}
	return "", nil
}
