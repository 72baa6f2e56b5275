package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/service"
	"spillway.dev/spillway/internal/store"
)

// AddressResult is what a write of a service address did.
type AddressResult struct {
	View    arm.AddressView
	Created bool
}

// PutAddress creates or updates a service address in one durable commit. Errors: not-found (resource group), conflict
// (an address in use), invalid (a change of network or address), exhausted.
func (c *Controller) PutAddress(ctx context.Context, ref group.Ref, req *arm.AddressRequest) (AddressResult, error) {
	for range maxAttempts {
		rg, err := c.openResourceGroup(ref)
		if err != nil {
			return AddressResult{}, err
		}
		if req.Location, err = c.checkLocation(req.Location, arm.AddressType, rg); err != nil {
			return AddressResult{}, err
		}
		ref.ResourceGroup, ref.Subscription = rg.Name, rg.Subscription
		var res AddressResult
		if old := c.lookupAddress(ref); old == nil {
			res, err = c.createAddress(ctx, ref, req)
		} else {
			res, err = c.updateAddress(ctx, old, req)
		}
		if !errors.Is(err, store.ErrConflict) {
			return res, err
		}
		if err := c.refreshAddress(ctx, ref); err != nil {
			return AddressResult{}, err
		}
	}
	return AddressResult{}, fault.New(fault.Conflict, "", "The service address '%s' is being changed by others. Try again.", ref.Name)
}

func (c *Controller) createAddress(ctx context.Context, ref group.Ref, req *arm.AddressRequest) (AddressResult, error) {
	a := &service.Address{Ref: ref, UID: newID(), Generation: 1, Location: req.Location, Tags: req.Tags, Created: c.cfg.Now().UTC(), Spec: req.Spec}
	var err error
	if a.IP, err = c.claimIP(a, req.IP); err != nil {
		return AddressResult{}, err
	}
	defer c.unclaimIP(a)
	res, err := c.writeAddress(ctx, a, 0,
		store.Op{Key: store.ResourceGroupKey(ref.Subscription, ref.ResourceGroup), Kind: store.Check, If: store.Exists},
		store.Op{Key: addressIPKey(a), Value: []byte(a.UID), If: store.Absent})
	if errors.Is(err, store.ErrConflict) && req.IP.IsValid() {
		if e, getErr := c.cfg.Store.Get(ctx, addressIPKey(a)); getErr == nil && string(e.Value) != a.UID {
			return res, ipTaken(a.IP, a.Spec.Network)
		}
	}
	return res, err
}

func (c *Controller) updateAddress(ctx context.Context, e *addressEntry, req *arm.AddressRequest) (AddressResult, error) {
	old := e.address
	if req.Spec.Network != old.Spec.Network || req.IP.IsValid() && req.IP != old.IP {
		return AddressResult{}, &fault.Error{Kind: fault.Invalid, Code: "InvalidServiceAddressUpdate", Target: "properties", Message: fmt.Sprintf(
			"The service address '%s' is %s in network '%s'; neither can change. Delete it first, or leave both as they are.", old.Ref.Name, old.IP, old.Spec.Network)}
	}
	a := *old
	a.Tags, a.Spec = req.Tags, req.Spec
	a.Generation++
	if equal(a.Spec, old.Spec) && equal(a.Tags, old.Tags) {
		return AddressResult{View: e.view()}, nil
	}
	return c.writeAddress(ctx, &a, e.revision)
}

// writeAddress commits a record and takes it over. revision 0 creates.
func (c *Controller) writeAddress(ctx context.Context, a *service.Address, revision int64, ops ...store.Op) (AddressResult, error) {
	value, err := encode(a)
	if err != nil {
		return AddressResult{}, err
	}
	next, err := c.cfg.Store.Commit(ctx, append(ops, store.Op{Key: addressKey(a.Ref), Value: value, If: revision})...)
	if err != nil {
		return AddressResult{}, fmt.Errorf("store service address %s: %w", a.Ref.Name, err)
	}
	// gofail: var addressStored struct{}
	c.takeAddress(a, next)
	res := AddressResult{View: arm.AddressView{Address: a}, Created: revision == 0}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if e := c.idx.addresses.byUID[a.UID]; e != nil {
		res.View.Status = e.status
	}
	return res, nil
}

func addressKey(ref group.Ref) string {
	return store.AddressKey(ref.Subscription, ref.ResourceGroup, ref.Name)
}

func addressIPKey(a *service.Address) string {
	return store.AddressIPKey(a.Ref.Subscription, a.Spec.Network, a.IP.String())
}

// claimIP finds the address of a new service address and keeps it from others until the record is in memory.
func (c *Controller) claimIP(a *service.Address, want netip.Addr) (netip.Addr, error) {
	for _, r := range c.cfg.Reserved {
		if want.IsValid() && r.Contains(want) {
			return want, &fault.Error{Kind: fault.Invalid, Code: "InvalidServiceAddress", Target: "properties.address", Message: fmt.Sprintf(
				"The address '%s' in 'properties.address' is inside %s, the range of the groups' own addresses. Choose one outside, or leave the field out.", want, r)}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.idx.addresses
	if n := x.count[strings.ToLower(a.Ref.Subscription)]; n >= service.MaxPerSubscription {
		return want, fault.New(fault.Exhausted, "", "The subscription has %d service addresses, the most that it can have. Delete some.", n)
	}
	if want.IsValid() {
		if !x.claim(a, want) {
			return want, ipTaken(want, a.Spec.Network)
		}
		return want, nil
	}
	for size := 1 << (32 - c.cfg.Services.Bits()); size > 0; size-- {
		if candidate := x.next(c.cfg.Services); x.claim(a, candidate) {
			return candidate, nil
		}
	}
	return want, fault.New(fault.Exhausted, "", "All addresses of %s are in use in network '%s'. Delete service addresses, or give the platform a larger range with --service-addresses.", c.cfg.Services, a.Spec.Network)
}

func ipTaken(ip netip.Addr, network string) error {
	return &fault.Error{Kind: fault.Conflict, Code: "ServiceAddressInUse", Target: "properties.address", Message: fmt.Sprintf(
		"The address '%s' in 'properties.address' is that of another service address in network '%s'. Choose another, or leave the field out.", ip, network)}
}

func (c *Controller) unclaimIP(a *service.Address) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.idx.addresses.claimed, ipOf(a, a.IP))
}

// DeleteAddress removes a service address: in one commit from the store, then from the hosts. Errors: not-found.
func (c *Controller) DeleteAddress(ctx context.Context, ref group.Ref) (arm.AddressView, error) {
	for range maxAttempts {
		e := c.lookupAddress(ref)
		if e == nil {
			return arm.AddressView{}, c.missing(arm.AddressType, ref)
		}
		key := addressKey(e.address.Ref)
		revision, err := c.cfg.Store.Commit(ctx, store.Op{Key: key, Kind: store.Delete, If: e.revision},
			store.Op{Key: addressIPKey(e.address), Kind: store.Delete, If: store.Any})
		// gofail: var addressRemoved struct{}
		if err == nil {
			if err = c.bury(key, revision); err == nil {
				c.sweep(ctx, e.address.Ref.Subscription, e.address.Ref.ResourceGroup)
			}
			return e.view(), err
		}
		if !errors.Is(err, store.ErrConflict) {
			return arm.AddressView{}, fmt.Errorf("remove service address %s: %w", ref.Name, err)
		}
		if err := c.refreshAddress(ctx, ref); err != nil {
			return arm.AddressView{}, err
		}
	}
	return arm.AddressView{}, fault.New(fault.Conflict, "", "The service address '%s' is being changed by others. Try again.", ref.Name)
}

// Address finds a service address. Errors: not-found.
func (c *Controller) Address(ref group.Ref) (arm.AddressView, error) {
	if e := c.lookupAddress(ref); e != nil {
		return e.view(), nil
	}
	return arm.AddressView{}, c.missing(arm.AddressType, ref)
}

// Addresses gives the chosen service addresses, ordered by resource group and name.
func (c *Controller) Addresses(filter Filter) []arm.AddressView {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.addressViews(filter)
}

// addressViews is Addresses with the lock held.
func (c *Controller) addressViews(filter Filter) []arm.AddressView {
	return chosen(c.idx.addresses.all, filter, func(e *addressEntry) group.Ref { return e.address.Ref }, (*addressEntry).view)
}

// WatchAddresses is Watch for service addresses.
func (c *Controller) WatchAddresses(filter Filter, revision string) (*Watcher[arm.AddressView], []arm.AddressView, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return watch(c.addressFeed, filter, revision, c.addressViews)
}

func (c *Controller) lookupAddress(ref group.Ref) *addressEntry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	e := c.idx.addresses.all[arm.Key(ref)]
	if e == nil {
		return nil
	}
	copied := *e
	return &copied
}

// refreshAddress reads a service address from the store after another writer was faster.
func (c *Controller) refreshAddress(ctx context.Context, ref group.Ref) error {
	key := addressKey(ref)
	e, err := c.cfg.Store.Get(ctx, key)
	switch {
	case errors.Is(err, store.ErrNotFound): // the watch tells of it with its revision
		return c.refresh(ctx, ref)
	case err != nil:
		return fmt.Errorf("read %s: %w", key, err)
	}
	return c.apply(store.Change{Entry: e, Revision: e.Revision})
}

// applyAddress takes over a change of the store.
func (c *Controller) applyAddress(ch store.Change) error {
	if ch.Deleted {
		c.dropAddress(strings.TrimPrefix(ch.Key, store.Addresses), ch.Revision)
		return nil
	}
	var a service.Address
	if err := json.Unmarshal(ch.Value, &a); err != nil {
		return fmt.Errorf("read %s: %w", ch.Key, err)
	}
	c.takeAddress(&a, ch.Revision)
	return nil
}
