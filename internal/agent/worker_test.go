package agent

import (
	"testing"

	"spillway.dev/spillway/internal/group"
)

func TestAbandonedGroupStaysSo(t *testing.T) {
	assigned := func(generation int64) *group.Group {
		return &group.Group{UID: "u", Generation: generation, Desired: group.Run}
	}
	w := &worker{a: &Agent{leases: newLeases()}, wake: make(chan struct{}, 1), next: assigned(3)}
	take := func() { w.takeAssignment(); w.takeInbox(); w.takeAssignment() }
	take()
	w.abandon()
	take()
	if w.g.Desired != group.Delete {
		t.Errorf("an abandoned group's desired state is %s again", w.g.Desired)
	}
	w.assign(assigned(2))
	take()
	if w.g.Desired != group.Delete {
		t.Errorf("after an older assignment it is %s", w.g.Desired)
	}
	w.assign(assigned(4))
	take()
	if w.g.Desired != group.Run {
		t.Errorf("after a newer assignment it is %s", w.g.Desired)
	}
}
