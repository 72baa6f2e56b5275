package controller

import (
	"net/netip"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/vnet"
)

// This file is about where address spaces are: anywhere that is private, and apart from what the platform and its hosts have
// themselves.

// checkPlaces says whether a virtual network's ranges can be where they are. Those that a network has stay good.
func (c *Controller) checkPlaces(old, n *vnet.Network, refuse func(code, format string, args ...any) error) error {
	const elsewhere = "Choose another, or leave the field 'properties.addressSpace' out to get a free one."
	before := map[netip.Prefix]bool{}
	if old != nil {
		for _, p := range old.Prefixes {
			before[p] = true
		}
	}
	within, fresh := netip.Prefix{}, netip.Prefix{}
	for _, p := range n.Prefixes {
		if before[p] && c.inRange(p) {
			within = p
			continue
		}
		fresh = p
		if !vnet.Private(p) {
			return refuse("AddressSpaceNotAvailable", "The range %s of virtual network '%s' is not private: address spaces are in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10. "+elsewhere, p, n.Ref.Name)
		}
		for _, r := range c.cfg.Reserved {
			if r.Overlaps(p) {
				return refuse("AddressSpaceInUse", "The range %s of virtual network '%s' overlaps %s, the range of the addresses of groups that are in no subnet. "+elsewhere, p, n.Ref.Name, r)
			}
		}
		if r := c.cfg.Services; r.IsValid() && r.Overlaps(p) {
			return refuse("AddressSpaceInUse", "The range %s of virtual network '%s' overlaps %s, the range of service addresses. "+elsewhere, p, n.Ref.Name, r)
		}
		if name, at := c.hostIn(p); at.IsValid() {
			return refuse("AddressSpaceInUse", "The range %s of virtual network '%s' holds %s, which the host %s has itself. "+elsewhere, p, n.Ref.Name, at, name)
		}
	}
	if within.IsValid() && fresh.IsValid() {
		return refuse("AddressSpaceNotAvailable", "The virtual network '%s' has %s, a part of the range of the platform's groups, from an earlier version; it cannot have %s, outside of that, as well. Make another virtual network for it.", n.Ref.Name, within, fresh)
	}
	return nil
}

// inRange says whether a range is a part of that of the platform's groups, as those of networks of an earlier version are.
func (c *Controller) inRange(p netip.Prefix) bool {
	for _, r := range c.cfg.Reserved {
		if vnet.Inside(p, r) {
			return true
		}
	}
	return false
}

// Apart are the parts of the groups' range that virtual networks have from an earlier version.
func (c *Controller) Apart() []netip.Prefix {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.apart()
}

func (c *Controller) apart() (out []netip.Prefix) {
	for _, e := range c.idx.vnets.all {
		for _, p := range e.network.Prefixes {
			if c.inRange(p) {
				out = append(out, p)
			}
		}
	}
	return out
}

// everyHost are the hosts as they are or were last, with the lock held.
func (c *Controller) everyHost() []host.Host {
	var out []host.Host
	for name := range c.links {
		out = append(out, c.describe(name))
	}
	for name := range c.idx.hosts {
		if h, ok := c.known(name); ok && c.links[name] == nil {
			out = append(out, h)
		}
	}
	return out
}

// hostIn finds an address or a range of a host itself in an address space: what goes there goes to the host.
func (c *Controller) hostIn(p netip.Prefix) (name string, at netip.Prefix) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, h := range c.everyHost() {
		if p.Contains(h.Underlay) {
			return h.Name, single(h.Underlay)
		}
		for _, a := range h.Addresses {
			if a == a.Masked() && a.Overlaps(p) {
				return h.Name, a
			}
			if p.Contains(a.Addr()) {
				return h.Name, single(a.Addr())
			}
		}
	}
	return "", netip.Prefix{}
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// forHost is a group as its host is told of it, with the address space of its virtual network; the lock is held.
func (c *Controller) forHost(g *group.Group) *group.Group {
	if !g.Address.IsValid() {
		return g
	}
	n := c.idx.vnets.byKey[g.Spec.Network]
	if n == nil {
		return g
	}
	told := *g
	told.Space = n.Prefixes
	return &told
}

// tellSpace tells the hosts of a virtual network's groups what its address space is now; the lock is held.
func (c *Controller) tellSpace(n *vnet.Network) {
	if c.feed == nil { // loading
		return
	}
	for _, uid := range c.idx.vnets.used[n.Key()] {
		if e := c.idx.byUID[uid]; e != nil && c.links[e.group.Host] != nil {
			c.links[e.group.Host].Assign(c.forHost(e.group))
		}
	}
}
