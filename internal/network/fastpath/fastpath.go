// Package fastpath leads packets of TCP between groups around the host's network stack: programs at groups' links and at those
// between hosts, and the maps by which they decide.
//
// What a program is not sure of takes the way that there is without it; no packet goes fast that would not have gone slowly.
// The package must never decide who may speak to whom, and never touch a device: package network says what is so, and attaches
// the programs. Start reading at Path, then program.go.
package fastpath

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// Way is what all packets between hosts have in common.
type Way struct {
	Underlay netip.Addr // this host's own
	Port     uint16
}

// Group is a group of this host that is in a network.
type Group struct {
	Ifindex         uint32 // of the host's end of its link
	Network         uint32
	Inside, Outside [6]byte // hardware addresses of the link's ends
	MTU             uint32
}

// Peer is how another host is reached.
type Peer struct {
	Ifindex uint32     // of the device, which has Ethernet's headers
	Next    netip.Addr // next on the way: the peer itself, or a gateway
	MTU     uint32     // of what groups send
}

// Home is an address of one network.
type Home struct {
	Network uint32
	Addr    netip.Addr
}

// View is what there is besides this host's own groups.
type View struct {
	Peers    map[netip.Addr]Peer
	Blocks   map[netip.Prefix]netip.Addr // to peers
	Homes    map[Home]netip.Addr         // likewise
	Networks map[uint32]uint32           // with their VXLAN ids
}

// Sizes of the maps, in entries. All but that of connections take memory only for what is in them.
const (
	mostEntries = 1 << 16
	mostFlows   = 1 << 16 // 5 MB; those that are forgotten go slowly
)

// Path is a set of programs with its maps. Not safe for concurrent use. It ends with its process and with the last device
// that has one of its programs.
type Path struct {
	way                         Way
	FromGroup, FromWire, Slowly *ebpf.Program
	maps                        *maps
	groups                      table[netip.Addr, Group]
	peers                       table[netip.Addr, peerAt]
	blocks                      table[netip.Prefix, netip.Addr]
	homes                       table[Home, netip.Addr]
	networks                    table[uint32, uint32]
	ids                         table[uint32, uint32]
	until, epoch                uint32
	known                       state // what programs see
	changed                     bool  // a map, since the epoch began
	rests                       bool
}

// state is what all programs look at.
type state struct {
	until uint32
	epoch uint32 // or resting
}

func (s state) bytes() []byte { return append(number(s.until), number(s.epoch)...) }

// States of a connection.
const (
	flowDirect = 1 // asked for from group to group
	flowSlow   = 2 // the stack has seen it, and may have translated it
)

// The map of connections outlives a process, so its name changes with its layout.
const (
	flowsName   = "sw_flows2"
	flowKeySize = 12
	flowState   = 0
	flowUsed    = 4 // when a packet of it went fast last
	flowEnded   = 8 // which sides have said that they end: 1, 2
	flowSize    = 12
	endedBoth   = 3
)

// Times are in units of 2³⁰ ns, which are about seconds.
const (
	timeUnit = 30
	// mostIdle is how long a direct connection keeps one by a service address off the same ports that it has. The newcomer's
	// first packets are lost meanwhile.
	mostIdle = 120
	// leadTime is how long packets go fast when nobody looks after what is known of the host.
	leadTime = 10
)

// The layout of values: of a group, of a peer.
const (
	groupIfindex = 0
	groupNetwork = 4
	groupMAC     = 8 // 12 bytes: to, from
	groupMTU     = 20
	groupSize    = 24

	peerIfindex  = 0
	peerChecksum = 4
	peerMTU      = 8
	peerNext     = 12
	peerSize     = 16
)

// maps are what programs refer to.
type maps struct {
	groups, peers, blocks, homes, networks, ids, flows *ebpf.Map
	ways                                               *ebpf.Map // that packets have gone
	state                                              *ebpf.Map // of which epoch they are, and when the ways to peers are not trusted any more
}

// New makes programs and empty maps. What an earlier path knew of connections (FlowsOf) may go on; nil: nothing is known.
func New(way Way, flows *ebpf.Map) (*Path, error) {
	if realTime() {
		return nil, errors.New("the kernel is one for real time")
	}
	m, err := newMaps(flows)
	if err != nil {
		return nil, err
	}
	p := &Path{way: way, maps: m, changed: true}
	if err := p.publish(); err != nil {
		m.close()
		return nil, err
	}
	for _, prog := range []struct {
		to   **ebpf.Program
		name string
		code asm.Instructions
	}{
		{&p.FromGroup, "sw_from_group", fromGroup(m, way)},
		{&p.FromWire, "sw_from_wire", fromWire(m, way)},
		{&p.Slowly, "sw_slowly", slowly(m)},
	} {
		if *prog.to, err = load(prog.name, prog.code); err != nil {
			p.Close()
			return nil, err
		}
	}
	changed := &p.changed
	p.groups = newTable(m.groups, changed, address, Group.bytes)
	p.peers = newTable(m.peers, changed, address, peerAt.bytes)
	p.blocks = newTable(m.blocks, changed, prefixBytes, address)
	p.homes = newTable(m.homes, changed, Home.bytes, address)
	p.networks = newTable(m.networks, changed, idBytes, number)
	p.ids = newTable(m.ids, changed, number, idBytes)
	return p, nil
}

// realTime says whether programs of one processor may interrupt each other.
func realTime() bool {
	body, err := os.ReadFile("/sys/kernel/realtime")
	return err == nil && strings.TrimSpace(string(body)) == "1"
}

// publish makes changes known: from when it returns no packet goes by what was remembered before. Everything that changes a
// map ends with it, whatever comes in between.
func (p *Path) publish(errs ...error) error {
	if p.changed {
		if p.epoch++; p.epoch == resting {
			p.epoch++
		}
		p.changed = false
	}
	now := state{p.until, p.epoch}
	if p.rests {
		now.epoch = resting
	}
	if now == p.known {
		return errors.Join(errs...)
	}
	if err := p.maps.state.Put(uint32(0), now.bytes()); err != nil {
		return errors.Join(append(errs, fmt.Errorf("begin an epoch: %w", err))...)
	}
	p.known = now
	return errors.Join(errs...)
}

// Rest lets no packet go fast, or those that may again.
func (p *Path) Rest(rests bool) error {
	p.rests = rests
	return p.publish()
}

// PutGroup lets a group's packets go fast, and packets to it.
func (p *Path) PutGroup(a netip.Addr, g Group) error { return p.publish(p.groups.put(a, g)) }

// DropGroup takes a group out. From when it returns no packet from or to it goes fast.
func (p *Path) DropGroup(a netip.Addr) error { return p.publish(p.groups.drop(a)) }

// KeepGroups takes out the groups of which keep says no.
func (p *Path) KeepGroups(keep func(netip.Addr, Group) bool) error {
	var errs []error
	for a, g := range p.groups.have {
		if !keep(a, g) {
			errs = append(errs, p.groups.drop(a))
		}
	}
	return p.publish(errs...)
}

// Fence takes out what is not in a view; of peers their addresses count. From when it returns no packet of theirs goes fast.
func (p *Path) Fence(v View) error {
	var errs []error
	for a := range p.peers.have {
		if _, ok := v.Peers[a]; !ok {
			errs = append(errs, p.peers.drop(a))
		}
	}
	errs = append(errs, p.networks.keep(inverse(v.Networks)), p.ids.keep(v.Networks), p.blocks.keep(v.Blocks), p.homes.keep(v.Homes))
	return p.publish(errs...)
}

// Admit puts in what is in a view. What does not fit is left out, with an error.
func (p *Path) Admit(v View) error {
	return p.publish(p.ids.fill(v.Networks), p.networks.fill(inverse(v.Networks)), p.Lead(v.Peers), p.blocks.fill(v.Blocks), p.homes.fill(v.Homes))
}

// Lead says how peers are reached; those that are not named are not, by the fast way. It has to be said again within leadTime, or
// nothing goes fast: a process that is gone follows no change of the host's routes and rules.
func (p *Path) Lead(peers map[netip.Addr]Peer) error {
	want := map[netip.Addr]peerAt{}
	for a, to := range peers {
		want[a] = peerAt{p.way.Underlay, a, to}
	}
	var errs []error
	for a := range p.peers.have {
		if _, ok := want[a]; !ok {
			errs = append(errs, p.peers.drop(a))
		}
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return p.publish(append(errs, fmt.Errorf("read the clock: %w", err))...)
	}
	p.until = uint32(now.Nano()>>timeUnit) + leadTime
	return p.publish(append(errs, p.peers.fill(want))...)
}

// ForgetFlows forgets all connections: those that there are go slowly from now on.
func (p *Path) ForgetFlows() error {
	var keys [][flowKeySize]byte
	var key [flowKeySize]byte
	var value [flowSize]byte
	for list := p.maps.flows.Iterate(); list.Next(&key, &value); {
		keys = append(keys, key)
	}
	var errs []error
	for _, k := range keys {
		if err := p.maps.flows.Delete(k); !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Close lets go of programs and maps. Devices keep the programs that they have.
func (p *Path) Close() {
	for _, prog := range []*ebpf.Program{p.FromGroup, p.FromWire, p.Slowly} {
		prog.Close()
	}
	p.maps.close()
}

// FlowsOf is what a program knows of connections, for New; nil: nothing that this version understands.
func FlowsOf(program uint32) *ebpf.Map {
	prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(program))
	if err != nil {
		return nil
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return nil
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			continue
		}
		if i, err := m.Info(); err == nil && i.Name == flowsName && m.KeySize() == flowKeySize && m.ValueSize() == flowSize {
			return m
		}
		m.Close()
	}
	return nil
}

func inverse(m map[uint32]uint32) map[uint32]uint32 {
	out := map[uint32]uint32{}
	for k, v := range m {
		out[v] = k
	}
	return out
}

func newMaps(flows *ebpf.Map) (*maps, error) {
	m := &maps{}
	const sparse = 1 // BPF_F_NO_PREALLOC
	for _, s := range []struct {
		to   **ebpf.Map
		spec ebpf.MapSpec
	}{
		{&m.groups, ebpf.MapSpec{Name: "sw_groups", Type: ebpf.Hash, KeySize: 4, ValueSize: groupSize, MaxEntries: mostEntries, Flags: sparse}},
		{&m.peers, ebpf.MapSpec{Name: "sw_peers", Type: ebpf.Hash, KeySize: 4, ValueSize: peerSize, MaxEntries: mostEntries, Flags: sparse}},
		{&m.blocks, ebpf.MapSpec{Name: "sw_blocks", Type: ebpf.LPMTrie, KeySize: 8, ValueSize: 4, MaxEntries: mostEntries, Flags: sparse}},
		{&m.homes, ebpf.MapSpec{Name: "sw_homes", Type: ebpf.Hash, KeySize: 8, ValueSize: 4, MaxEntries: mostEntries, Flags: sparse}},
		{&m.networks, ebpf.MapSpec{Name: "sw_networks", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: mostEntries, Flags: sparse}},
		{&m.ids, ebpf.MapSpec{Name: "sw_ids", Type: ebpf.Hash, KeySize: 4, ValueSize: 4, MaxEntries: mostEntries, Flags: sparse}},
		{&m.flows, ebpf.MapSpec{Name: flowsName, Type: ebpf.LRUHash, KeySize: flowKeySize, ValueSize: flowSize, MaxEntries: mostFlows}},
		{&m.ways, ebpf.MapSpec{Name: "sw_ways", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: waySize, MaxEntries: mostWays}},
		{&m.state, ebpf.MapSpec{Name: "sw_state", Type: ebpf.Array, KeySize: 4, ValueSize: stateSize, MaxEntries: 1}},
	} {
		var err error
		if s.to == &m.flows && flows != nil {
			*s.to, err = flows.Clone()
		} else {
			*s.to, err = ebpf.NewMap(&s.spec)
		}
		if err != nil {
			m.close()
			return nil, fmt.Errorf("make map %s: %w", s.spec.Name, err)
		}
	}
	return m, nil
}

func (m *maps) close() {
	for _, one := range []*ebpf.Map{m.groups, m.peers, m.blocks, m.homes, m.networks, m.ids, m.flows, m.ways, m.state} {
		one.Close()
	}
}

func load(name string, i asm.Instructions) (*ebpf.Program, error) {
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, Instructions: i, License: "Apache-2.0"})
	var v *ebpf.VerifierError
	if errors.As(err, &v) {
		return nil, fmt.Errorf("load program %s: %+v", name, v)
	}
	if err != nil {
		return nil, fmt.Errorf("load program %s: %w", name, err)
	}
	return p, nil
}
