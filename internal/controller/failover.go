package controller

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

// Bounds of what happens when hosts are lost.
const (
	// DefaultLostAfter is three beats of a host.
	DefaultLostAfter = 6 * time.Second
	// reconnectTime is what hosts get to find a server that has just begun to lead, before their silence counts.
	reconnectTime = 5 * time.Second
	failoverTick  = 100 * time.Millisecond
	// failoverBatch is how many groups are started elsewhere in a tick, on average and at once. Many hosts that fall silent at once look as a
	// network does that is cut: what is left must not be overrun.
	failoverBatch = 20
)

// absence is a host that has joined and is not connected.
type absence struct {
	since time.Time // when it was heard of last
	lost  bool
	empty bool // all that had to go elsewhere has; a lost host gets no new groups

	withdrawn   int64 // version of the network over all hosts that is without it; 0: nobody has been told yet
	withdrawnAt time.Time
}

// failoverLoop declares hosts lost and starts their groups elsewhere, until ctx ends.
func (c *Controller) failoverLoop(ctx context.Context) {
	tick := time.NewTicker(failoverTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if c.loseHosts() {
			c.withdraw(ctx)
		}
		c.moveLost(ctx)
	}
}

// loseHosts declares those lost that have been silent for too long. Their groups are no endpoints from then on. It is true
// when others have to be told of some.
func (c *Controller) loseHosts() (some bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.cfg.Now()
	for name, a := range c.absent {
		if !a.lost && now.Sub(a.since) >= c.cfg.LostAfter {
			a.lost = true
			c.showHost(name)
			c.followTargets(name)
			c.cfg.Log.Error("host lost", "host", name, "silentFor", now.Sub(a.since).Round(time.Millisecond), "groups", len(c.idx.byHost[name]))
		}
		some = some || a.lost && a.withdrawn == 0
	}
	return some
}

// moveLost starts some groups of lost hosts elsewhere. Those that have room nowhere wait for it.
func (c *Controller) moveLost(ctx context.Context) {
	for _, g := range c.displaced() {
		switch err := c.displace(ctx, g); {
		case err == nil, fault.KindOf(err) == fault.NotFound, fault.KindOf(err) == fault.Conflict:
		default:
			if ctx.Err() == nil {
				c.cfg.Log.Error("start a group of a lost host elsewhere", "group", g.Ref.Name, "host", g.Host, "error", err)
			}
			return
		}
	}
}

// displaced are the groups of lost hosts that should run, the oldest first, as many as may be moved at once. Those that
// should go are gone: their host is told so when it comes back.
func (c *Controller) displaced() []*group.Group {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*group.Group
	for name, a := range c.absent {
		if !a.lost || a.empty || !c.fenced(a) {
			continue
		}
		before, waits := len(out), false
		for _, e := range c.idx.byHost[name] {
			switch g := e.group; {
			case c.heldBack(g, a):
				waits = true
			case g.Desired == group.Delete:
				c.gone.add(g.UID)
			case !e.settled() && !c.waits(e):
				out = append(out, g)
			}
		}
		a.empty = len(out) == before && !waits
	}
	slices.SortFunc(out, func(a, b *group.Group) int {
		if d := a.Created.Compare(b.Created); d != 0 {
			return d
		}
		return strings.Compare(a.UID, b.UID)
	})
	out = out[:min(len(out), c.mayDisplace())]
	c.displaces(len(out))
	return out
}

// newDisplacing bounds the rate at which groups of lost hosts are started elsewhere, those that had to wait for room included.
func newDisplacing() *rate.Limiter {
	return rate.NewLimiter(rate.Every(failoverTick/failoverBatch), failoverBatch)
}

// mayDisplace is how many groups of lost hosts may be started elsewhere now.
func (c *Controller) mayDisplace() int { return max(int(c.displacing.TokensAt(c.cfg.Now())), 0) }

func (c *Controller) displaces(n int) { c.displacing.AllowN(c.cfg.Now(), n) }

// displace starts a group of a lost host elsewhere, with an event that says so. One that must never start twice ends.
func (c *Controller) displace(ctx context.Context, lost *group.Group) error {
	if lost.Desired == group.Stop {
		return c.endLost(lost)
	}
	res, err := c.change(ctx, lost.Ref, func(e *entry) (*group.Group, error) {
		g := e.group
		if g.UID != lost.UID || g.Host != lost.Host || g.Desired != group.Run || e.settled() {
			return nil, nil
		}
		return elsewhere(g, c.heardLast(g.Host), c.cfg.Now()), nil
	})
	if err != nil || !res.Changed {
		return err
	}
	g := res.View.Group
	c.cfg.Log.Warn("group of a lost host", "group", g.Ref.Name, "uid", g.UID, "from", lost.Host, "to", g.Host, "desired", string(g.Desired))
	if g.Desired == group.Stop {
		return c.endLost(g)
	}
	return nil
}

// elsewhere is the next epoch of a group whose host is lost, without a host; one that must never start twice stops.
func elsewhere(g *group.Group, heard, now time.Time) *group.Group {
	next := again(g, true)
	if g.Spec.RestartPolicy == group.RestartNever {
		next = again(g, false)
		next.Epoch, next.Desired = g.Epoch, group.Stop
	}
	text := fmt.Sprintf("The host %s has not been heard of since %s; ", g.Host, heard.UTC().Format(time.RFC3339))
	if next.Desired == group.Stop {
		text += "the group has failed, as its restart policy is Never."
	} else {
		text += "the group is started elsewhere."
	}
	next.Events = group.AddEvent(slices.Clone(g.Events), now.UTC(), group.Warning, eventLost, text)
	return next
}

// endLost writes down how a group ended that stops on a lost host: one that was asked to stop is stopped, one that must
// not start twice has failed.
func (c *Controller) endLost(g *group.Group) error {
	v, err := c.Get(g.Ref)
	if err != nil {
		return err
	}
	state := group.Stopped
	if n := len(g.Events); n > 0 && g.Events[n-1].Name == eventLost {
		state = group.Failed
	}
	c.Report(g.Host, lostStatus(g, v.Status, state, c.cfg.Now().UTC()))
	return nil
}

// eventLost is the event of a group whose host was lost.
const eventLost = "HostLost"

func (c *Controller) heardLast(name string) time.Time {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.silentSince(name)
}

// silentSince is heardLast with the lock held.
func (c *Controller) silentSince(name string) time.Time {
	if a := c.absent[name]; a != nil {
		return a.since
	}
	return c.cfg.Now()
}

// lostReason begins the reason of a group that ended with its host.
const lostReason = "HostLost: "

// lostStatus is the end of a group that is not started again: how its containers ended nobody knows.
func lostStatus(g *group.Group, last *group.Status, state group.State, now time.Time) group.Status {
	s := group.Status{UID: g.UID}
	if last != nil {
		s = *last
	}
	s.Generation, s.Epoch, s.State, s.Finished = g.Generation, g.Epoch, state, now
	s.Reason = lostReason + "the host " + g.Host + " was lost while the group ran"
	s.Init, s.Containers = lostContainers(s.Init, now), lostContainers(s.Containers, now)
	return s
}

func lostContainers(list []group.ContainerStatus, now time.Time) []group.ContainerStatus {
	out := slices.Clone(list)
	for i := range out {
		c := &out[i]
		if c.Ready = false; c.Current.State == group.Started {
			c.Current.State, c.Current.Finish, c.Current.Detail, c.Current.ExitCode = group.Terminated, now, "HostLost", nil
		}
	}
	return out
}
