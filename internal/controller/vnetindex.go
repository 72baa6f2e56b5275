package controller

import (
	"net/netip"
	"strings"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/vnet"
)

// vnetEntry is a virtual network in memory. What it points to is never changed, only replaced.
type vnetEntry struct {
	network  *vnet.Network
	revision int64
}

// vnetIndex is all that the controller knows of virtual networks and of their groups' addresses. The controller's lock
// guards it.
type vnetIndex struct {
	all     map[string]*vnetEntry // by arm.Key
	count   map[string]int        // by subscription
	inGroup map[string]int        // by resource group
	byKey   map[string]*vnet.Network
	used    map[string]map[netip.Addr]string
	claimed map[string]map[netip.Addr]string // of records that are being written
	cursor  map[string]int                   // by network and subnet: where the search for a free address goes on
}

func newVnetIndex() *vnetIndex {
	return &vnetIndex{all: map[string]*vnetEntry{}, count: map[string]int{}, inGroup: map[string]int{}, byKey: map[string]*vnet.Network{}, cursor: map[string]int{},
		used: map[string]map[netip.Addr]string{}, claimed: map[string]map[netip.Addr]string{}}
}

func (x *vnetIndex) add(key string, e *vnetEntry) {
	x.all[key], x.byKey[e.network.Key()] = e, e.network
	x.count[strings.ToLower(e.network.Ref.Subscription)]++
	x.inGroup[rgKey(e.network.Ref.Subscription, e.network.Ref.ResourceGroup)]++
}

func (x *vnetIndex) remove(key string, e *vnetEntry) {
	delete(x.all, key)
	delete(x.byKey, e.network.Key())
	x.count[strings.ToLower(e.network.Ref.Subscription)]--
	if scope := rgKey(e.network.Ref.Subscription, e.network.Ref.ResourceGroup); x.inGroup[scope] == 1 {
		delete(x.inGroup, scope)
	} else {
		x.inGroup[scope]--
	}
}

// follow notes which address a group has after a change of its record; nil: there is no record.
func (x *vnetIndex) follow(old, now *group.Group) {
	if old != nil && old.Address.IsValid() && x.used[old.Spec.Network][old.Address] == old.UID {
		clearAt(x.used, old.Spec.Network, old.Address)
	}
	if now != nil && now.Address.IsValid() {
		setAt(x.used, now.Spec.Network, now.Address, now.UID)
	}
}

// claim takes an address for a record that is about to be written. It gives the uid of the group that has it, if any.
func (x *vnetIndex) claim(network string, a netip.Addr, uid string) (other string, ok bool) {
	if other = x.used[network][a]; other == "" {
		other = x.claimed[network][a]
	}
	if other != "" {
		return other, false
	}
	setAt(x.claimed, network, a, uid)
	return "", true
}

// next finds the first free address of a subnet behind the one that was found last: an address that was given up comes
// late, when nobody remembers whose it was.
func (x *vnetIndex) next(n *vnet.Network, s *vnet.Subnet, uid string) (netip.Addr, bool) {
	key, network := n.Key()+"/"+strings.ToLower(s.Name), n.Key()
	size := vnet.Size(s.Prefix)
	for range size {
		at := x.cursor[key] % size
		x.cursor[key] = at + 1
		if a := vnet.At(s.Prefix, at); x.claimFree(network, a, uid) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func (x *vnetIndex) claimFree(network string, a netip.Addr, uid string) bool {
	_, ok := x.claim(network, a, uid)
	return ok
}

// unclaim ends a claim: the record in memory says who has the address, or nobody has.
func (x *vnetIndex) unclaim(network string, a netip.Addr) { clearAt(x.claimed, network, a) }

func setAt(m map[string]map[netip.Addr]string, network string, a netip.Addr, uid string) {
	if m[network] == nil {
		m[network] = map[netip.Addr]string{}
	}
	m[network][a] = uid
}

func clearAt(m map[string]map[netip.Addr]string, network string, a netip.Addr) {
	if delete(m[network], a); len(m[network]) == 0 {
		delete(m, network)
	}
}
