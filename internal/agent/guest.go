package agent

import (
	"context"
	"fmt"
	"slices"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/converge"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/runtime"
)

// guested says whether a group's containers share one guest kernel: those that have a kernel of their own and run at
// the same time. Containers that only follow each other get one each, which starts faster.
func guested(s *group.Spec) bool {
	if s.Isolation != group.IsolationGVisor {
		return false
	}
	sidecar := func(c group.Container) bool { return c.Sidecar }
	return len(s.Containers) > 1 || slices.ContainsFunc(s.InitContainers, sidecar)
}

// guest is what a run needs to know of the guest that it shares with others; nil when it shares none. A container that
// is added to one with a kernel of its own joins that.
func (w *worker) guest(c *group.Container) (*runtime.Guest, error) {
	if w.g.Spec.Isolation != group.IsolationGVisor {
		return nil, nil
	}
	if guested(&w.g.Spec) {
		slot := w.m.Slot
		return &runtime.Guest{Limits: w.groupLimits(), ShareProcesses: w.g.Spec.ShareProcesses,
			Renew: func(ctx context.Context) error { return w.a.restoreNetwork(ctx, slot) }}, nil
	}
	if !w.m.Container(c.Name).Ephemeral {
		return nil, nil
	}
	for _, other := range w.m.Containers {
		if !other.Ephemeral && other.Phase == converge.Running {
			return &runtime.Guest{Of: w.label(other.Name).id()}, nil
		}
	}
	return nil, fmt.Errorf("no container of the group runs that %s could join", c.Name)
}

// groupLimits are what the group's cgroup enforces: its containers' limits, and what a guest kernel needs for itself.
func (w *worker) groupLimits() cgroup.Limits {
	s := &w.g.Spec
	if s.Isolation != group.IsolationGVisor {
		return groupLimits(s)
	}
	return runtime.WithGuest(groupLimits(s), len(s.Containers)+len(s.InitContainers))
}

// limits are what a container's cgroup enforces.
func (w *worker) limits(c *group.Container) cgroup.Limits {
	if w.g.Spec.Isolation != group.IsolationGVisor {
		return limits(c)
	}
	return runtime.WithGuest(limits(c), 1)
}

// settle sets the limit of processor time of an adopted container: at the start of its guest there was another, and the
// agent of that time may not have lived to set it.
func (w *worker) settle(c *group.Container) {
	if w.m.Slot == nil || w.g.Spec.Isolation != group.IsolationGVisor || w.m.Container(c.Name).Ephemeral {
		return
	}
	quota := limits(c).MilliCPU
	if guested(&w.g.Spec) {
		quota = groupLimits(&w.g.Spec).MilliCPU
	}
	if err := w.a.tree.Limit(cgroupOf(w.m.Slot.ID, w.position(c.Name), &w.g.Spec), cgroup.Limits{MilliCPU: quota}); err != nil {
		w.log.Error("limit adopted container", "container", c.Name, "error", err)
	}
}

// networkTaken says whether a kernel of an earlier run has taken the network of the slot with it. The first run of a
// slot finds it as it was made.
func (w *worker) networkTaken(l runLabel) bool {
	cloned := slices.ContainsFunc(w.g.Spec.Volumes, func(v group.Volume) bool { return v.GitRepo != nil })
	return l.Attempt > 1 || l.Epoch > 1 || cloned || w.position(l.Name) > 0
}

// endGuest ends what an earlier epoch has left in the group's slot: the next one may need another guest, or none.
func (w *worker) endGuest(ctx context.Context) error {
	if w.m.Slot == nil || w.g.Spec.Isolation != group.IsolationGVisor {
		return nil
	}
	return w.a.keeper.Load().Dismiss(ctx, w.m.Slot.ID)
}
