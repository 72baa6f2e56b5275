package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/store"
)

// Bounds of the work behind the scenes.
const (
	persistDelay = 500 * time.Millisecond // statuses that end within it share a commit
	persistBatch = 256                    // statuses in one commit
	removeBatch  = 128                    // records in one commit, four keys each
	retryDelay   = time.Second            // after a store that did not answer

	conflictDelay = 20 * time.Millisecond // after a record that somebody else changed
)

// From takes over what one host says; see Report.
func (c *Controller) From(name string) func(group.Status) {
	return func(s group.Status) { c.Report(name, s) }
}

// Report takes over what a host says of a group. The status must not be changed afterwards. Reports of unknown groups,
// of groups that are not the host's, and of older epochs are ignored.
func (c *Controller) Report(name string, s group.Status) {
	c.mu.Lock()
	e := c.idx.byUID[s.UID]
	if e == nil || e.group.Host != name || !current(e, &s) {
		c.mu.Unlock()
		return
	}
	c.truthful(name, e.group, &s)
	was := group.State("")
	if e.status != nil {
		was = e.status.State
	}
	e.status = &s
	c.account(e)
	c.followTarget(e, false)
	c.feed.publish(Modified, e.view())
	desired, of := e.group.Desired, e.group.Ref.Name
	c.mu.Unlock()

	if was != s.State {
		c.cfg.Log.Info("group state", "group", of, "uid", s.UID, "host", name, "from", string(was), "to", string(s.State), "reason", s.Reason)
	}
	if s.State.Ended() {
		c.dirty.add(s.UID)
	}
	if s.Gone && desired == group.Delete {
		c.gone.add(s.UID)
	}
}

// current says whether a report tells of the newest epoch that was heard of. That an old epoch is gone says nothing of
// a group that should run: it is the host that the group has left.
func current(e *entry, s *group.Status) bool {
	switch {
	case e.status != nil && !s.Gone && e.group.Desired == group.Stop && strings.HasPrefix(e.status.Reason, lostReason):
		return false // its end has been told; what the host finds when it comes back does not undo it
	case e.status != nil && s.Epoch < e.status.Epoch, s.Epoch > e.group.Epoch:
		return false
	case s.Gone && s.Epoch < e.group.Epoch && e.group.Desired == group.Run:
		return false
	}
	return true
}

// persistLoop stores the last word on ended groups, so that a restart of the platform remembers them.
func (c *Controller) persistLoop(ctx context.Context) {
	for c.dirty.wait(ctx) {
		select {
		case <-ctx.Done():
		case <-time.After(persistDelay):
		}
		for uids := c.dirty.take(persistBatch); len(uids) > 0; uids = c.dirty.take(persistBatch) {
			if err := c.persist(context.WithoutCancel(ctx), uids); err != nil {
				c.cfg.Log.Error("store statuses", "error", err)
				for _, uid := range uids {
					c.dirty.add(uid)
				}
				time.Sleep(retryDelay)
				break
			}
		}
	}
}

func (c *Controller) persist(ctx context.Context, uids []string) error {
	var ops []store.Op
	for _, uid := range uids {
		c.mu.RLock()
		e := c.idx.byUID[uid]
		var s *group.Status
		if e != nil && e.group.Desired != group.Delete {
			s = e.status
		}
		c.mu.RUnlock()
		if s == nil || !s.State.Ended() {
			continue
		}
		value, err := encode(s)
		if err != nil {
			return err
		}
		ops = append(ops, store.Op{Key: store.StatusKey(uid), Value: value, If: store.Any})
	}
	if ops == nil {
		return nil
	}
	_, err := c.cfg.Store.Commit(ctx, ops...)
	return err
}

// removeLoop removes the records of groups of which nothing is left, and of resource groups that are empty.
func (c *Controller) removeLoop(ctx context.Context) {
	c.sweepAll(ctx)
	for c.gone.wait(ctx) {
		for uids := c.gone.take(removeBatch); len(uids) > 0; uids = c.gone.take(removeBatch) {
			if err := c.removeAll(ctx, uids); err != nil && ctx.Err() == nil {
				c.cfg.Log.Error("remove groups", "error", err)
				for _, uid := range uids {
					c.gone.add(uid)
				}
				time.Sleep(retryDelay)
				break
			}
		}
	}
}

// removeAll removes many records in one commit; when one of them stands in the way, one by one.
func (c *Controller) removeAll(ctx context.Context, uids []string) error {
	err := c.removeRecords(ctx, uids)
	if !errors.Is(err, store.ErrConflict) {
		return err
	}
	if len(uids) == 1 { // written meanwhile: look again when that is known here
		time.AfterFunc(conflictDelay, func() { c.gone.add(uids[0]) })
		return nil
	}
	for _, uid := range uids {
		if err := c.removeAll(ctx, []string{uid}); err != nil {
			return err
		}
	}
	return nil
}

func (c *Controller) removeRecords(ctx context.Context, uids []string) error {
	var ops []store.Op
	var removed []*entry
	for _, uid := range uids {
		c.mu.RLock()
		e := c.idx.byUID[uid]
		if e == nil || e.group.Desired != group.Delete {
			c.mu.RUnlock()
			continue
		}
		copied := *e
		c.mu.RUnlock()
		removed = append(removed, &copied)
		g := copied.group
		ops = append(ops,
			store.Op{Key: groupKey(g), Kind: store.Delete, If: copied.revision},
			store.Op{Key: store.StatusKey(uid), Kind: store.Delete, If: store.Any})
		for _, key := range []string{labelKey(g), subnetKey(g)} {
			if key != "" {
				ops = append(ops, store.Op{Key: key, Kind: store.Delete, If: store.Any})
			}
		}
	}
	if ops == nil {
		return nil
	}
	// gofail: var removeBefore struct{}
	revision, err := c.cfg.Store.Commit(ctx, ops...)
	if err != nil {
		return fmt.Errorf("remove %d groups: %w", len(removed), err)
	}
	// gofail: var removeAfter struct{}
	for _, e := range removed {
		if err := c.bury(groupKey(e.group), revision); err != nil {
			return err
		}
		c.sweep(ctx, e.group.Ref.Subscription, e.group.Ref.ResourceGroup)
		if s := e.group.Spec.Subnet; s != nil {
			c.sweep(ctx, s.Network.Subscription, s.Network.ResourceGroup)
		}
	}
	return nil
}

func groupKey(g *group.Group) string {
	return store.GroupKey(g.Ref.Subscription, g.Ref.ResourceGroup, g.Ref.Name)
}

// Operation says how far a long operation on the group with this uid has come. Deleted groups are succeeded deletes.
func (c *Controller) Operation(uid string, epoch int64, deletion bool) (v arm.View, state group.Provisioning, found bool) {
	c.mu.RLock()
	e := c.idx.byUID[uid]
	if e == nil {
		c.mu.RUnlock()
		return arm.View{}, group.ProvisioningSucceeded, false
	}
	v = e.view()
	c.mu.RUnlock()
	if deletion {
		return v, group.ProvisioningPending, true
	}
	if v.Group.Epoch > epoch {
		return v, group.ProvisioningSucceeded, true // a later operation took over
	}
	return v, v.Provisioning(c.cfg.Now()), true
}
