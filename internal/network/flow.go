package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// flowKey is where a tracked connection of UDP went before it was translated.
type flowKey struct {
	service ServiceKey
	port    uint16
}

// staleFlows are tracked connections of UDP that lead where they should no longer: a client that goes on sending would
// keep them alive for ever. By where they went, the targets that are gone.
type staleFlows map[flowKey]map[target]bool

// note adds what a change leaves behind. Target 0 stands for connections that were not translated: those of a port that
// was not served until now.
func (s staleFlows) note(k ServiceKey, old, want serviceState) {
	for p := range union(old.ports, want.ports) {
		if p.protocol != unix.IPPROTO_UDP {
			continue
		}
		gone := map[target]bool{}
		for _, t := range old.ports[p].buckets {
			gone[t] = true
		}
		if len(old.ports[p].buckets) == 0 {
			gone[0] = true
		}
		if !old.ports[p].open || want.ports[p].open { // else none may go on into the machine
			for _, t := range want.ports[p].buckets {
				delete(gone, t)
			}
		}
		for t := range gone {
			key := flowKey{k, p.number}
			if s[key] == nil {
				s[key] = map[target]bool{}
			}
			s[key][t] = true
		}
	}
}

// staleFilter matches stale connections.
type staleFilter struct {
	flows   staleFlows
	network func(source netip.Addr) uint32
}

// MatchConntrackFlow implements netlink's filter.
func (f staleFilter) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	source, _ := netip.AddrFromSlice(flow.Forward.SrcIP.To4())
	to, _ := netip.AddrFromSlice(flow.Forward.DstIP.To4())
	gone := f.flows[flowKey{ServiceKey{f.network(source), to}, flow.Forward.DstPort}]
	if gone == nil {
		return false
	}
	answers, _ := netip.AddrFromSlice(flow.Reverse.SrcIP.To4())
	if !answers.IsValid() {
		return false
	}
	if answers == to {
		return gone[0]
	}
	return gone[targetOf(netip.AddrPortFrom(answers, flow.Reverse.SrcPort))]
}

// forgetStale removes stale connections, in one walk over all that are tracked.
func (n *Network) forgetStale(flows staleFlows) error {
	if len(flows) == 0 {
		return nil
	}
	return n.forget(staleFilter{flows, func(source netip.Addr) uint32 {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.have.networkOf(source)
	}})
}

// networkOf is the network that an address is a member of, 0 for none.
func (h elements) networkOf(a netip.Addr) uint32 {
	for _, e := range h.member[a] {
		if e.set == setNetOf {
			return binary.NativeEndian.Uint32([]byte(e.value))
		}
	}
	return 0
}

// forgetConnections removes the tracked connections of addresses.
func (n *Network) forgetConnections(addrs []netip.Addr) error {
	if len(addrs) == 0 {
		return nil
	}
	filter := connectionsOf{n.plan, map[netip.Addr]bool{}}
	for _, a := range addrs {
		filter.addrs[a] = true
	}
	return n.forget(filter)
}

func (n *Network) forget(filter netlink.CustomConntrackFilter) error {
	h, err := netlink.NewHandleAt(netns.NsHandle(n.home.Fd()), unix.NETLINK_NETFILTER)
	if err != nil {
		return fmt.Errorf("open connection tracking: %w", err)
	}
	defer h.Close()
	if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, filter); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("forget connections: %w", err)
	}
	return nil
}

// connectionsOf matches the connections of a set of addresses. One outside the groups' range may be others' as well: there the
// connection's mark says whether it is a group's.
type connectionsOf struct {
	plan
	addrs map[netip.Addr]bool
}

// MatchConntrackFlow says whether any end of the connection, before or after translation, is in the set.
func (c connectionsOf) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	for _, ip := range [][]byte{f.Forward.SrcIP, f.Forward.DstIP, f.Reverse.SrcIP, f.Reverse.DstIP} {
		a, _ := netip.AddrFromSlice(ip)
		if a = a.Unmap(); c.addrs[a] && (c.cidr.Contains(a) || c.virtual(f.Mark)) {
			return true
		}
	}
	return false
}
