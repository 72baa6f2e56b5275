// Package vnet is the vocabulary of virtual networks and their subnets: who is in which, and what an address of one may be.
//
// It imports only the standard library and group, and does no IO. Start reading at Network.
package vnet

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"time"

	"spillway.dev/spillway/internal/group"
)

// Network is a virtual network. The API is its only writer.
type Network struct {
	Ref        group.Ref         `json:"ref"`
	UID        string            `json:"uid"`        // one per creation
	Generation int64             `json:"generation"` // grows with each write
	Location   string            `json:"location"`
	Tags       map[string]string `json:"tags,omitempty"`
	Created    time.Time         `json:"created"`
	Prefixes   []netip.Prefix    `json:"prefixes"` // its address space
	Subnets    []Subnet          `json:"subnets,omitempty"`
}

// Subnet is a part of a network's address space, out of which groups get their addresses.
type Subnet struct {
	Name        string       `json:"name"`
	Prefix      netip.Prefix `json:"prefix"`
	AsList      bool         `json:"asList,omitempty"` // its prefix was given as a list of one
	Delegations []Delegation `json:"delegations,omitempty"`
	// What is said of private endpoints, of which there are none: kept and shown.
	EndpointPolicies string `json:"endpointPolicies,omitempty"`
	ServicePolicies  string `json:"servicePolicies,omitempty"`
}

// Delegation says for which service a subnet is.
type Delegation struct {
	Name    string `json:"name"`
	Service string `json:"service"`
}

// Limits.
const (
	MaxPerSubscription = 1000 // as in Azure
	MaxSubnets         = 3000 // of a network, as in Azure
	MaxPrefixes        = 64   // of a network: each is compared with those of all networks
)

// Reserved is how many addresses of a subnet no group gets: the first four and the last, as in Azure.
const Reserved = 5

// MostBits is the smallest subnet, as bits of its prefix: it has three addresses for groups. Azure's.
const MostBits = 29

// Key is the name of the network among those of its subscription. No name that callers choose holds a colon.
func (n *Network) Key() string { return "vnet:" + n.UID }

// Subnet finds a subnet by its name, in any case; nil when there is none.
func (n *Network) Subnet(name string) *Subnet {
	for i := range n.Subnets {
		if strings.EqualFold(n.Subnets[i].Name, name) {
			return &n.Subnets[i]
		}
	}
	return nil
}

// Within says whether a prefix lies in the address space.
func (n *Network) Within(p netip.Prefix) bool {
	for _, space := range n.Prefixes {
		if Inside(p, space) {
			return true
		}
	}
	return false
}

// Inside says whether a prefix is a part of another, or the same.
func Inside(p, outer netip.Prefix) bool { return outer.Bits() <= p.Bits() && outer.Contains(p.Addr()) }

// Size is how many addresses of a subnet groups can have.
func Size(p netip.Prefix) int { return 1<<(32-p.Bits()) - Reserved }

// Usable says whether a group can have an address of a subnet.
func Usable(p netip.Prefix, a netip.Addr) bool {
	if !p.Contains(a) {
		return false
	}
	n := offset(p, a)
	return n >= Reserved-1 && n < 1<<(32-p.Bits())-1
}

// At is the n-th address of a subnet that a group can have, from 0 on.
func At(p netip.Prefix, n int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], number(p.Masked().Addr())+uint32(n)+Reserved-1)
	return netip.AddrFrom4(b)
}

// Index is the place of an address among those that groups can have, the opposite of At.
func Index(p netip.Prefix, a netip.Addr) int { return int(offset(p, a)) - (Reserved - 1) }

func offset(p netip.Prefix, a netip.Addr) uint32 { return number(a) - number(p.Masked().Addr()) }

func number(a netip.Addr) uint32 { return binary.BigEndian.Uint32(a.AsSlice()) }

// Overlapping finds the first two prefixes of a list that overlap.
func Overlapping(list []netip.Prefix) (a, b int, found bool) {
	for j := range list {
		for i := range j {
			if list[i].Overlaps(list[j]) {
				return i, j, true
			}
		}
	}
	return 0, 0, false
}

// private are the ranges that address spaces are in: those of RFC 1918, and that of RFC 6598.
var private = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("100.64.0.0/10")}

// Private says whether a range is one that address spaces can be of.
func Private(p netip.Prefix) bool {
	for _, r := range private {
		if Inside(p, r) {
			return true
		}
	}
	return false
}

// FreeSpace finds a private range of so many bits that overlaps none of those that are used.
func FreeSpace(bits int, used []netip.Prefix) (netip.Prefix, bool) {
	for _, r := range private {
		if p, ok := Free(r, bits, used); ok {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// Without is a range less others, as parts of it that are as large as they can be, in order.
func Without(p netip.Prefix, others []netip.Prefix) []netip.Prefix {
	p = p.Masked()
	inside := false
	for _, o := range others {
		if Inside(p, o) {
			return nil
		}
		inside = inside || o.Overlaps(p)
	}
	if !inside {
		return []netip.Prefix{p}
	}
	var upper [4]byte
	binary.BigEndian.PutUint32(upper[:], number(p.Addr())|1<<(31-p.Bits()))
	lower := netip.PrefixFrom(p.Addr(), p.Bits()+1)
	return append(Without(lower, others), Without(netip.PrefixFrom(netip.AddrFrom4(upper), p.Bits()+1), others)...)
}

// Free finds the first part of a range, of so many bits, that overlaps none of those that are used.
func Free(within netip.Prefix, bits int, used []netip.Prefix) (netip.Prefix, bool) {
	if bits < within.Bits() || bits > 32 {
		return netip.Prefix{}, false
	}
	base, step := number(within.Addr()), uint64(1)<<(32-bits)
next:
	for at, end := uint64(0), uint64(1)<<(32-within.Bits()); at < end; at += step {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], base+uint32(at))
		p := netip.PrefixFrom(netip.AddrFrom4(b), bits)
		for _, u := range used {
			if u.Overlaps(p) {
				continue next
			}
		}
		return p, true
	}
	return netip.Prefix{}, false
}
