package network

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/network/overlay"
)

// This file is about virtual networks with addresses outside the groups' range: any private ones, which the machine and its
// surroundings may have as well. So such an address means nothing in the machine's main table. Each network has a table, with
// its own number, and its groups' packets have the network's number as their mark, which leads there:
//
//	20795  from the gateway's address: to the table of the instance, which holds the groups of virtual networks here
//	20796  with mark N: to the table N
//	       table N: groups here; those on other hosts, by the device of the network; the rest of its address space: nowhere
//
// What is in neither goes on as anybody's packets do. What comes back to a group from elsewhere is known by its connection,
// which has the network's number too (rules, recall).

// Priorities of the rules about routes, before those of an overlay.
const (
	priorityHere  = 20_795
	prioritySpace = 20_796
)

// Metrics in a network's table: what is on this host has none, and so comes first.
const (
	metricElsewhere = 1
	metricNowhere   = 2
)

// ownTables is where the numbers of platforms' routing tables begin.
const ownTables = 1 << 31

// Space is a virtual network with addresses outside the groups' range, and its address space.
type Space struct {
	Network  uint32 // as Virtual gives it
	Prefixes []netip.Prefix
}

// MaxVirtual is how many virtual networks with addresses outside the groups' range an instance can have.
const MaxVirtual = overlay.MaxVirtual

// VirtualNetwork is the number of the i-th of them, from 1 to MaxVirtual.
func VirtualNetwork(instance string, i uint32) uint32 { return overlay.VirtualBase(instance) | i }

func (p plan) base() uint32 { return overlay.VirtualBase(p.instance) }

// virtual says whether a number is that of one of this instance's virtual networks.
func (p plan) virtual(number uint32) bool {
	return number&overlay.VirtualMask == p.base() && number != p.base() && number != Machine
}

// place says whether an address can be a group's, of a virtual network or of none.
func (p plan) place(a netip.Addr, network uint32) bool {
	if network == 0 {
		return p.cidr.Contains(a) && a != p.gateway
	}
	return p.virtual(network) && a.Is4() && !p.cidr.Contains(a)
}

// EnterSpace makes a virtual network's address space its own, before its first group is there: what groups of it send to an
// address that none of them has goes nowhere. Doing it again changes nothing. Errors: invalid.
func (n *Network) EnterSpace(ctx context.Context, s Space) error {
	n.spaceMu.Lock()
	defer n.spaceMu.Unlock()
	if known, ok := n.spaces[s.Network]; ok && slices.Equal(known, s.Prefixes) {
		return nil
	}
	if err := n.setSpaces(ctx, []Space{s}, func(network uint32) bool { return network == s.Network }); err != nil {
		return fmt.Errorf("enter the address space %v of network %d: %w", s.Prefixes, s.Network, err)
	}
	return nil
}

// SyncSpaces makes the virtual networks of this host those that are given: what others have left goes. What is right is not
// touched. Errors: invalid.
func (n *Network) SyncSpaces(ctx context.Context, want []Space) error {
	n.spaceMu.Lock()
	defer n.spaceMu.Unlock()
	if err := n.setSpaces(ctx, want, func(uint32) bool { return true }); err != nil {
		return fmt.Errorf("set %d address spaces: %w", len(want), err)
	}
	return nil
}

// setSpaces leaves networks alone that do not concern it. The kernel's state is the record: what is to go nowhere comes
// before the rule that leads to it, and goes after it.
func (n *Network) setSpaces(_ context.Context, want []Space, concerns func(network uint32) bool) error {
	routes, rules, spaces := map[nowhere]bool{}, map[spaceRule]bool{}, map[uint32][]netip.Prefix{}
	for _, s := range want {
		if err := n.plan.checkSpace(s); err != nil {
			return err
		}
		spaces[s.Network] = s.Prefixes
		rules[spaceRule{prioritySpace, s.Network}], rules[spaceRule{priorityHere, n.plan.base()}] = true, true
		for _, p := range s.Prefixes {
			routes[nowhere{s.Network, p}] = true
		}
	}
	n.overlayMu.Lock() // guards the socket
	defer n.overlayMu.Unlock()
	haveRoutes, haveRules, err := n.readSpaces(concerns)
	if err != nil {
		return err
	}
	var msgs []*message
	for r := range haveRules {
		if !rules[r] && (r.priority == prioritySpace || len(want) == 0) {
			msgs = append(msgs, n.plan.ruleMessage(r).removal(unix.RTM_DELRULE))
		}
	}
	for r := range haveRoutes {
		if !routes[r] {
			msgs = append(msgs, r.message().removal(unix.RTM_DELROUTE))
		}
	}
	for r := range routes {
		if !haveRoutes[r] {
			msgs = append(msgs, r.message())
		}
	}
	for r := range rules {
		if !haveRules[r] {
			msgs = append(msgs, n.plan.ruleMessage(r))
		}
	}
	if err := n.way.doMany(msgs); err != nil {
		return err
	}
	for network := range n.spaces {
		if concerns(network) {
			delete(n.spaces, network)
		}
	}
	for network, list := range spaces {
		n.spaces[network] = slices.Clone(list)
	}
	return nil
}

// Networks are those that an address of this host has joined.
func (n *Network) Networks() map[uint32]bool {
	out := map[uint32]bool{}
	n.mu.Lock()
	defer n.mu.Unlock()
	for a := range n.have.member {
		out[n.have.networkOf(a)] = true
	}
	return out
}

// OwnAddresses are those of this machine, each with its network, and its public ranges: what goes to one of them goes to the
// machine, so no group can have it.
func (n *Network) OwnAddresses() ([]netip.Prefix, error) {
	addrs, err := whole(func() ([]netlink.Addr, error) { return n.route.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	out := slices.Clone(n.plan.public)
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && !ip.IsLoopback() {
			ones, _ := a.Mask.Size()
			out = append(out, netip.PrefixFrom(ip, ones))
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out), nil
}

func (p plan) checkSpace(s Space) error {
	if !p.virtual(s.Network) || len(s.Prefixes) == 0 {
		return fault.New(fault.Invalid, "", "network %d with address space %v: it must be one of this platform's virtual networks, and have a range", s.Network, s.Prefixes)
	}
	for _, r := range s.Prefixes {
		if !r.Addr().Is4() || r != r.Masked() || r.Overlaps(p.cidr) || r.Bits() == 0 {
			return fault.New(fault.Invalid, "", "the range %s of network %d must be IPv4, outside the groups' range %s, with no host bits set", r, s.Network, p.cidr)
		}
	}
	return nil
}

// nowhere is a range of a network's addresses that leads nowhere.
type nowhere struct {
	network uint32
	prefix  netip.Prefix
}

func (r nowhere) message() *message {
	return route(routeSpec{dst: r.prefix.Addr().AsSlice(), bits: uint8(r.prefix.Bits()), table: r.network, kind: unix.RTN_BLACKHOLE, metric: metricNowhere})
}

// spaceRule leads to a table: by a mark of the same number, or from the gateway's address.
type spaceRule struct{ priority, table uint32 }

func (p plan) ruleMessage(r spaceRule) *message {
	head := make([]byte, unix.SizeofRtMsg)
	head[0], head[7] = unix.AF_INET, ruleToTable
	if r.priority == priorityHere {
		head[2] = 32
	}
	m := newMessage(unix.RTM_NEWRULE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, head)
	if r.priority == priorityHere {
		m.attr(unix.FRA_SRC, p.gateway.AsSlice())
	} else {
		m.u32(unix.FRA_FWMARK, r.table).u32(unix.FRA_FWMASK, ^uint32(0))
	}
	return m.u32(unix.FRA_PRIORITY, r.priority).u32(unix.FRA_TABLE, r.table).attr(unix.FRA_PROTOCOL, []byte{ruleProtocol})
}

// readSpaces reads what the kernel has of the networks that it concerns, and the rule that all of them share.
func (n *Network) readSpaces(concerns func(network uint32) bool) (map[nowhere]bool, map[spaceRule]bool, error) {
	routes, rules := map[nowhere]bool{}, map[spaceRule]bool{}
	head := make([]byte, unix.SizeofRtMsg)
	head[0] = unix.AF_INET
	err := n.way.dumpWhole(func() *message { return newMessage(unix.RTM_GETRULE, unix.NLM_F_DUMP, head) }, func(body []byte) {
		r, ok := n.plan.decodeSpaceRule(body)
		if ok && (r.priority == priorityHere || concerns(r.table)) {
			rules[r] = true
		}
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list rules: %w", err)
	}
	only := slices.Clone(head)
	only[7] = unix.RTN_BLACKHOLE
	err = n.way.dumpWhole(func() *message { return newMessage(unix.RTM_GETROUTE, unix.NLM_F_DUMP, only) }, func(body []byte) {
		if r, ok := decodeNowhere(body); ok && n.plan.virtual(r.network) && concerns(r.network) {
			routes[r] = true
		}
	})
	if err != nil {
		return nil, nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, rules, nil
}

func (p plan) decodeSpaceRule(body []byte) (spaceRule, bool) {
	var r spaceRule
	if len(body) < unix.SizeofRtMsg {
		return r, false
	}
	var from netip.Addr
	mark := uint32(0)
	attributes(body[unix.SizeofRtMsg:], func(k uint16, v []byte) {
		switch k {
		case unix.FRA_SRC:
			from, _ = netip.AddrFromSlice(v)
		case unix.FRA_PRIORITY:
			r.priority = number32(v)
		case unix.FRA_FWMARK:
			mark = number32(v)
		case unix.FRA_TABLE:
			r.table = number32(v)
		}
	})
	here := r.priority == priorityHere && from == p.gateway && r.table == p.base()
	return r, here || r.priority == prioritySpace && mark == r.table && p.virtual(mark)
}

func decodeNowhere(body []byte) (nowhere, bool) {
	var r nowhere
	if len(body) < unix.SizeofRtMsg || body[7] != unix.RTN_BLACKHOLE {
		return r, false
	}
	to := netip.IPv4Unspecified()
	attributes(body[unix.SizeofRtMsg:], func(k uint16, v []byte) {
		switch k {
		case unix.RTA_DST:
			to, _ = netip.AddrFromSlice(v)
		case unix.RTA_TABLE:
			r.network = number32(v)
		}
	})
	r.prefix = netip.PrefixFrom(to, int(body[1]))
	return r, to.IsValid()
}

// markOf is a number as marks are compared with.
func markOf(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
