package controller

import (
	"net/netip"
	"slices"
	"strings"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/vnet"
)

// checkNetwork says whether a virtual network can be as it shall; old is nil when it is new.
func (c *Controller) checkNetwork(old, n *vnet.Network) error {
	if old == nil {
		c.mu.RLock()
		count := c.idx.vnets.count[strings.ToLower(n.Ref.Subscription)]
		c.mu.RUnlock()
		if count >= vnet.MaxPerSubscription {
			return fault.New(fault.Exhausted, "", "The subscription has %d virtual networks, the most that it can have. Delete some.", count)
		}
	}
	if old == nil || !equal(old.Prefixes, n.Prefixes) {
		if err := c.checkSpace(old, n); err != nil {
			return err
		}
	}
	if err := checkSubnets(n); err != nil || old == nil {
		return err
	}
	return c.checkUsers(old, n)
}

// checkSpace says whether a virtual network can have its address space. The caller holds netting, so that no two get the
// same.
func (c *Controller) checkSpace(old, n *vnet.Network) error {
	const field = "properties.addressSpace.addressPrefixes"
	refuse := func(code, format string, args ...any) error {
		e := fault.New(fault.Invalid, code, format, args...)
		e.Target = field
		return e
	}
	if len(n.Prefixes) == 0 {
		return refuse("", "The field '%s' must name at least one range.", field)
	}
	if a, b, found := vnet.Overlapping(n.Prefixes); found {
		return refuse("AddressPrefixesOverlap", "The ranges %s and %s of virtual network '%s' overlap.", n.Prefixes[a], n.Prefixes[b], n.Ref.Name)
	}
	if err := c.checkPlaces(old, n, refuse); err != nil {
		return err
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, p := range n.Prefixes {
		if other, q := c.spaceOver(p, n.UID); other != nil {
			whose := "another virtual network"
			if strings.EqualFold(other.Ref.Subscription, n.Ref.Subscription) {
				whose = "virtual network " + arm.NetworkID(other.Ref)
			}
			return refuse("AddressSpaceInUse", "The range %s of virtual network '%s' overlaps %s of %s. On this platform address spaces are apart. Choose another, or leave the field 'properties.addressSpace' out to get a free one.", p, n.Ref.Name, q, whose)
		}
	}
	return nil
}

// spaceOver finds a virtual network other than the given one whose address space overlaps a range, with the lock held.
func (c *Controller) spaceOver(p netip.Prefix, except string) (*vnet.Network, netip.Prefix) {
	for _, e := range c.idx.vnets.all {
		for _, q := range e.network.Prefixes {
			if e.network.UID != except && q.Overlaps(p) {
				return e.network, q
			}
		}
	}
	return nil, netip.Prefix{}
}

// spaceBits is the size of an address space that nobody has chosen, as bits of its prefix. Azure's clients choose the same.
const spaceBits = 16

// freeSpace finds an address space for a virtual network that names none.
func (c *Controller) freeSpace() ([]netip.Prefix, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	used := append(slices.Clone(c.cfg.Reserved), c.cfg.Services)
	for _, e := range c.idx.vnets.all {
		used = append(used, e.network.Prefixes...)
	}
	for _, h := range c.everyHost() {
		used = append(used, h.Addresses...) // with their networks, so that what is near the hosts can be reached from groups
	}
	used = slices.DeleteFunc(used, func(p netip.Prefix) bool { return !p.IsValid() })
	for bits := spaceBits; bits <= vnet.MostBits; bits++ {
		if p, ok := vnet.FreeSpace(bits, used); ok {
			return []netip.Prefix{p}, nil
		}
	}
	return nil, fault.New(fault.Exhausted, "AddressSpaceNotAvailable", "All private ranges are in use. Delete virtual networks.")
}

// checkSubnets says whether the subnets of a virtual network are apart and in its address space.
func checkSubnets(n *vnet.Network) error {
	var ranges []netip.Prefix
	for _, s := range n.Subnets {
		if !n.Within(s.Prefix) {
			return fault.New(fault.Invalid, "NetcfgInvalidSubnet",
				"Subnet '%s' is not valid because its IP address range %s is outside the IP address range %s of virtual network '%s'.", s.Name, s.Prefix, list(n.Prefixes), n.Ref.Name)
		}
		ranges = append(ranges, s.Prefix)
	}
	if a, b, found := vnet.Overlapping(ranges); found {
		return fault.New(fault.Invalid, "NetcfgSubnetRangesOverlap",
			"Subnet '%s' is not valid because its IP address range %s overlaps with %s, that of subnet '%s' in virtual network '%s'.",
			n.Subnets[b].Name, ranges[b], ranges[a], n.Subnets[a].Name, n.Ref.Name)
	}
	return nil
}

func list(prefixes []netip.Prefix) string {
	var out []string
	for _, p := range prefixes {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}

// checkUsers refuses what takes addresses away from groups.
func (c *Controller) checkUsers(old, n *vnet.Network) error {
	v := c.networkView(old)
	for i := range old.Subnets {
		was := &old.Subnets[i]
		now := n.Subnet(was.Name)
		if now != nil && now.Prefix == was.Prefix {
			continue
		}
		users := arm.Users(v, was.Prefix)
		switch {
		case len(users) == 0:
		case now == nil:
			return inUse("InUseSubnetCannotBeDeleted", "Subnet "+was.Name, users, "be deleted")
		default:
			return inUse("InUsePrefixCannotBeDeleted", "The range "+was.Prefix.String()+" of subnet "+was.Name, users, "become "+now.Prefix.String())
		}
	}
	return nil
}
