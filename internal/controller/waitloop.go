package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/store"
)

// Bounds of the wait loop.
const (
	// lookEvery is how often hosts in this process, which tell nobody, are looked at while groups wait.
	lookEvery  = 200 * time.Millisecond
	placeBatch = 64                   // waiting groups that are tried, and written in one commit, at a time
	placePause = 5 * time.Millisecond // between two batches: others want the lock, too
)

// waitLoop gives waiting groups room, as soon as there is any, until ctx ends.
func (c *Controller) waitLoop(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		look := false
		select {
		case <-ctx.Done():
			return
		case <-c.room:
		case <-c.left.bell:
		case <-tick.C:
			look = true
		}
		err := c.makeRoom(ctx, look)
		pause := placePause
		if err != nil && ctx.Err() == nil {
			c.cfg.Log.Error("give waiting groups room", "error", err)
			pause = retryDelay
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// makeRoom does all that can be done for waiting groups now; look has hosts in this process asked how they are.
func (c *Controller) makeRoom(ctx context.Context, look bool) error {
	c.clearLeft()
	c.mu.Lock()
	idle := c.idx.queue.Len()+len(c.idx.claims)+len(c.idx.evicted) == 0
	if !idle && look {
		c.look()
	}
	c.mu.Unlock()
	if idle {
		return nil
	}
	if err := c.move(ctx, c.cleared); err != nil {
		return err
	}
	if err := c.move(ctx, c.returning); err != nil {
		return err
	}
	for more := true; more && ctx.Err() == nil; {
		err := c.move(ctx, func() (moves []move) {
			moves, more = c.next()
			return moves
		})
		if err != nil {
			return err
		}
		if more {
			time.Sleep(c.nextPause())
		}
	}
	if err := c.evict(ctx); err != nil {
		return err
	}
	c.tellReasons()
	return nil
}

// nextPause is how long the next batch waits. When no more groups of lost hosts may be started yet, they may be all that is left.
func (c *Controller) nextPause() time.Duration {
	if c.mayDisplace() == 0 {
		return failoverTick
	}
	return placePause
}

// move is a group that gets another record: with a host, or without one.
type move struct {
	old      *group.Group
	revision int64
	next     *group.Group
}

// moveTo makes the record with which a group begins on a host, with the lock held; its reservation begins.
func (c *Controller) moveTo(e *entry, host string) move {
	g := *e.group
	switch {
	case g.Host == "":
	case c.isLost(g.Host):
		g = *elsewhere(e.group, c.silentSince(g.Host), c.cfg.Now())
	default:
		g = *again(e.group, true)
	}
	g.Host = host
	return c.reserveMove(e, &g)
}

func (c *Controller) reserveMove(e *entry, next *group.Group) move {
	next.Generation++
	c.idx.reserved[next.UID] = make(chan struct{})
	return move{e.group, e.revision, next}
}

// next gives some waiting groups room that there is, with the lock held.
func (c *Controller) next() (moves []move, more bool) {
	placed, more := c.idx.queue.Retry(placeBatch, c.mayDisplace())
	for _, p := range placed {
		if c.isLost(p.Group.Host) {
			c.displaces(1)
		}
		if e := c.idx.byUID[p.Group.UID]; e != nil {
			moves = append(moves, c.moveTo(e, p.Host))
		}
	}
	return moves, more
}

// move writes the moves that choose finds with the lock held, and tells the hosts.
func (c *Controller) move(ctx context.Context, choose func() []move) error {
	c.placing.RLock()
	defer c.placing.RUnlock()
	c.mu.Lock()
	moves := choose()
	c.mu.Unlock()
	if len(moves) == 0 {
		return nil
	}
	defer func() {
		for _, m := range moves {
			c.unreserve(m.next.UID)
		}
	}()
	return c.commitMoves(ctx, moves)
}

// commitMoves writes all moves at once; when one of them stands in the way, one by one. A group that was changed by
// somebody else meanwhile waits on as it is now.
func (c *Controller) commitMoves(ctx context.Context, moves []move) error {
	var ops []store.Op
	for _, m := range moves {
		value, err := encode(m.next)
		if err != nil {
			return err
		}
		ops = append(ops, store.Op{Key: groupKey(m.next), Value: value, If: m.revision})
	}
	// gofail: var moveBefore struct{}
	revision, err := c.cfg.Store.Commit(ctx, ops...)
	switch {
	case errors.Is(err, store.ErrConflict) && len(moves) == 1:
		return c.refresh(ctx, moves[0].next.Ref)
	case errors.Is(err, store.ErrConflict):
		for i := range moves {
			if err := c.commitMoves(ctx, moves[i:i+1]); err != nil {
				return err
			}
		}
		return nil
	case err != nil:
		return fmt.Errorf("store %d placements: %w", len(moves), err)
	}
	// gofail: var moveAfter struct{}
	for _, m := range moves {
		if c.putGroup(m.next, revision) {
			c.assign(m.next)
		}
		c.cfg.Log.Info("group moved", "group", m.next.Ref.Name, "uid", m.next.UID, "from", m.old.Host, "to", m.next.Host)
	}
	return nil
}

// clearLeft tells hosts that groups have left which ones they keep.
func (c *Controller) clearLeft() {
	for _, name := range c.left.take(placeBatch) {
		link, ok := c.Host(name)
		if !ok {
			continue // it hears of it when it is back
		}
		c.placing.Lock()
		c.mu.RLock()
		kept := c.idx.onHost(name)
		c.mu.RUnlock()
		retain(link, kept)
		c.placing.Unlock()
	}
}
