package host

import (
	"net/netip"
	"slices"
	"strings"

	"spillway.dev/spillway/internal/group"
)

// Names tells a host what ready groups of other hosts are called, and where those of virtual networks are.
type Names struct {
	Full bool     `json:"full,omitempty"` // groups that are not in Set, or in what follows it, are none
	More bool     `json:"more,omitempty"` // the next one belongs to it
	Set  []Named  `json:"set,omitempty"`
	Gone []string `json:"gone,omitempty"` // uids
}

// Named is a group with its names.
type Named struct {
	UID          string `json:"uid"`
	Subscription string `json:"subscription,omitempty"`
	Network      string `json:"network,omitempty"` // whose groups see names that are not public; "": the host has none of it
	Names        []Name `json:"names"`
	// Home is where the group's address is, when it is one of a virtual network; it has that before it has names.
	Home *Home `json:"home,omitempty"`
}

// Home says on which host an address of a virtual network is.
type Home struct {
	Addr netip.Addr `json:"addr"`
	Host string     `json:"host"`
}

// Name is one name in full, without the final dot.
type Name struct {
	Name   string     `json:"name"`
	Addr   netip.Addr `json:"addr"`
	Public bool       `json:"public,omitempty"` // seen by all; else by groups of the same network
}

// NamesOf are the names of a ready group in a zone: its own at its address, and its DNS label where all see it.
func NamesOf(g *group.Group, zone string, addr, seen netip.Addr) []Name {
	end := "." + strings.ToLower(g.Location) + "." + zone
	out := []Name{{Name: strings.ToLower(g.Ref.Name+"."+g.Ref.ResourceGroup) + end, Addr: addr}}
	if g.Spec.IP != nil && g.Spec.IP.DNSLabel != "" {
		out = append(out, Name{Name: strings.ToLower(g.Spec.IP.DNSLabel) + end, Addr: seen, Public: true})
	}
	return out
}

// Equal says whether two are the same.
func (n *Named) Equal(o *Named) bool {
	if (n.Home == nil) != (o.Home == nil) || n.Home != nil && *n.Home != *o.Home {
		return false
	}
	return n.UID == o.UID && n.Subscription == o.Subscription && n.Network == o.Network && slices.Equal(n.Names, o.Names)
}

// Public is what hosts without groups in the network hear of it; false: nothing.
func (n *Named) Public() (Named, bool) {
	out := Named{UID: n.UID}
	for _, name := range n.Names {
		if name.Public {
			out.Names = append(out.Names, name)
		}
	}
	return out, out.Names != nil
}

// Join adds a later change to one that nobody has read yet.
func (n *Names) Join(later Names) {
	if later.Full {
		*n = later
		return
	}
	joined := Changes[Named]{n.Set, n.Gone}.Join(Changes[Named]{later.Set, later.Gone}, func(s Named) string { return s.UID })
	n.Set, n.Gone, n.More = joined.Set, joined.Gone, later.More
}
