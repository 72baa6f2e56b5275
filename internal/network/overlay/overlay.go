// Package overlay says what one host holds of a network that spans several: devices, routes, neighbours and rules, as
// data.
//
// It is pure: package network reads what the kernel has, asks here for the difference, and carries it out. It must never
// read the kernel itself, and never decide by anything but its arguments. Start reading at New.
package overlay

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"spillway.dev/spillway/internal/fault"
)

const (
	// DefaultPort is where hosts expect each other's VXLAN packets. It is nobody else's: 4789 and 8472 belong to other
	// overlays, whose packets must neither come here nor be refused here.
	DefaultPort = 4797
	// Overhead is what a packet grows by on its way between hosts: IP 20, UDP 8, VXLAN 8, Ethernet 14 bytes.
	Overhead = 50
	// maxVNI is the largest VXLAN network id.
	maxVNI = 1<<24 - 1
	// minMTU is the smallest MTU that IPv4 allows a host to rely on.
	minMTU = 576
)

// Priorities of an instance's rules about routes, behind the kernel's table of local addresses and before the main one.
const (
	// PriorityLocal looks for a group of this host first: nothing that another host is said to have leads away what is here.
	PriorityLocal = 20_797
	// PriorityNetwork chooses the table of the sender's network.
	PriorityNetwork = 20_798
)

// tableBit is in the number of every table of ours; the rest is the number of the device, which is the machine's only
// one with it. So two instances never have the same table, whatever the numbers of their networks.
const tableBit = 1 << 31

// Table is the number of the routing table that belongs to a device.
func Table(device uint32) uint32 { return tableBit | device }

// Networks with addresses outside the groups' range have numbers that begin with these bits, then 16 bits of the instance.
// Such a number is the mark of the network's packets, and its table: no two instances of a machine share either.
const (
	virtualBits = 3 << 30
	countBits   = 14
	// VirtualMask are the bits that such numbers of an instance have in common.
	VirtualMask = ^uint32(1<<countBits - 1)
	// MaxVirtual is how many such networks an instance can have; none has the number of all ones.
	MaxVirtual = 1<<countBits - 2
)

// VirtualBase is what an instance's numbers of such networks have in common, and no network's own number.
func VirtualBase(instance string) uint32 {
	id, _ := strconv.ParseUint(instance, 16, 16) // checked by who opens an instance
	return virtualBits | uint32(id)<<countBits
}

// Virtual says whether a network has addresses outside the groups' range, by its number.
func Virtual(number uint32) bool { return number&virtualBits == virtualBits }

// TableOf is the routing table of a network with a device.
func TableOf(network, device uint32) uint32 {
	if Virtual(network) {
		return network
	}
	return Table(device)
}

// Overlay is what a host is to hold. The zero value is none.
type Overlay struct {
	Underlay netip.Addr // this host's own address among hosts, IPv4: VXLAN packets come from it; invalid: no overlay
	Port     uint16     // UDP, the same on all hosts of a fleet, and one instance's alone on a machine; 0: DefaultPort
	Networks []Network  // that this host carries
	Peers    []Peer     // all other hosts; one that is missing is fenced: nothing goes to it or comes from it
	Homes    []Home     // single addresses of networks, which are in no block
}

// Home is an address of one network that is on a peer.
type Home struct {
	Network uint32     // one of Networks
	Addr    netip.Addr // in the groups' range, or outside when the network is one of those
	Peer    netip.Addr // one of Peers
}

// Network is a network that spans hosts.
type Network struct {
	Number uint32 // as in memberships; never 0
	VNI    uint32 // VXLAN network id, the same on all hosts, of no other network; 1 to 2²⁴-1
}

// Peer is another host.
type Peer struct {
	Underlay netip.Addr     // its address among hosts
	Blocks   []netip.Prefix // where its groups' addresses are from; no other host's
}

// Enabled says whether there is an overlay at all.
func (o Overlay) Enabled() bool { return o.Underlay.IsValid() }

// Site is what is given: the instance, and how large packets between hosts may be.
type Site struct {
	Instance string       // four hexadecimal digits
	CIDR     netip.Prefix // of all groups of the fleet
	MTU      uint32       // of the device that has the underlay's address
}

// Prefix is how the names of an instance's devices begin. None of its groups' links begins so.
func Prefix(instance string) string { return "sw" + instance + "v" }

// Name is the name of a network's device: at most 15 bytes, the kernel's limit.
func (s Site) Name(network uint32) string { return fmt.Sprintf("%s%x", Prefix(s.Instance), network) }

// MAC is a hardware address.
type MAC [6]byte

// macOf is the hardware address of a host's devices, the same in every network: locally administered, and known to all
// who know the underlay's address.
func macOf(underlay netip.Addr) MAC {
	m := MAC{0x0a, 0x53}
	a := underlay.As4()
	copy(m[2:], a[:])
	return m
}

// Device is what matters of a network's VXLAN device.
type Device struct {
	VNI      uint32
	Underlay netip.Addr
	Port     uint16
	MAC      MAC
	MTU      uint32
	Up       bool
}

// Entries are what a device and its table hold of peers.
type Entries struct {
	Routes     map[netip.Prefix]netip.Addr // block → peer
	Neighbours map[netip.Addr]MAC          // peer → its device's address
	Forwards   map[MAC]netip.Addr          // the same, back: where the VXLAN device sends packets for that address
}

// Rule chooses a table for packets from the fleet's range to the fleet's range.
type Rule struct {
	Priority uint32
	Network  uint32 // the packet's mark; 0: any
	Table    uint32
	HostOnly bool // routes to single addresses only
}

// MainTable is the kernel's own.
const MainTable = 254

// Plan is what a host is to hold, checked.
type Plan struct {
	Devices map[string]Device                      // by name
	Entries Entries                                // of each device
	Homes   map[string]map[netip.Prefix]netip.Addr // by device: what its table has beside them
	Numbers map[string]uint32                      // device → network
	Peers   map[netip.Addr]bool
	MTU     uint32 // of new groups' links
	Port    uint16
}

// LinkMTU is the MTU that groups' links get when packets between hosts may have that size.
func LinkMTU(underlay, most uint32) uint32 { return min(most, underlay-Overhead) }

// New checks what is wanted and plans it. Errors: invalid.
func New(site Site, want Overlay) (*Plan, error) {
	p := &Plan{Homes: map[string]map[netip.Prefix]netip.Addr{}, Devices: map[string]Device{}, Numbers: map[string]uint32{}, Peers: map[netip.Addr]bool{}, Port: want.Port,
		Entries: Entries{Routes: map[netip.Prefix]netip.Addr{}, Neighbours: map[netip.Addr]MAC{}, Forwards: map[MAC]netip.Addr{}}}
	if !want.Enabled() {
		return p, nil
	}
	if p.Port == 0 {
		p.Port = DefaultPort
	}
	if err := Validate(site.CIDR, want); err != nil {
		return nil, err
	}
	if site.MTU < minMTU+Overhead {
		return nil, fault.New(fault.Invalid, "", "overlay: the device of %s carries packets of %d bytes, an overlay needs %d", want.Underlay, site.MTU, minMTU+Overhead)
	}
	p.MTU = site.MTU - Overhead
	for _, n := range want.Networks {
		name := site.Name(n.Number)
		p.Devices[name] = Device{VNI: n.VNI, Underlay: want.Underlay, Port: p.Port, MAC: macOf(want.Underlay), MTU: p.MTU, Up: true}
		p.Numbers[name] = n.Number
	}
	for _, peer := range want.Peers {
		mac := macOf(peer.Underlay)
		p.Peers[peer.Underlay] = true
		p.Entries.Neighbours[peer.Underlay], p.Entries.Forwards[mac] = mac, peer.Underlay
		for _, b := range peer.Blocks {
			p.Entries.Routes[b] = peer.Underlay
		}
	}
	for _, h := range want.Homes {
		name := site.Name(h.Network)
		if p.Homes[name] == nil {
			p.Homes[name] = map[netip.Prefix]netip.Addr{}
		}
		p.Homes[name][netip.PrefixFrom(h.Addr, h.Addr.BitLen())] = h.Peer
	}
	return p, nil
}

// Validate checks an overlay by itself. Errors: invalid.
func Validate(cidr netip.Prefix, want Overlay) error {
	invalid := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "", "overlay: "+format, args...)
	}
	outside := func(a netip.Addr) bool {
		return a.Is4() && !a.IsUnspecified() && !a.IsLoopback() && !a.IsMulticast() && !cidr.Contains(a)
	}
	if !outside(want.Underlay) {
		return invalid("the underlay address %s must be IPv4, of one machine, and outside the groups' range %s", want.Underlay, cidr)
	}
	numbers, ids := map[uint32]bool{}, map[uint32]bool{}
	for _, n := range want.Networks {
		if n.Number == 0 || n.VNI == 0 || n.VNI > maxVNI || numbers[n.Number] || ids[n.VNI] {
			return invalid("network %d with VXLAN id %d: both must be above 0 and given once, the id at most %d", n.Number, n.VNI, maxVNI)
		}
		numbers[n.Number], ids[n.VNI] = true, true
	}
	hosts := map[netip.Addr]bool{want.Underlay: true}
	var blocks []netip.Prefix
	for _, p := range want.Peers {
		if !outside(p.Underlay) || hosts[p.Underlay] {
			return invalid("the peer %s must have an address like this host's %s, and be given once", p.Underlay, want.Underlay)
		}
		hosts[p.Underlay] = true
		for _, b := range p.Blocks {
			if !cidr.Contains(b.Addr()) || b.Bits() <= cidr.Bits() || b != b.Masked() {
				return invalid("the block %s of peer %s must be a part of the groups' range %s with no host bits set", b, p.Underlay, cidr)
			}
		}
		blocks = append(blocks, p.Blocks...)
	}
	for _, h := range want.Homes {
		if !numbers[h.Network] || !hosts[h.Peer] || h.Peer == want.Underlay || !h.Addr.Is4() || cidr.Contains(h.Addr) == Virtual(h.Network) {
			return invalid("the address %s of network %d at %s must be in a network of this host, on a peer, and in the groups' range %s or outside as the network's are", h.Addr, h.Network, h.Peer, cidr)
		}
		blocks = append(blocks, netip.PrefixFrom(h.Addr, h.Addr.BitLen()))
	}
	return disjoint(blocks)
}

// disjoint refuses blocks that overlap: an address is on one host.
func disjoint(blocks []netip.Prefix) error {
	sorted := slices.SortedFunc(slices.Values(blocks), func(a, b netip.Prefix) int {
		if c := a.Addr().Compare(b.Addr()); c != 0 {
			return c
		}
		return a.Bits() - b.Bits()
	})
	for i := 1; i < len(sorted); i++ { // sorted: the larger of two that overlap comes first, and next to one that it holds
		if sorted[i-1].Overlaps(sorted[i]) {
			return fault.New(fault.Invalid, "", "overlay: the blocks %s and %s overlap", sorted[i-1], sorted[i])
		}
	}
	return nil
}

// Rules are what a host has for its devices, whose numbers are given by name.
func (p *Plan) Rules(devices map[string]uint32) map[Rule]bool {
	out := map[Rule]bool{}
	for name, number := range p.Numbers {
		if index, ok := devices[name]; ok && !Virtual(number) { // those have a rule of their own, with or without a device
			out[Rule{Priority: PriorityNetwork, Network: number, Table: Table(index)}] = true
		}
	}
	if len(out) > 0 {
		out[Rule{Priority: PriorityLocal, Table: MainTable, HostOnly: true}] = true
	}
	return out
}

// DeviceChanges is what leads from the devices that there are to those that should be, in this order.
type DeviceChanges struct {
	Remove []string // not wanted, or other than they can become
	Make   []string
	Adjust []string // other size, or not up: also those that are made
}

// CompareDevices plans the devices.
func (p *Plan) CompareDevices(have map[string]Device) DeviceChanges {
	var c DeviceChanges
	for name, d := range have {
		want, ok := p.Devices[name]
		d.MTU, d.Up = want.MTU, want.Up
		if !ok || d != want {
			c.Remove = append(c.Remove, name)
		}
	}
	for name, want := range p.Devices {
		d, ok := have[name]
		switch {
		case !ok || slices.Contains(c.Remove, name):
			c.Make, c.Adjust = append(c.Make, name), append(c.Adjust, name)
		case d != want:
			c.Adjust = append(c.Adjust, name)
		}
	}
	slices.Sort(c.Remove)
	slices.Sort(c.Make)
	slices.Sort(c.Adjust)
	return c
}

// Compare is what has to go from a device, and what has to come.
func (p *Plan) Compare(device string, have Entries) (gone, come Entries) {
	routes := p.Entries.Routes
	if Virtual(p.Numbers[device]) { // nothing of it is in a block
		routes = nil
	}
	if homes := p.Homes[device]; len(homes) > 0 {
		all := maps.Clone(homes)
		maps.Copy(all, routes)
		routes = all
	}
	gone.Routes, come.Routes = compare(have.Routes, routes)
	gone.Neighbours, come.Neighbours = compare(have.Neighbours, p.Entries.Neighbours)
	gone.Forwards, come.Forwards = compare(have.Forwards, p.Entries.Forwards)
	return gone, come
}

// compare gives what goes, and what comes or changes: a change replaces.
func compare[K, V comparable](have, want map[K]V) (gone, come map[K]V) {
	gone, come = map[K]V{}, map[K]V{}
	for k, v := range have {
		if _, ok := want[k]; !ok {
			gone[k] = v
		}
	}
	for k, v := range want {
		if old, ok := have[k]; !ok || old != v {
			come[k] = v
		}
	}
	return gone, come
}

// CompareRules is what has to go, and what has to come.
func CompareRules(have, want map[Rule]bool) (gone, come []Rule) {
	for r := range have {
		if !want[r] {
			gone = append(gone, r)
		}
	}
	for r := range want {
		if !have[r] {
			come = append(come, r)
		}
	}
	order := func(a, b Rule) int {
		return cmp.Or(cmp.Compare(a.Priority, b.Priority), cmp.Compare(a.Network, b.Network))
	}
	slices.SortFunc(gone, order)
	slices.SortFunc(come, order)
	return gone, come
}
