package host

import (
	"fmt"
	"net/netip"
	"slices"
)

// Overlay tells a host of the network that spans hosts: what it has of it, and who else takes part. What it does not
// change stays.
type Overlay struct {
	Version  int64          `json:"version"`           // grows; the host says in Host.Overlay which it has carried out
	Full     bool           `json:"full,omitempty"`    // peers that are not in Set are none
	Underlay netip.Addr     `json:"underlay,omitzero"` // where others reach this host; invalid: it takes no part
	Blocks   []netip.Prefix `json:"blocks,omitempty"`  // address blocks of this host
	Set      []Peer         `json:"set,omitempty"`     //
	Gone     []string       `json:"gone,omitempty"`    // names of peers to which nothing goes any more, and from which nothing comes
}

// Peer is another host that takes part.
type Peer struct {
	Name     string         `json:"name"`
	Underlay netip.Addr     `json:"underlay"`
	Blocks   []netip.Prefix `json:"blocks"`
}

// Equal says whether two peers are the same.
func (p Peer) Equal(o Peer) bool {
	return p.Name == o.Name && p.Underlay == o.Underlay && slices.Equal(p.Blocks, o.Blocks)
}

// Join adds a later change to one that nobody has read yet.
func (o *Overlay) Join(later Overlay) {
	if later.Full {
		*o = later
		return
	}
	o.Version, o.Underlay, o.Blocks = later.Version, later.Underlay, later.Blocks
	joined := Changes[Peer]{o.Set, o.Gone}.Join(Changes[Peer]{later.Set, later.Gone}, func(p Peer) string { return p.Name })
	o.Set, o.Gone = joined.Set, joined.Gone
}

// Changes are things that are set, and names of others that are gone.
type Changes[T any] struct {
	Set  []T
	Gone []string
}

// Join gives these changes with later ones: of each thing, which key names, the later word counts. The lists that it is
// given stay as they are.
func (c Changes[T]) Join(later Changes[T], key func(T) string) Changes[T] {
	changed := map[string]bool{}
	for _, v := range later.Set {
		changed[key(v)] = true
	}
	for _, name := range later.Gone {
		changed[name] = true
	}
	set := slices.DeleteFunc(slices.Clone(c.Set), func(v T) bool { return changed[key(v)] })
	gone := slices.DeleteFunc(slices.Clone(c.Gone), func(name string) bool { return changed[name] })
	return Changes[T]{append(set, later.Set...), append(gone, later.Gone...)}
}

// BlockBits is the size of the address blocks that a range is given out in, as the bits of a prefix: at most 256
// addresses, at least 16, and where there is a choice 64 blocks.
func BlockBits(cidr netip.Prefix) int { return min(max(cidr.Bits()+6, 24), 28) }

// CheckRange says whether a range can be given out in blocks.
func CheckRange(cidr netip.Prefix) error {
	if !cidr.Addr().Is4() || cidr != cidr.Masked() || cidr.Bits() > 24 || cidr.Bits() < 8 {
		return fmt.Errorf("the range %s must be IPv4, from /8 to /24, with no host bits set", cidr)
	}
	return nil
}
