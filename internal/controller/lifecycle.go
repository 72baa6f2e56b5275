package controller

import (
	"context"
	"errors"
	"fmt"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/store"
)

// stopMargin is what a stop may take beyond the group's grace, maxStopWait the most that a caller is kept waiting.
const (
	stopMargin  = 5 * time.Second
	maxStopWait = 55 * time.Second
)

// lookup finds a group in memory; nil when there is none. The copy stays as it is.
func (c *Controller) lookup(ref group.Ref) *entry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	e := c.idx.groups[arm.Key(ref)]
	if e == nil {
		return nil
	}
	copied := *e
	return &copied
}

// refresh reads a group from the store after another writer was faster.
func (c *Controller) refresh(ctx context.Context, ref group.Ref) error {
	for _, key := range []string{store.GroupKey(ref.Subscription, ref.ResourceGroup, ref.Name), store.ResourceGroupKey(ref.Subscription, ref.ResourceGroup)} {
		e, err := c.cfg.Store.Get(ctx, key)
		switch {
		case errors.Is(err, store.ErrNotFound): // the watch tells of it with its revision
			continue
		case err != nil:
			return fmt.Errorf("read %s: %w", key, err)
		}
		if err := c.apply(store.Change{Entry: e, Revision: e.Revision}); err != nil {
			return err
		}
	}
	return nil
}

// Get finds a group. Errors: not-found.
func (c *Controller) Get(ref group.Ref) (arm.View, error) {
	if e := c.lookup(ref); e != nil {
		return e.view(), nil
	}
	return arm.View{}, c.missing(arm.GroupType, ref)
}

// missing says what of a reference does not exist.
func (c *Controller) missing(kind string, ref group.Ref) error {
	if _, err := c.ResourceGroup(ref.Subscription, ref.ResourceGroup); err != nil {
		return err
	}
	return fault.New(fault.NotFound, "ResourceNotFound", "The Resource '%s/%.80s' under resource group '%.90s' was not found.", kind, ref.Name, ref.ResourceGroup)
}

// change reads a group, lets edit make its successor and writes that; nil from edit means that nothing is to do.
func (c *Controller) change(ctx context.Context, ref group.Ref, edit func(e *entry) (*group.Group, error)) (Result, error) {
	for range maxAttempts {
		e := c.lookup(ref)
		if e == nil {
			return Result{}, c.missing(arm.GroupType, ref)
		}
		g, err := edit(e)
		if err != nil {
			return Result{}, err
		}
		if g == nil {
			return Result{View: e.view()}, nil
		}
		g.Generation++
		res, err := c.write(ctx, g, e.revision, nil)
		if !errors.Is(err, store.ErrConflict) {
			return res, err
		}
		if err := c.refresh(ctx, ref); err != nil {
			return Result{}, err
		}
	}
	return Result{}, busy(ref)
}

// Patch changes what of a group can change while it runs: tags and, without a new epoch, files, resources, images and
// ephemeral containers. Errors: not-found, invalid, conflict for a group that does not run.
func (c *Controller) Patch(ctx context.Context, ref group.Ref, p *arm.Patch) (Result, error) {
	return c.change(ctx, ref, func(e *entry) (*group.Group, error) {
		g := *e.group
		if p.HasTags {
			g.Tags = p.Tags
		}
		if !p.Live() {
			return &g, nil
		}
		if g.Desired != group.Run {
			return nil, busy(g.Ref)
		}
		spec, err := p.Apply(&g.Spec)
		if err != nil {
			return nil, err
		}
		if equal(spec, g.Spec) && equal(g.Tags, e.group.Tags) {
			return nil, nil
		}
		g.Spec = spec
		return &g, nil
	})
}

// Delete asks for the end of a group: its record goes when its host reports that nothing is left. Result.Changed is
// false when the deletion was under way already. Errors: not-found.
//
// grace replaces the group's own grace period, nil keeps it. It can be shortened while the deletion is under way.
func (c *Controller) Delete(ctx context.Context, ref group.Ref, grace *int) (Result, error) {
	return c.change(ctx, ref, func(e *entry) (*group.Group, error) {
		g := *e.group
		under := g.Desired == group.Delete
		if under && (grace == nil || time.Duration(*grace)*time.Second >= g.Spec.Grace()) {
			return nil, nil
		}
		g.Desired = group.Delete
		if grace != nil {
			g.Spec.GraceSeconds = grace
		}
		return &g, nil
	})
}

// Start deploys a stopped or ended group again. A running one stays as it is. Errors: conflict while it is stopping.
func (c *Controller) Start(ctx context.Context, ref group.Ref) (Result, error) {
	return c.change(ctx, ref, func(e *entry) (*group.Group, error) {
		switch ended := e.settled(); {
		case e.group.Desired == group.Delete, e.group.Desired == group.Stop && !ended:
			return nil, busy(e.group.Ref)
		case e.group.Desired == group.Run && !ended:
			return nil, nil
		}
		return again(e.group, true), nil
	})
}

// Restart runs all containers of a group afresh, in place when it is running.
func (c *Controller) Restart(ctx context.Context, ref group.Ref) (Result, error) {
	return c.change(ctx, ref, func(e *entry) (*group.Group, error) {
		if e.group.Desired == group.Delete {
			return nil, busy(e.group.Ref)
		}
		return again(e.group, e.settled()), nil
	})
}

// again is the next epoch of a group, placed anew when it holds nothing any more.
func again(old *group.Group, replace bool) *group.Group {
	g := *old
	g.Desired, g.Evicted = group.Run, nil
	g.Epoch++
	if replace {
		g.Host = ""
	}
	return &g
}

// Stop stops a group and waits until it is down, at most its grace and a little. It has no effect on an ended group.
func (c *Controller) Stop(ctx context.Context, ref group.Ref) (Result, error) {
	res, err := c.change(ctx, ref, func(e *entry) (*group.Group, error) {
		switch {
		case e.group.Desired == group.Delete:
			return nil, busy(e.group.Ref)
		case e.group.Desired == group.Stop && e.group.Evicted == nil, e.group.Desired == group.Run && e.settled():
			return nil, nil
		}
		g := *e.group
		g.Desired, g.Evicted = group.Stop, nil // one that stops for another does not come back, either
		return &g, nil
	})
	if err != nil || res.View.Group.Desired != group.Stop {
		return res, err
	}
	wait, cancel := context.WithTimeout(ctx, min(res.View.Group.Spec.Grace()+stopMargin, maxStopWait))
	defer cancel()
	err = c.Await(wait, ref, func(v arm.View, deleted bool) bool {
		res.View = v
		return deleted || v.Group.Desired != group.Stop || v.Status != nil && v.Status.State.Ended()
	})
	if err != nil && ctx.Err() != nil {
		return res, ctx.Err()
	}
	return res, nil // still stopping after the wait: the state says so
}
