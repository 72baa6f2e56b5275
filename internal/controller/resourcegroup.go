package controller

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/store"
)

// ResourceGroup finds a resource group. Errors: not-found.
func (c *Controller) ResourceGroup(subscription, name string) (ResourceGroup, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if rg := c.idx.rgs[rgKey(subscription, name)]; rg != nil {
		return *rg, nil
	}
	return ResourceGroup{}, fault.New(fault.NotFound, "ResourceGroupNotFound", "Resource group '%.90s' could not be found.", name)
}

// openResourceGroup finds the resource group of a reference and refuses one that is being deleted.
func (c *Controller) openResourceGroup(ref group.Ref) (ResourceGroup, error) {
	rg, err := c.ResourceGroup(ref.Subscription, ref.ResourceGroup)
	if err == nil && rg.Deleting {
		return rg, deleting(rg)
	}
	return rg, err
}

func deleting(rg ResourceGroup) error {
	return fault.New(fault.Conflict, "ResourceGroupBeingDeleted", "The resource group '%s' is in deprovisioning state and cannot perform this operation. Wait until it is gone.", rg.Name)
}

// ListResourceGroups gives the resource groups of a subscription by name.
func (c *Controller) ListResourceGroups(subscription string) []ResourceGroup {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []ResourceGroup
	for _, rg := range c.idx.rgs {
		if fits(subscription, rg.Subscription) {
			out = append(out, *rg)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// PutResourceGroup creates or updates a resource group; created tells which. Errors: invalid (foreign location),
// conflict (being deleted).
func (c *Controller) PutResourceGroup(ctx context.Context, want ResourceGroup) (rg ResourceGroup, created bool, err error) {
	if want.Location, err = c.checkLocation(want.Location, arm.ResourceGroupType, ResourceGroup{Location: c.cfg.Location}); err != nil {
		return rg, false, err
	}
	for range maxAttempts {
		old, err := c.ResourceGroup(want.Subscription, want.Name)
		created = err != nil
		if !created {
			if old.Deleting {
				return rg, false, deleting(old)
			}
			want.Name, want.Subscription = old.Name, old.Subscription // the spelling of the first creation stays
		}
		if err = c.writeResourceGroup(ctx, &want, old.revision); !errors.Is(err, store.ErrConflict) {
			return want, created, err
		}
		if err := c.refresh(ctx, group.Ref{Subscription: want.Subscription, ResourceGroup: want.Name}); err != nil {
			return rg, false, err
		}
	}
	return rg, false, fault.New(fault.Conflict, "", "The resource group '%s' is being changed by others. Try again.", want.Name)
}

func (c *Controller) writeResourceGroup(ctx context.Context, rg *ResourceGroup, revision int64) error {
	value, err := encode(rg)
	if err != nil {
		return err
	}
	key := store.ResourceGroupKey(rg.Subscription, rg.Name)
	next, err := c.cfg.Store.Commit(ctx, store.Op{Key: key, Value: value, If: revision})
	if err != nil {
		return fmt.Errorf("store resource group %s: %w", rg.Name, err)
	}
	return c.apply(store.Change{Entry: store.Entry{Key: key, Value: value, Revision: next}, Revision: next})
}

// DeleteResourceGroup asks for the end of a resource group and all its groups. Errors: not-found.
func (c *Controller) DeleteResourceGroup(ctx context.Context, subscription, name string) (ResourceGroup, error) {
	rg, err := c.ResourceGroup(subscription, name)
	if err != nil {
		return rg, err
	}
	if !rg.Deleting {
		if err := c.keptFromOutside(subscription, name); err != nil {
			return rg, err
		}
		marked := rg
		marked.Deleting = true
		if err := c.writeResourceGroup(ctx, &marked, rg.revision); err != nil {
			if errors.Is(err, store.ErrConflict) {
				return rg, fault.New(fault.Conflict, "", "The resource group '%s' is being changed by others. Try again.", name)
			}
			return rg, err
		}
		rg = marked
	}
	for _, v := range c.List(Filter{Subscription: subscription, ResourceGroup: name}) {
		if _, err := c.Delete(ctx, v.Group.Ref, nil); err != nil && fault.KindOf(err) != fault.NotFound {
			return rg, err
		}
	}
	for _, v := range c.Addresses(Filter{Subscription: subscription, ResourceGroup: name}) {
		if _, err := c.DeleteAddress(ctx, v.Address.Ref); err != nil && fault.KindOf(err) != fault.NotFound {
			return rg, err
		}
	}
	c.sweep(ctx, subscription, name)
	return rg, nil
}

// keptFromOutside refuses the deletion of virtual networks with a resource group while groups of others are in them.
func (c *Controller) keptFromOutside(subscription, name string) error {
	for _, v := range c.Networks(Filter{Subscription: subscription, ResourceGroup: name}) {
		for i := range v.Network.Subnets {
			s := &v.Network.Subnets[i]
			users := slices.DeleteFunc(arm.Users(v, s.Prefix), func(ref group.Ref) bool { return strings.EqualFold(ref.ResourceGroup, name) })
			if len(users) > 0 {
				return inUse("InUseSubnetCannotBeDeleted", "Subnet "+arm.SubnetID(v.Network.Ref, s.Name), users, "be deleted")
			}
		}
	}
	return nil
}

// sweepAll goes on with deletions that an earlier life of the platform began.
func (c *Controller) sweepAll(ctx context.Context) {
	for _, rg := range c.ListResourceGroups("") {
		if rg.Deleting {
			if _, err := c.DeleteResourceGroup(ctx, rg.Subscription, rg.Name); err != nil {
				c.cfg.Log.Error("delete resource group", "resourceGroup", rg.Name, "error", err)
			}
		}
	}
}

// sweep removes the record of a resource group that is being deleted and has no groups left.
func (c *Controller) sweep(ctx context.Context, subscription, name string) {
	key := rgKey(subscription, name)
	c.mu.RLock()
	rg, empty := c.idx.rgs[key], len(c.idx.byRG[key]) == 0 && c.idx.addresses.inGroup[key] == 0
	c.mu.RUnlock()
	if rg == nil || !rg.Deleting || !empty {
		return
	}
	if err := c.leaveNetworks(ctx, subscription, name); err != nil {
		c.cfg.Log.Error("remove the virtual networks of a resource group", "resourceGroup", name, "error", err)
		return
	}
	stored := store.ResourceGroupKey(subscription, name)
	revision, err := c.cfg.Store.Commit(ctx, store.Op{Key: stored, Kind: store.Delete, If: rg.revision})
	if err == nil {
		err = c.bury(stored, revision)
	}
	if err != nil && !errors.Is(err, store.ErrConflict) {
		c.cfg.Log.Error("remove resource group", "resourceGroup", name, "error", err)
	}
}
