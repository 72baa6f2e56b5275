package agent

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"spillway.dev/spillway/internal/dns"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/network"
)

// elsewhere is the prefix of the owners of names, in the DNS table, of groups on other hosts. Groups' uids hold no slash.
const elsewhere = "elsewhere/"

// home is where an address of a virtual network is, in a network of this host.
type home struct {
	network uint32
	host.Home
}

// Name implements host.Link. What is not told again stays: a host that is cut off goes on to answer.
func (a *Agent) Name(u host.Names) {
	a.naming.Lock()
	defer a.naming.Unlock()
	if u.Full {
		a.stale = maps.Clone(a.named)
	}
	gone := map[string]bool{}
	for _, uid := range u.Gone {
		gone[uid] = true
	}
	for _, n := range u.Set {
		delete(a.stale, n.UID)
		a.named[n.UID] = true
		o := dns.Owner{}
		if n.Network != "" {
			at := netip.Addr{}
			if n.Home != nil {
				at = n.Home.Addr
			}
			o.Network = a.numberOf(n.Subscription, n.Network, at)
		}
		if moved := a.setHome(n.UID, o.Network, n.Home); moved {
			defer a.span.nudge()
		}
		o.Names = dnsNames(n.Names)
		a.cfg.Names.Set(elsewhere+n.UID, o)
	}
	if !u.More { // all that a full message leaves out, too
		maps.Copy(gone, a.stale)
		a.stale = nil
	}
	for uid := range gone {
		delete(a.named, uid)
		if a.setHome(uid, 0, nil) {
			defer a.span.nudge()
		}
		a.cfg.Names.Remove(elsewhere + uid)
	}
}

// setHome notes where a group's address is, and says whether that has changed; naming is held.
func (a *Agent) setHome(uid string, network uint32, at *host.Home) bool {
	old, had := a.homes[uid]
	if at == nil || network == 0 {
		delete(a.homes, uid)
		return had
	}
	a.homes[uid] = home{network, *at}
	return a.homes[uid] != old
}

// homesOf are the addresses of virtual networks that are on the peers of a wish, in networks of this host.
func (a *Agent) homesOf(wish host.Overlay, networks []network.OverlayNetwork) []network.Home {
	underlay, carried := map[string]netip.Addr{}, map[uint32]bool{}
	for _, p := range wish.Set {
		if p.Underlay != wish.Underlay {
			underlay[p.Name] = p.Underlay
		}
	}
	for _, n := range networks {
		carried[n.Number] = true
	}
	a.naming.Lock()
	defer a.naming.Unlock()
	var out []network.Home
	for _, h := range a.homes {
		if peer, ok := underlay[h.Host]; ok && carried[h.network] {
			out = append(out, network.Home{Network: h.network, Addr: h.Addr, Peer: peer})
		}
	}
	slices.SortFunc(out, func(a, b network.Home) int {
		return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Network, b.Network), a.Peer.Compare(b.Peer))
	})
	// One that has changed hands may be told of twice for a moment: the wish has to make sense all the same.
	return slices.CompactFunc(out, func(a, b network.Home) bool { return a.Addr == b.Addr })
}

func dnsNames(names []host.Name) []dns.Name {
	out := make([]dns.Name, len(names))
	for i, n := range names {
		out[i] = dns.Name{Name: n.Name, Addr: n.Addr, Public: n.Public}
	}
	return out
}
