package controller

import (
	"time"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

// A fenced group of a lost host is started elsewhere only when the host has stopped it. Nobody can ask the host; but a
// lease that this server, or one before it, has granted is counted from when the host said something, and the host kills
// its fenced groups when its lease ends.
const (
	// killTime is what a host may need from the end of its lease until nothing of a fenced group runs any more: its
	// machine may be overloaded, and a guest kernel's memory is given back. There is no grace period.
	killTime = 2 * time.Second
	// clockShare is by how much a host's clock may be slower than ours: one part in so many.
	clockShare = 100
)

// leaseOver is how long after its last word a host has surely stopped its fenced groups; length is that of a lease.
func leaseOver(length time.Duration) time.Duration { return length + length/clockShare + killTime }

// outlived says whether nothing of a fenced group can run on a host that is away. One that a former leader has heard of
// last counts as heard of when this one began: no lease of before is longer than one of now.
func (a *absence) outlived(now time.Time, length time.Duration) bool {
	return a != nil && a.lost && now.Sub(a.since) >= leaseOver(length)
}

// mayLeave says whether a group may be placed anew although it has not ended on its host, with the lock held. A fenced one
// may when its host is cut off: not when that was so, and the host has come back meanwhile.
func (c *Controller) mayLeave(e *entry) error {
	if e == nil || !e.holds() || !e.group.Spec.Fenced() || c.absent[e.group.Host].outlived(c.cfg.Now(), c.cfg.LostAfter) {
		return nil
	}
	return fault.New(fault.Conflict, "ContainerGroupFenced", "The container group '%s' is fenced and may still run on the host '%s'. Stop it first.", e.group.Ref.Name, e.group.Host)
}

// heldBack says whether a group must be left as it is, for now, on a host that is away.
func (c *Controller) heldBack(g *group.Group, a *absence) bool {
	return g.Spec.Fenced() && !a.outlived(c.cfg.Now(), c.cfg.LostAfter)
}
