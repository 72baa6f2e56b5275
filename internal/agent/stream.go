package agent

import (
	"context"
	"errors"
	"io"
	"time"

	"spillway.dev/spillway/internal/converge"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/network"
	"spillway.dev/spillway/internal/runtime"
	"spillway.dev/spillway/internal/sandbox"
)

// inWorker asks a group's worker and waits for the answer.
func inWorker[T any](ctx context.Context, a *Agent, uid string, f func(*worker) (T, error)) (T, error) {
	var zero T
	w, ok := a.worker(uid)
	if !ok {
		return zero, fault.New(fault.NotFound, "", "The container group is not on this host.")
	}
	type answer struct {
		v   T
		err error
	}
	c := make(chan answer, 1)
	w.post(func() {
		v, err := f(w)
		c <- answer{v, err}
	})
	select {
	case got := <-c:
		return got.v, got.err
	case <-ctx.Done():
		return zero, ctx.Err()
	case <-time.After(workerPatience):
		return zero, fault.New(fault.Unavailable, "", "The host is busy; try again.")
	}
}

const workerPatience = 10 * time.Second

// joinable is what is needed to run a command in a container.
type joinable struct {
	id      string
	rt      runtime.Runtime
	process sandbox.Process
}

func (w *worker) joinable(name string) (joinable, error) {
	c, spec := w.m.Container(name), w.spec(name)
	if c == nil || spec == nil {
		return joinable{}, fault.New(fault.NotFound, "", "The container '%s' is not in container group '%s'.", name, w.g.Ref.Name)
	}
	if c.Phase != converge.Running && c.Phase != converge.Stopping {
		return joinable{}, fault.New(fault.Conflict, "ContainerGroupTransitioning", "The container '%s' is not running; it is %s.", name, c.Phase)
	}
	rt, err := w.runtime()
	if err != nil {
		return joinable{}, err
	}
	img, _ := w.a.cfg.Images.Lookup(spec.Image, w.g.Ref.Subscription)
	return joinable{w.label(name).id(), rt, process(spec, img, hostname(w.g))}, nil
}

// execIn runs a probe's or hook's command in a run.
func (a *Agent) execIn(ctx context.Context, id string, command []string, s host.Streams) (int, error) {
	var uid, name string
	if l, ok := parseRunID(id); ok {
		uid, name = l.UID, l.Name
	}
	j, err := inWorker(ctx, a, uid, func(w *worker) (joinable, error) { return w.joinable(name) })
	if err != nil {
		return 0, err
	}
	j.process.Args, j.process.TTY = command, false
	return j.rt.Exec(ctx, j.id, j.process, s)
}

// Exec implements host.Link.
func (a *Agent) Exec(ctx context.Context, uid, container string, req host.ExecRequest, s host.Streams) (int, error) {
	j, err := inWorker(ctx, a, uid, func(w *worker) (joinable, error) { return w.joinable(container) })
	if err != nil {
		return 0, err
	}
	j.process.Args, j.process.TTY = req.Command, req.TTY
	j.process.Rows, j.process.Cols = req.Size.Rows, req.Size.Cols
	if !req.Stdin {
		s.Stdin = nil
	}
	code, err := j.rt.Exec(ctx, j.id, j.process, s)
	if e, ok := errors.AsType[*keeper.Error](err); ok {
		if e.NotFound {
			return 0, fault.New(fault.Conflict, "ContainerGroupTransitioning", "The container '%s' has ended.", container)
		}
		if e.ExitCode != 0 {
			// A command that cannot be executed is the caller's answer, not a failure of ours.
			if s.Stderr != nil {
				_, _ = io.WriteString(s.Stderr, e.Message+"\n")
			} else {
				_, _ = io.WriteString(s.Stdout, e.Message+"\n")
			}
			return e.ExitCode, nil
		}
	}
	return code, err
}

// Attach implements host.Link.
func (a *Agent) Attach(ctx context.Context, uid, container string, s host.Streams) error {
	j, err := inWorker(ctx, a, uid, func(w *worker) (joinable, error) { return w.joinable(container) })
	if err != nil {
		return err
	}
	_, err = a.keeper.Load().Attach(ctx, j.id, s)
	return err
}

// Stats implements host.Link.
func (a *Agent) Stats(ctx context.Context, uid string) (host.Stats, error) {
	return inWorker(ctx, a, uid, func(w *worker) (host.Stats, error) {
		s := host.Stats{Time: time.Now().UTC()}
		if w.m.Slot == nil {
			return s, nil
		}
		add := func(name, cgroup string) {
			used := a.tree.Stat(cgroup)
			s.Containers = append(s.Containers, host.ContainerStats{Name: name, CPUNanos: used.CPUNanos, Memory: used.Memory, Pids: used.Pids})
		}
		if guested(&w.g.Spec) {
			add(host.AllContainers, w.m.Slot.ID)
		} else {
			for i, c := range w.m.Containers {
				if c.Phase == converge.Running {
					add(c.Name, cgroupOf(w.m.Slot.ID, i, &w.g.Spec))
				}
			}
		}
		if counters, err := a.cfg.Network.Stats(network.Slot{Index: slotIndex(w.m.Slot.ID)}); err == nil {
			s.NetworkRx, s.NetworkTx = int64(counters.RxBytes), int64(counters.TxBytes)
		}
		return s, nil
	})
}

// Logs implements host.Link.
func (a *Agent) Logs(ctx context.Context, uid, container string, opt host.LogOptions, out io.Writer) error {
	type found struct {
		label runLabel
		dirs  []string
	}
	f, err := inWorker(ctx, a, uid, func(w *worker) (found, error) {
		if w.m.Container(container) == nil {
			return found{}, fault.New(fault.NotFound, "", "The container '%s' is not in container group '%s'.", container, w.g.Ref.Name)
		}
		return found{w.label(container), w.a.runsWithLogs(uid, container)}, nil
	})
	if err != nil {
		return err
	}
	dir := a.logDir(f.label)
	if opt.Previous || f.label.Attempt == 0 {
		dir = ""
		for _, d := range f.dirs {
			if d != a.logDir(f.label) {
				dir = d
			}
		}
		if dir == "" && opt.Previous {
			return fault.New(fault.NotFound, "ContainerLogNotAvailable", "The container '%s' has no previous run.", container)
		}
	}
	ended := func() bool { return a.runEnded(uid, f.label) }
	return readLogs(ctx, dir, opt, ended, out)
}

// runEnded says whether a run is over.
func (a *Agent) runEnded(uid string, l runLabel) bool {
	s, ok := a.Status(uid)
	if !ok || s.Epoch != l.Epoch {
		return true
	}
	for _, c := range s.All() {
		if c.Name == l.Name {
			return c.Current.State == group.Terminated || s.State.Ended()
		}
	}
	return true
}
