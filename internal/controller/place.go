package controller

import (
	"context"
	"fmt"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/place"
	"spillway.dev/spillway/internal/store"
)

// reserve takes room for a record that is about to be written: on a host that is found for it, or on its own host what
// it grows by. One that fits nowhere now is to wait: it gets no host and an event that says why. Errors: conflict, when
// it can have no room or stays where it is, or when another write of the group is at it.
func (c *Controller) reserve(ctx context.Context, g *group.Group) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if other := c.idx.reserved[g.UID]; other != nil {
		c.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
		}
		c.mu.Lock()
		return store.ErrConflict
	}
	if g.Host == "" {
		if err := c.mayLeave(c.idx.byUID[g.UID]); err != nil {
			return err
		}
	}
	c.look()
	c.idx.queue.Pause(g.UID)
	if g.Host == "" {
		if err := c.find(g); err != nil {
			return err
		}
	} else if r, ok := c.idx.fleet.Grow(g); !ok {
		if e := c.idx.byUID[g.UID]; e != nil {
			c.account(e)
		}
		return noRoom(g, r)
	}
	c.idx.reserved[g.UID] = make(chan struct{})
	return nil
}

// maxWaiting is how many groups may wait for room before further ones are refused: as many as one server tries in about
// a second.
const maxWaiting = 20_000

// find looks for a host, with the lock held.
func (c *Controller) find(g *group.Group) error {
	e := c.idx.byUID[g.UID]
	if c.idx.claims[g.UID] != nil && !e.holds() {
		return nil // its room is being made
	}
	d := c.idx.fleet.Take(g)
	if g.Host = d.Host; g.Host != "" {
		return nil
	}
	if e != nil && e.holds() { // it stays where it is until there is room elsewhere
		if c.isLost(e.group.Host) {
			c.idx.queue.Wait(e.group, true)
		}
		c.account(e)
		return noRoom(g, d.Refusal)
	}
	crowded := c.idx.queue.Len() >= maxWaiting && !c.idx.queue.Waits(g.UID)
	if crowded || d.Refusal.DiskFull() || c.alone() && c.idx.fleet.Never(g) {
		if e != nil {
			c.account(e)
		}
		return noRoom(g, d.Refusal)
	}
	g.Events = waitEvent(g.Events, c.cfg.Now().UTC(), d.Refusal.String())
	return nil
}

// alone says whether the platform is one machine that no other has joined, with the lock held: what it does not take
// when it is empty has room nowhere, ever.
func (c *Controller) alone() bool {
	if c.idx.fleet.Hosts() != 1 {
		return false
	}
	for _, r := range c.idx.hosts {
		if r.UID != "" {
			return false
		}
	}
	return true
}

// grows says whether a running group asks for more than its record in memory.
func (c *Controller) grows(g *group.Group) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	e := c.idx.byUID[g.UID]
	return e != nil && e.holds() && !g.Spec.Total().Within(e.group.Spec.Total())
}

// unreserve ends a reservation: the group holds what its record in memory says, or nothing.
func (c *Controller) unreserve(uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.idx.reserved[uid])
	delete(c.idx.reserved, uid)
	if e := c.idx.byUID[uid]; e != nil {
		c.account(e)
		return
	}
	c.idx.fleet.Release(uid)
	c.idx.queue.Leave(uid)
	c.nudge()
}

// look takes over what hosts in this process say of themselves, with the lock held; others send it when it changes.
func (c *Controller) look() {
	for name := range c.links {
		if r := c.idx.hosts[name]; r == nil || r.UID == "" {
			c.idx.fleet.SetHost(c.describe(name))
		}
	}
}

func noRoom(g *group.Group, r place.Refusal) error {
	total := g.Spec.Total()
	e := fault.New(fault.Conflict, "ServiceUnavailable",
		"The requested resource is not available in the location '%s' at this moment. Please retry with a different resource request or in another location. Resource requested: '%s' CPU '%s' GB memory 'Linux' OS. Reasons: %s.",
		g.Location, arm.Cores(total.MilliCPU), arm.Gigabytes(total.Memory), r)
	if r.DiskFull() {
		e.Message += " Free disk space with 'spillway image rm' or by removing groups; running groups are not affected."
	}
	return e
}

// maxVerdicts bounds the hosts in an explanation; the counts are of all.
const maxVerdicts = 1000

// Explanation says where a group would go, and what every host says to it.
type Explanation struct {
	Host    string          `json:"host,omitempty"`    // "" when no host has room
	Reason  string          `json:"reason,omitempty"`  // why none has, by counts
	Victims []string        `json:"victims,omitempty"` // Spot groups that would have to leave Victim first
	Victim  string          `json:"victimHost,omitempty"`
	Hosts   []place.Verdict `json:"hosts"` // by name, the first maxVerdicts
}

// Explain says where a group would go if it were created now, and creates nothing. A group of that name which runs
// counts as what it is, not as a neighbour of its successor. Errors: not-found (resource group), invalid (location).
func (c *Controller) Explain(ref group.Ref, req *arm.Request) (Explanation, error) {
	rg, err := c.openResourceGroup(ref)
	if err != nil {
		return Explanation{}, err
	}
	if _, err := c.checkLocation(req.Location, arm.GroupType, rg); err != nil {
		return Explanation{}, err
	}
	g := &group.Group{Ref: group.Ref{Subscription: rg.Subscription, ResourceGroup: rg.Name, Name: ref.Name}, Zones: req.Zones, Spec: req.Spec}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.idx.groups[arm.Key(g.Ref)]; e != nil {
		g.UID = e.group.UID
	}
	c.look()
	d := c.idx.fleet.Place(g)
	x := Explanation{Host: d.Host, Victim: d.Victim, Hosts: c.idx.fleet.Explain(g)}
	if d.Host == "" {
		x.Reason = fmt.Sprint(d.Refusal)
	}
	for _, uid := range d.Victims {
		if e := c.idx.byUID[uid]; e != nil && e.group.Ref.Subscription == g.Ref.Subscription {
			x.Victims = append(x.Victims, e.group.Ref.Name)
		}
	}
	x.Hosts = x.Hosts[:min(len(x.Hosts), maxVerdicts)]
	return x, nil
}
