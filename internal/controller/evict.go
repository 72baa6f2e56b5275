package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/place"
	"spillway.dev/spillway/internal/store"
)

// eventEvicted is the event of a Spot group that gives way.
const eventEvicted = "SpotEvicted"

// evictBatch is for how many groups Spot groups are asked to leave at a time.
const evictBatch = 16

// claim is room that a waiting group gets when Spot groups have left a host. The fleet counts it as taken. What is
// stored of it is with the victims: Group.Evicted.
type claim struct {
	host    string
	victims []string // uids
}

// comesBack says whether an evicted group has stopped and is to wait for room again. One that must never start twice
// stays stopped, and one that had ended by itself has nothing to come back for.
func (e *entry) comesBack() bool {
	g := e.group
	return g.Evicted != nil && g.Desired == group.Stop && g.Spec.RestartPolicy != group.RestartNever && e.settled() && e.status.State == group.Stopped
}

// resume takes up what an earlier life of the platform left: groups that wait, and evictions under way.
func (c *Controller) resume() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for uid, e := range c.idx.byUID {
		v := e.group.Evicted
		if v == nil || !e.holds() {
			continue
		}
		if g := c.idx.byUID[v.For]; g == nil || g.group.Desired != group.Run || g.settled() || g.group.Host != "" {
			continue
		}
		if c.idx.claims[v.For] == nil {
			c.idx.claims[v.For] = &claim{host: e.group.Host}
		}
		if claim := c.idx.claims[v.For]; claim.host == e.group.Host {
			claim.victims = append(claim.victims, uid)
		}
	}
	all := slices.SortedFunc(maps.Values(c.idx.byUID), func(a, b *entry) int { return a.group.Created.Compare(b.group.Created) })
	for _, e := range all { // in order, so that the queue has nothing to sort
		c.idx.queue.Leave(e.group.UID)
		c.account(e)
	}
}

// evict asks Spot groups to leave for waiting groups that fit nowhere else.
func (c *Controller) evict(ctx context.Context) error {
	c.mu.Lock()
	list := c.idx.queue.Evict(evictBatch)
	for _, v := range list {
		c.idx.claims[v.Group.UID] = &claim{v.Host, v.Victims}
	}
	if len(list) == evictBatch {
		c.nudge() // there may be more
	}
	c.mu.Unlock()
	for i, v := range list {
		if err := c.evictFor(ctx, v); err != nil {
			for _, v := range list[i:] {
				c.unclaim(v.Group.UID)
			}
			return err
		}
	}
	return nil
}

// unclaim gives up a claim: the group waits on.
func (c *Controller) unclaim(uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.drop(uid)
}

// drop is unclaim with the lock held.
func (c *Controller) drop(uid string) {
	delete(c.idx.claims, uid)
	if e := c.idx.byUID[uid]; e != nil {
		c.account(e)
	}
}

// evictFor writes, in one commit, that the victims of one group stop, and tells their host. When one of the records has
// changed meanwhile the group waits on, and is looked at anew.
func (c *Controller) evictFor(ctx context.Context, v place.Eviction) error {
	victims, ops, err := c.victims(v)
	if err != nil || ops == nil {
		return err
	}
	// gofail: var evictBefore struct{}
	revision, err := c.cfg.Store.Commit(ctx, ops...)
	if errors.Is(err, store.ErrConflict) {
		for _, g := range append(victims, v.Group) {
			if err := c.refresh(ctx, g.Ref); err != nil {
				return err
			}
		}
		c.unclaim(v.Group.UID)
		return nil
	}
	if err != nil {
		return fmt.Errorf("store the eviction of %d groups: %w", len(victims), err)
	}
	// gofail: var evictAfter struct{}
	for _, g := range victims {
		if c.putGroup(g, revision) {
			c.assign(g)
		}
		c.cfg.Log.Warn("Spot group evicted", "group", g.Ref.Name, "uid", g.UID, "host", g.Host, "for", v.Group.UID)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.idx.byUID[v.Group.UID]; e != nil && c.idx.claims[v.Group.UID] != nil {
		c.tell(e, leaving(len(v.Victims)))
	}
	return nil
}

func leaving(n int) string {
	if n == 1 {
		return "a Spot group stops to make room"
	}
	return fmt.Sprintf("%d Spot groups stop to make room", n)
}

// victims makes the records with which Spot groups stop for another, and the commit that writes them. Those that stop
// already stay as they are; no ops: the claim has nothing to write.
func (c *Controller) victims(v place.Eviction) (out []*group.Group, ops []store.Op, err error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	claimant := c.idx.byUID[v.Group.UID]
	if claimant == nil {
		return nil, nil, nil
	}
	now := c.cfg.Now().UTC()
	for _, uid := range v.Victims {
		e := c.idx.byUID[uid]
		if e == nil || !e.holds() || e.group.Desired != group.Run {
			continue
		}
		g := *e.group
		g.Desired, g.Evicted = group.Stop, &group.Eviction{For: v.Group.UID, Time: now}
		g.Generation++
		g.Events = group.AddEvent(slices.Clone(g.Events), now, group.Warning, eventEvicted, evictionText(&g, v.Group))
		value, err := encode(&g)
		if err != nil {
			return nil, nil, err
		}
		out = append(out, &g)
		ops = append(ops, store.Op{Key: groupKey(&g), Value: value, If: e.revision})
	}
	if ops != nil {
		ops = append(ops, store.Op{Key: groupKey(claimant.group), Kind: store.Check, If: claimant.revision})
	}
	return out, ops, nil
}

// evictionText says why a Spot group stops. Names of other subscriptions' groups are nobody's business.
func evictionText(g, by *group.Group) string {
	who := "a regular container group"
	if by.Ref.Subscription == g.Ref.Subscription {
		who = fmt.Sprintf("the regular container group '%s'", by.Ref.Name)
	}
	then := "starts again when there is room"
	if g.Spec.RestartPolicy == group.RestartNever {
		then = "is not started again, as its restart policy is Never"
	}
	return fmt.Sprintf("The group gives its room on host %s to %s. It is stopped within its grace period of %s and %s.", g.Host, who, g.Spec.Grace(), then)
}

// cleared finds the claims whose victims have left, with the lock held. A claim on a host that takes no groups any more
// is given up.
func (c *Controller) cleared() (moves []move) {
	for uid, claim := range c.idx.claims {
		e := c.idx.byUID[uid]
		if c.idx.reserved[uid] != nil || c.occupied(claim) {
			continue
		}
		h, known := c.known(claim.host)
		switch {
		case !known, h.State == host.NotReady:
			continue // it may come back
		case h.State != host.Ready:
			c.drop(uid)
			continue
		}
		there := *e.group
		there.Host = claim.host
		if !c.idx.fleet.TakeOn(claim.host, &there) {
			c.drop(uid)
			continue
		}
		delete(c.idx.claims, uid)
		moves = append(moves, c.moveTo(e, claim.host))
	}
	return moves
}

// occupied says whether a claim has to wait for its victims, with the lock held.
func (c *Controller) occupied(cl *claim) bool {
	h, known := c.known(cl.host)
	if known && (h.State == host.Lost || h.Cordoned) {
		return false
	}
	return slices.ContainsFunc(cl.victims, func(uid string) bool {
		e := c.idx.byUID[uid]
		return e != nil && e.group.Host == cl.host && e.holds() && (e.group.Desired != group.Run || c.idx.reserved[uid] != nil)
	})
}

// returning finds evicted groups that have stopped and wait for room from now on, with the lock held.
func (c *Controller) returning() (moves []move) {
	for uid := range c.idx.evicted {
		e := c.idx.byUID[uid]
		if len(moves) == placeBatch {
			c.nudge()
			break
		}
		if c.idx.reserved[uid] == nil {
			next := again(e.group, true)
			moves = append(moves, c.reserveMove(e, next))
		}
	}
	return moves
}
