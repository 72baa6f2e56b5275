package controller

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/vnet"
)

// NetworkResult is what a write of a virtual network did.
type NetworkResult struct {
	View    arm.NetworkView
	Created bool
}

// PutNetwork creates or updates a virtual network in one durable commit. Errors: not-found (resource group), invalid (an
// address space or a subnet that cannot be), conflict (something in use).
func (c *Controller) PutNetwork(ctx context.Context, ref group.Ref, req *arm.NetworkRequest) (NetworkResult, error) {
	return c.changeNetwork(ctx, ref, func(old *vnet.Network, rg ResourceGroup) (*vnet.Network, error) {
		location, err := c.checkLocation(req.Location, arm.NetworkType, rg)
		if err != nil {
			return nil, err
		}
		n := &vnet.Network{Ref: ref, UID: newID(), Location: location, Created: c.cfg.Now().UTC()}
		if old != nil {
			*n = *old
		}
		n.Tags = req.Tags
		if !req.KeepSubnets {
			n.Subnets = req.Subnets
		}
		if len(req.Prefixes) > 0 {
			n.Prefixes = req.Prefixes
		} else if old == nil {
			if n.Prefixes, err = c.freeSpace(); err != nil {
				return nil, err
			}
		}
		return n, nil
	})
}

// TagNetwork changes the tags of a virtual network. Errors: not-found.
func (c *Controller) TagNetwork(ctx context.Context, ref group.Ref, tags map[string]string) (NetworkResult, error) {
	return c.editNetwork(ctx, ref, func(n *vnet.Network) error {
		n.Tags = tags
		return nil
	})
}

// PutSubnet creates or updates a subnet; created says which.
func (c *Controller) PutSubnet(ctx context.Context, ref group.Ref, s *vnet.Subnet) (view arm.NetworkView, created bool, err error) {
	res, err := c.editNetwork(ctx, ref, func(n *vnet.Network) error {
		n.Subnets = slices.Clone(n.Subnets)
		old := n.Subnet(s.Name)
		if created = old == nil; !created {
			kept := *s
			kept.Name = old.Name // the spelling of the first creation stays
			*old = kept
			return nil
		}
		if len(n.Subnets) >= vnet.MaxSubnets {
			return fault.New(fault.Invalid, "SubnetLimitExceeded", "The virtual network '%s' has %d subnets, the most that it can have. Delete some.", n.Ref.Name, len(n.Subnets))
		}
		n.Subnets = append(n.Subnets, *s)
		return nil
	})
	return res.View, created, err
}

// DeleteSubnet removes a subnet. Errors: not-found, conflict when groups have addresses of it.
func (c *Controller) DeleteSubnet(ctx context.Context, ref group.Ref, name string) error {
	_, err := c.editNetwork(ctx, ref, func(n *vnet.Network) error {
		if n.Subnet(name) == nil {
			return missingSubnet(n.Ref, name)
		}
		n.Subnets = slices.DeleteFunc(slices.Clone(n.Subnets), func(s vnet.Subnet) bool { return strings.EqualFold(s.Name, name) })
		return nil
	})
	return err
}

func missingSubnet(ref group.Ref, name string) error {
	return fault.New(fault.NotFound, "NotFound", "Resource %s not found.", arm.SubnetID(ref, name))
}

// editNetwork changes a virtual network that there is.
func (c *Controller) editNetwork(ctx context.Context, ref group.Ref, edit func(*vnet.Network) error) (NetworkResult, error) {
	return c.changeNetwork(ctx, ref, func(old *vnet.Network, _ ResourceGroup) (*vnet.Network, error) {
		if old == nil {
			return nil, c.missing(arm.NetworkType, ref)
		}
		n := *old
		return &n, edit(&n)
	})
}

// changeNetwork lets edit make the successor of a virtual network (nil: there is none yet), checks and writes it. No group
// joins or leaves a virtual network meanwhile.
func (c *Controller) changeNetwork(ctx context.Context, ref group.Ref, edit func(*vnet.Network, ResourceGroup) (*vnet.Network, error)) (NetworkResult, error) {
	c.netting.Lock()
	defer c.netting.Unlock()
	for range maxAttempts {
		rg, err := c.openResourceGroup(ref)
		if err != nil {
			return NetworkResult{}, err
		}
		ref.ResourceGroup, ref.Subscription = rg.Name, rg.Subscription
		var old *vnet.Network
		var revision int64
		if e := c.lookupNetwork(ref); e != nil {
			old, revision = e.network, e.revision
		}
		n, err := edit(old, rg)
		if err != nil {
			return NetworkResult{}, err
		}
		if old != nil && equal(n, old) {
			return NetworkResult{View: c.networkView(old)}, nil
		}
		if err := c.checkNetwork(old, n); err != nil {
			return NetworkResult{}, err
		}
		n.Generation++
		err = c.writeNetwork(ctx, n, revision)
		if err == nil {
			return NetworkResult{View: c.networkView(n), Created: old == nil}, nil
		}
		if !errors.Is(err, store.ErrConflict) {
			return NetworkResult{}, err
		}
		if err := c.refreshNetwork(ctx, ref); err != nil {
			return NetworkResult{}, err
		}
	}
	return NetworkResult{}, fault.New(fault.Conflict, "", "The virtual network '%s' is being changed by others. Try again.", ref.Name)
}

// writeNetwork commits a record and takes it over. revision 0 creates.
func (c *Controller) writeNetwork(ctx context.Context, n *vnet.Network, revision int64) error {
	value, err := encode(n)
	if err != nil {
		return err
	}
	key := networkRecord(n.Ref)
	next, err := c.cfg.Store.Commit(ctx, store.Op{Key: store.ResourceGroupKey(n.Ref.Subscription, n.Ref.ResourceGroup), Kind: store.Check, If: store.Exists},
		store.Op{Key: key, Value: value, If: revision})
	if err != nil {
		return fmt.Errorf("store virtual network %s: %w", n.Ref.Name, err)
	}
	// gofail: var networkStored struct{}
	return c.applyNetwork(store.Change{Entry: store.Entry{Key: key, Value: value, Revision: next}, Revision: next})
}

func networkRecord(ref group.Ref) string {
	return store.NetworkKey(ref.Subscription, ref.ResourceGroup, ref.Name)
}

// DeleteNetwork removes a virtual network. Errors: not-found, conflict when groups have addresses of it.
func (c *Controller) DeleteNetwork(ctx context.Context, ref group.Ref) error {
	c.netting.Lock()
	defer c.netting.Unlock()
	for range maxAttempts {
		e := c.lookupNetwork(ref)
		if e == nil {
			return c.missing(arm.NetworkType, ref)
		}
		v := c.networkView(e.network)
		for i := range v.Network.Subnets {
			s := &v.Network.Subnets[i]
			if users := arm.Users(v, s.Prefix); len(users) > 0 {
				return inUse("InUseSubnetCannotBeDeleted", fmt.Sprintf("Subnet %s", s.Name), users, "be deleted")
			}
		}
		key := networkRecord(e.network.Ref)
		revision, err := c.cfg.Store.Commit(ctx, store.Op{Key: key, Kind: store.Delete, If: e.revision})
		if err == nil {
			return c.bury(key, revision)
		}
		if !errors.Is(err, store.ErrConflict) {
			return fmt.Errorf("remove virtual network %s: %w", ref.Name, err)
		}
		if err := c.refreshNetwork(ctx, ref); err != nil {
			return err
		}
	}
	return fault.New(fault.Conflict, "", "The virtual network '%s' is being changed by others. Try again.", ref.Name)
}

// mostUsers bounds the groups that a message names.
const mostUsers = 10

// inUse refuses a change under groups that have addresses. As Azure does, with status 400.
func inUse(code, what string, users []group.Ref, change string) error {
	var names []string
	for _, ref := range users[:min(len(users), mostUsers)] {
		names = append(names, arm.ID(ref))
	}
	if more := len(users) - mostUsers; more > 0 {
		names = append(names, fmt.Sprintf("and %d more", more))
	}
	return &fault.Error{Kind: fault.Conflict, Status: 400, Code: code, Message: fmt.Sprintf(
		"%s is in use by %s and cannot %s. Delete these container groups first.", what, strings.Join(names, ", "), change)}
}

// Network finds a virtual network. Errors: not-found.
func (c *Controller) Network(ref group.Ref) (arm.NetworkView, error) {
	if e := c.lookupNetwork(ref); e != nil {
		return c.networkView(e.network), nil
	}
	return arm.NetworkView{}, c.missing(arm.NetworkType, ref)
}

// Subnet finds a subnet, with its virtual network. Errors: not-found.
func (c *Controller) Subnet(ref group.Ref, name string) (arm.NetworkView, *vnet.Subnet, error) {
	v, err := c.Network(ref)
	if err != nil {
		return v, nil, err
	}
	if s := v.Network.Subnet(name); s != nil {
		return v, s, nil
	}
	return v, nil, missingSubnet(v.Network.Ref, name)
}

// Networks gives the chosen virtual networks, ordered by resource group and name.
func (c *Controller) Networks(filter Filter) []arm.NetworkView {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return chosen(c.idx.vnets.all, filter, func(e *vnetEntry) group.Ref { return e.network.Ref },
		func(e *vnetEntry) arm.NetworkView { return c.viewOf(e.network) })
}

func (c *Controller) lookupNetwork(ref group.Ref) *vnetEntry {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.idx.vnets.all[arm.Key(ref)]
}

func (c *Controller) networkView(n *vnet.Network) arm.NetworkView {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.viewOf(n)
}

// viewOf adds a network's users, with the lock held.
func (c *Controller) viewOf(n *vnet.Network) arm.NetworkView {
	v := arm.NetworkView{Network: n}
	for a, uid := range c.idx.vnets.used[n.Key()] {
		if e := c.idx.byUID[uid]; e != nil {
			v.Used = append(v.Used, arm.Use{Addr: a, Ref: e.group.Ref})
		}
	}
	slices.SortFunc(v.Used, func(a, b arm.Use) int { return a.Addr.Compare(b.Addr) })
	return v
}

// refreshNetwork reads a virtual network from the store after another writer was faster.
func (c *Controller) refreshNetwork(ctx context.Context, ref group.Ref) error {
	e, err := c.cfg.Store.Get(ctx, networkRecord(ref))
	switch {
	case errors.Is(err, store.ErrNotFound): // the watch tells of it with its revision
		return c.refresh(ctx, ref)
	case err != nil:
		return fmt.Errorf("read virtual network %s: %w", ref.Name, err)
	}
	return c.applyNetwork(store.Change{Entry: e, Revision: e.Revision})
}

// applyNetwork takes over a change of the store; older ones than the known are ignored.
func (c *Controller) applyNetwork(ch store.Change) error {
	key := strings.TrimPrefix(ch.Key, store.Networks)
	var n vnet.Network
	if !ch.Deleted {
		if err := json.Unmarshal(ch.Value, &n); err != nil {
			return fmt.Errorf("read %s: %w", ch.Key, err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.idx.vnets.all[key]
	defer c.tellSpace(&n)
	switch {
	case old != nil && old.revision >= ch.Revision, ch.Revision <= c.idx.followed, c.idx.buried[ch.Key] > ch.Revision:
		return nil
	case old != nil:
		c.idx.vnets.remove(key, old)
	}
	if !ch.Deleted {
		c.idx.vnets.add(key, &vnetEntry{&n, ch.Revision})
	}
	return nil
}
