package controller

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/vnet"
)

// enterSubnet gives a group that is about to be written its network and its address in there: the ones that it has, or a
// claim of new ones. old is nil for a new group. The operations belong into the commit, and leave has to be called after
// it: until then the subnet stays as it is. Errors: not-found, invalid, conflict (an address in use), exhausted.
func (c *Controller) enterSubnet(old, g *group.Group) (ops []store.Op, leave func(), err error) {
	if g.Spec.Subnet == nil { // nobody's change of a virtual network holds it up
		g.Address = netip.Addr{}
		return addressOps(old, g), func() {}, nil
	}
	c.netting.RLock()
	leave = c.netting.RUnlock
	defer func() {
		if err != nil {
			leave()
			leave = func() {}
		}
	}()
	want := g.Spec.Subnet
	g.Address = netip.Addr{}
	asked, err := requested(&g.Spec)
	if err != nil {
		return nil, leave, err
	}
	if old != nil && old.Address.IsValid() && want.Equal(old.Spec.Subnet) && (!asked.IsValid() || asked == old.Address) {
		kept := *old.Spec.Subnet
		kept.Label = want.Label
		g.Spec.Subnet, g.Spec.Network, g.Address = &kept, old.Spec.Network, old.Address
		return nil, leave, nil
	}
	e, s, err := c.openSubnet(g)
	if err != nil {
		return nil, leave, err
	}
	n := e.network
	c.mu.Lock()
	g.Address, err = c.claimAddress(n, s, asked, g.UID)
	c.mu.Unlock()
	if err != nil {
		return nil, leave, err
	}
	g.Spec.Network = n.Key()
	g.Spec.Subnet = &group.Subnet{Network: n.Ref, Name: s.Name, Label: want.Label}
	address := g.Address
	leave = func() {
		c.mu.Lock()
		c.idx.vnets.unclaim(n.Key(), address)
		c.mu.Unlock()
		c.netting.RUnlock()
	}
	ops = append(addressOps(old, g), store.Op{Key: networkRecord(n.Ref), Kind: store.Check, If: e.revision})
	return ops, leave, nil
}

// requested is the address that a group asks for; invalid: any.
func requested(s *group.Spec) (netip.Addr, error) {
	if s.IP == nil || s.IP.Requested == "" {
		return netip.Addr{}, nil
	}
	a, err := netip.ParseAddr(s.IP.Requested)
	if err != nil || !a.Is4() {
		return a, badAddress("The address '%s' is not an IPv4 address.", s.IP.Requested)
	}
	return a, nil
}

func badAddress(format string, args ...any) error {
	return &fault.Error{Kind: fault.Invalid, Code: "PrivateIPAddressNotInSubnet", Target: "properties.ipAddress.ip", Message: fmt.Sprintf(format, args...)}
}

// openSubnet finds the subnet that a group asks for. One of another subscription is none: its groups are no neighbours.
func (c *Controller) openSubnet(g *group.Group) (*vnetEntry, *vnet.Subnet, error) {
	want := g.Spec.Subnet
	if strings.EqualFold(want.Network.Subscription, g.Ref.Subscription) {
		if e := c.lookupNetwork(want.Network); e != nil {
			if _, err := c.openResourceGroup(e.network.Ref); err != nil {
				return nil, nil, err
			}
			if s := e.network.Subnet(want.Name); s != nil {
				return e, s, nil
			}
		}
	}
	return nil, nil, &fault.Error{Kind: fault.Invalid, Code: "InvalidResourceReference", Target: "properties.subnetIds[0].id", Message: fmt.Sprintf(
		"Resource %s referenced by resource %s was not found. Please make sure that the referenced resource exists, and that both resources are in the same subscription and region.",
		arm.SubnetID(want.Network, want.Name), arm.ID(g.Ref))}
}

// claimAddress takes an address of a subnet for a group, with the lock held.
func (c *Controller) claimAddress(n *vnet.Network, s *vnet.Subnet, asked netip.Addr, uid string) (netip.Addr, error) {
	if !asked.IsValid() {
		if a, ok := c.idx.vnets.next(n, s, uid); ok {
			return a, nil
		}
		return asked, &fault.Error{Kind: fault.Conflict, Status: 400, Code: "SubnetIsFull", Target: "properties.subnetIds[0].id", Message: fmt.Sprintf(
			"Subnet %s with address prefix %s does not have enough capacity for 1 IP addresses: all of its %d are in use, and %d are reserved. Delete container groups of it, or use another subnet.",
			s.Name, s.Prefix, vnet.Size(s.Prefix), vnet.Reserved)}
	}
	if !s.Prefix.Contains(asked) {
		return asked, badAddress("The address '%s' is not in %s, the range of subnet '%s'.", asked, s.Prefix, s.Name)
	}
	if !vnet.Usable(s.Prefix, asked) {
		return asked, badAddress("The address '%s' is reserved: no container group gets the first four addresses and the last one of %s, the range of subnet '%s'.", asked, s.Prefix, s.Name)
	}
	other, ok := c.idx.vnets.claim(n.Key(), asked, uid)
	if ok {
		return asked, nil
	}
	whose := "a container group that is being written"
	if e := c.idx.byUID[other]; e != nil {
		whose = arm.ID(e.group.Ref)
	}
	return asked, &fault.Error{Kind: fault.Conflict, Status: 400, Code: "PrivateIPAddressInUse", Target: "properties.ipAddress.ip", Message: fmt.Sprintf(
		"IP configuration of %s is using the private IP address %s which is already allocated to another resource. Choose another, or leave the field out.", whose, asked)}
}

// subnetKey makes the address of a group unique; "" when it has none of a subnet.
func subnetKey(g *group.Group) string {
	if g == nil || !g.Address.IsValid() {
		return ""
	}
	return store.SubnetIPKey(strings.TrimPrefix(g.Spec.Network, "vnet:"), g.Address.String())
}

// addressOps claim and give up addresses in the commit that writes a group. The new group's network must be set.
func addressOps(old, g *group.Group) []store.Op {
	before, after := subnetKey(old), subnetKey(g)
	if before == after {
		return nil
	}
	var ops []store.Op
	if after != "" {
		ops = append(ops, store.Op{Key: after, Value: []byte(g.UID), If: store.Absent})
	}
	if before != "" {
		ops = append(ops, store.Op{Key: before, Kind: store.Delete, If: store.Any})
	}
	return ops
}

// CheckAddress says whether an address of a virtual network is free, and if not, which others are. Errors: not-found.
func (c *Controller) CheckAddress(ref group.Ref, a netip.Addr) (free bool, others []netip.Addr, err error) {
	v, err := c.Network(ref)
	if err != nil {
		return false, nil, err
	}
	const most = 5 // as Azure
	for i := range v.Network.Subnets {
		p := v.Network.Subnets[i].Prefix
		if !vnet.Usable(p, a) {
			continue
		}
		if _, taken := arm.User(v, a); !taken {
			return true, nil, nil
		}
		for n := 0; n < vnet.Size(p) && len(others) < most; n++ {
			if _, taken := arm.User(v, vnet.At(p, n)); !taken {
				others = append(others, vnet.At(p, n))
			}
		}
	}
	return false, others, nil
}

// leaveNetworks removes the virtual networks of a resource group that is being deleted and has no groups any more.
func (c *Controller) leaveNetworks(ctx context.Context, subscription, name string) error {
	for _, v := range c.Networks(Filter{Subscription: subscription, ResourceGroup: name}) {
		if err := c.DeleteNetwork(ctx, v.Network.Ref); err != nil && fault.KindOf(err) != fault.NotFound {
			return err
		}
	}
	return nil
}
