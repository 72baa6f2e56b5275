package agent

import (
	"context"
	"slices"

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

// guest is what a run needs to know of the guest that it shares; nil when it shares none.
func (w *worker) guest() *runtime.Guest {
	if !guested(&w.g.Spec) {
		return nil
	}
	slot := w.m.Slot
	return &runtime.Guest{Limits: groupLimits(&w.g.Spec), ShareProcesses: w.g.Spec.ShareProcesses,
		Renew: func(ctx context.Context) error { return w.a.restoreNetwork(ctx, slot) }}
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
