package agent

import (
	"context"
	"net/netip"
	"slices"
	"sync"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/network"
)

// spaces are the address spaces of the virtual networks that this host's groups are in. The kernel keeps them while no agent
// runs; groups say what they are when they are assigned.
type spaces struct {
	mu   sync.Mutex // held while they are changed: none goes that a group is about to enter
	last []network.Space
}

// enterSpace makes sure, before a group has an address, that its network's address space is the network's own here.
func (a *Agent) enterSpace(ctx context.Context, g *group.Group) error {
	if !a.isOutside(g.Address) {
		return nil
	}
	number := a.networkOf(g)
	if number == 0 || len(g.Space) == 0 {
		return fault.New(fault.Unavailable, "", "The address space of the group's virtual network is not known on this host yet. It tries again.")
	}
	a.spaces.mu.Lock()
	defer a.spaces.mu.Unlock()
	if err := a.cfg.Network.EnterSpace(ctx, network.Space{Network: number, Prefixes: g.Space}); err != nil {
		return err
	}
	a.spaces.last = nil
	a.span.nudge() // names of its addresses
	return nil
}

// syncSpaces removes address spaces of networks that no group here is in any more, and changes those that have changed. What is
// there is left alone until all groups have been named.
func (s *span) syncSpaces(ctx context.Context) error {
	a := s.a
	a.spaces.mu.Lock()
	defer a.spaces.mu.Unlock()
	a.mu.Lock()
	retained := a.retained
	a.mu.Unlock()
	if !retained {
		return nil
	}
	want := a.wantedSpaces()
	if a.spaces.last != nil && slices.EqualFunc(want, a.spaces.last, equalSpaces) {
		return nil
	}
	if err := a.cfg.Network.SyncSpaces(ctx, want); err != nil {
		return err
	}
	if a.spaces.last = want; want == nil {
		a.spaces.last = []network.Space{}
	}
	named := make(map[uint32][]netip.Prefix, len(want))
	for _, w := range want {
		named[w.Network] = w.Prefixes
	}
	a.cfg.Names.SetSpaces(named)
	return nil
}

func equalSpaces(a, b network.Space) bool {
	return a.Network == b.Network && slices.Equal(a.Prefixes, b.Prefixes)
}

// wantedSpaces are those of this host's groups, by number. Of a network that is changing the ranges before and after count.
func (a *Agent) wantedSpaces() []network.Space {
	all := map[uint32][]netip.Prefix{}
	a.mu.Lock()
	for _, w := range a.workers {
		w.mu.Lock()
		g := w.next
		w.mu.Unlock()
		if a.isOutside(g.Address) {
			number := a.networkOf(g)
			all[number] = append(all[number], g.Space...)
		}
	}
	a.mu.Unlock()
	var out []network.Space
	for number, list := range all {
		if list = sortedPrefixes(list); number != 0 && len(list) > 0 {
			out = append(out, network.Space{Network: number, Prefixes: list})
		}
	}
	slices.SortFunc(out, func(a, b network.Space) int { return int(int64(a.Network) - int64(b.Network)) })
	return out
}

// sortedPrefixes are ranges in order, each once.
func sortedPrefixes(list []netip.Prefix) []netip.Prefix {
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}
