package controller

import (
	"slices"
	"time"

	"spillway.dev/spillway/internal/group"
)

// eventNoRoom is the event of a group that fits nowhere, and the first word of its reason.
const eventNoRoom = "FailedPlacement"

// waits says whether a group is to be given a place as soon as there is one, with the lock held: it has no host, or runs
// on one that is being drained, or is known to fit nowhere but on the host that was lost. What must never start twice
// stays where it is, and what is fenced until it cannot run there any more.
func (c *Controller) waits(e *entry) bool {
	g := e.group
	switch {
	case g.Desired != group.Run || e.settled():
		return false
	case g.Host == "":
		return true
	case g.Spec.RestartPolicy == group.RestartNever, c.mayLeave(e) != nil:
		return false
	case c.isLost(g.Host):
		return c.idx.queue.Waits(g.UID) || c.idx.claims[g.UID] != nil
	}
	r := c.idx.hosts[g.Host]
	return r != nil && r.Draining
}

// isLost says whether a host is lost, with the lock held.
func (c *Controller) isLost(name string) bool {
	a := c.absent[name]
	return a != nil && a.lost
}

// account notes what a group holds now and whether it waits, with the lock held. While a write of the group is under
// way, its reservation stands.
func (c *Controller) account(e *entry) {
	g := e.group
	if c.idx.reserved[g.UID] != nil {
		return
	}
	defer c.nudge()
	if e.comesBack() {
		c.idx.evicted[g.UID] = true
	} else {
		delete(c.idx.evicted, g.UID)
	}
	waits := c.waits(e)
	if claim := c.idx.claims[g.UID]; claim != nil && waits {
		there := *g
		there.Host = claim.host
		c.idx.fleet.Assign(&there)
		return
	}
	delete(c.idx.claims, g.UID)
	if e.holds() {
		c.idx.fleet.Assign(g)
	} else {
		c.idx.fleet.Release(g.UID)
	}
	if waits {
		c.idx.queue.Wait(g, g.Host != "" && c.isLost(g.Host))
	} else {
		c.idx.queue.Leave(g.UID)
	}
}

// accountHost accounts the groups of a host of which something else is wanted now, with the lock held.
func (c *Controller) accountHost(name string) {
	for _, e := range c.idx.byHost[name] {
		c.account(e)
	}
}

// nudge wakes the wait loop when there is anybody for whom a change could matter, with the lock held.
func (c *Controller) nudge() {
	if c.idx.queue.Len()+len(c.idx.claims)+len(c.idx.evicted) == 0 {
		return
	}
	select {
	case c.room <- struct{}{}:
	default:
	}
}

// rehouse follows a group that has another host than before, or none, with the lock held. Of a group without a host
// nobody reports: the platform says itself how it is.
func (c *Controller) rehouse(e *entry, old *group.Group) {
	g := e.group
	if old != nil && old.Host != g.Host {
		if g.Host != "" && e.status != nil && (old.Host != "" || e.status.Epoch == g.Epoch) {
			e.status = nil // the host's word counts from now on
		}
		if c.links[old.Host] != nil {
			c.left.add(old.Host)
		}
	}
	if g.Host != "" {
		return
	}
	s := &group.Status{UID: g.UID, Generation: g.Generation, Epoch: g.Epoch}
	switch {
	case g.Desired == group.Delete:
		c.gone.add(g.UID)
	case g.Desired == group.Stop && !e.settled():
		s.State, s.Finished = group.Stopped, c.cfg.Now().UTC()
		e.status = s
	case g.Desired == group.Run && !e.settled():
		s.State, s.Reason = group.Pending, eventNoRoom
		if n := len(g.Events); n > 0 && g.Events[n-1].Name == eventNoRoom {
			s.Reason += ": " + g.Events[n-1].Message
		}
		e.status = s
	}
}

// waitEvent notes why a group waits. All reasons of one wait are one event, with the newest message.
func waitEvent(events []group.Event, now time.Time, text string) []group.Event {
	out := slices.Clone(events)
	if n := len(out); n > 0 && out[n-1].Name == eventNoRoom {
		e := &out[n-1]
		e.Count, e.Last, e.Message = e.Count+1, now, text
		return out
	}
	return group.AddEvent(out, now, group.Warning, eventNoRoom, text)
}

// tell lets watchers know why a group waits, with the lock held. It is not stored: the next write of the group takes it
// along. A group that runs on a host that is being drained has nothing to complain of.
func (c *Controller) tell(e *entry, text string) {
	reason := eventNoRoom + ": " + text
	if e.group.Host != "" && !c.isLost(e.group.Host) || e.status != nil && e.status.Reason == reason {
		return
	}
	g, s := *e.group, group.Status{UID: e.group.UID, Generation: e.group.Generation, Epoch: e.group.Epoch, State: group.Pending}
	g.Events = waitEvent(g.Events, c.cfg.Now().UTC(), text)
	if g.Host != "" && e.status != nil {
		s = *e.status // as the lost host had it last
	}
	s.Reason = reason
	e.group, e.status = &g, &s
	c.feed.publish(Modified, e.view())
}

// Bounds of telling why groups wait.
const (
	tellEvery = time.Second // a reason that changes all the time is told so often
	tellBatch = 64          // groups that are told at a time
	tellLooks = 200_000     // hosts that are asked for it at a time
)

// telling is how far the wait loop has come with it.
type telling struct {
	at      time.Time
	changes int64 // place.View.Changes of the last round
	open    int   // groups that have not heard of it yet
}

// tellReasons tells waiting groups why they wait now, some at a time, when anything has changed.
func (c *Controller) tellReasons() {
	now := c.cfg.Now()
	if now.Sub(c.told.at) < tellEvery {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	x := &c.idx
	if changes := x.fleet.Changes(); changes != c.told.changes {
		c.told.changes, c.told.open = changes, x.queue.Len()
	}
	n := min(c.told.open, tellBatch, 1+tellLooks/(x.fleet.Hosts()+1))
	if n <= 0 {
		return
	}
	c.told.at = now
	c.told.open -= n
	for _, uid := range x.queue.Look(n) {
		if why, ok := x.queue.Why(uid); ok && x.reserved[uid] == nil {
			c.tell(x.byUID[uid], why.String())
		}
	}
}
