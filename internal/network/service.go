package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/service"
)

// ServiceKey names a service address: networks may have the same addresses.
type ServiceKey struct {
	Network uint32
	Addr    netip.Addr
}

// Machine is the number of the network that the machine itself asks in: a service address in it is reached by the
// machine's own programs. Groups' networks never have it.
const Machine = 1<<32 - 1

// Service is a service address with its endpoints.
type Service struct {
	ServiceKey
	Ports  []service.RoutePort
	Sticky bool // a client keeps its endpoint
	Hosts  bool // connections to endpoints on this machine itself are let in
}

// servicePort tells the ports of a service address apart.
type servicePort struct {
	protocol byte
	number   uint16
}

// serviceState is what the sets of the table hold for one service address.
type serviceState struct {
	listed bool // in service_ip
	ports  map[servicePort]portState
}

// portState is what the sets hold for one port: all zero when it has no endpoints.
type portState struct {
	class   uint32   // in service: number of buckets, and whether clients stick
	open    bool     // in service_host
	buckets []target // in endpoint; 0: no entry
}

// classSticky is the bit of a class that says how a bucket is chosen.
const classSticky = 1 << 31

// maxTransaction bounds the entries of one change, so that it fits the socket. One service address always goes whole.
const maxTransaction = 20_000

// serviceStates is what the sets of the table hold of service addresses; nil: nobody has looked yet.
type serviceStates map[ServiceKey]serviceState

// SetServices makes service addresses lead where they should, and removes others. Each one changes at once; endpoints
// that stay keep their connections. Connections of UDP to endpoints that went are forgotten, those of TCP are left to
// end. Doing it again changes nothing. Errors: invalid, when a service address is one of groups.
func (n *Network) SetServices(_ context.Context, set []Service, gone []ServiceKey) error {
	n.serviceMu.Lock()
	defer n.serviceMu.Unlock()
	if n.services == nil {
		if err := n.readServices(); err != nil {
			return err
		}
	}
	return n.setServices(set, gone)
}

// SyncServices makes the service addresses of the table those that are given, whatever it holds; those to keep stay as
// they are, when they are there.
func (n *Network) SyncServices(_ context.Context, set []Service, keep []ServiceKey) error {
	n.serviceMu.Lock()
	defer n.serviceMu.Unlock()
	if err := n.readServices(); err != nil {
		return err
	}
	wanted := map[ServiceKey]bool{}
	for _, s := range set {
		wanted[s.ServiceKey] = true
	}
	for _, k := range keep {
		wanted[k] = true
	}
	var gone []ServiceKey
	for k := range n.services {
		if !wanted[k] {
			gone = append(gone, k)
		}
	}
	return n.setServices(set, gone)
}

// readServices reads what the sets of the table hold of service addresses.
func (n *Network) readServices() error {
	have := serviceStates{}
	for _, set := range []string{setServiceIP, setService, setEndpoint, setServiceHost} {
		list, err := n.dumpSet(n.list, set)
		if err != nil {
			return err
		}
		for _, e := range list {
			have.read(e)
		}
	}
	n.services = have
	return nil
}

// CheckService says whether a service address can be served here. Errors: invalid.
func (n *Network) CheckService(s Service) error { return n.plan.checkService(s) }

func (p plan) checkService(s Service) error {
	if s.Network == 0 || !s.Addr.Is4() || p.cidr.Contains(s.Addr) {
		return fault.New(fault.Invalid, "", "service address %s of network %d: it must be IPv4, outside the groups' range %s, of a network other than 0", s.Addr, s.Network, p.cidr)
	}
	return nil
}

// setServices does it. When the kernel disagrees with the record, it begins again, once, from what the kernel has.
func (n *Network) setServices(set []Service, gone []ServiceKey) error {
	for _, s := range set {
		if err := n.plan.checkService(s); err != nil {
			return err
		}
	}
	stale := staleFlows{}
	err := n.trySetServices(set, gone, stale)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) {
		if readErr := n.readServices(); readErr != nil {
			return errors.Join(err, readErr)
		}
		err = n.trySetServices(set, gone, stale)
	}
	// Also after a failure: what was changed has to be forgotten.
	if err = errors.Join(err, n.forgetStale(stale)); err != nil {
		return fmt.Errorf("change %d service addresses, remove %d: %w", len(set), len(gone), err)
	}
	return nil
}

// serviceChange gathers what one transaction does.
type serviceChange struct {
	del, add []element
	states   map[ServiceKey]serviceState // as they are then
}

func (n *Network) trySetServices(set []Service, gone []ServiceKey, stale staleFlows) error {
	c := serviceChange{states: map[ServiceKey]serviceState{}}
	change := func(k ServiceKey, want serviceState) error {
		old := n.services[k]
		del, add := serviceDifference(k, old, want)
		if len(del)+len(add) == 0 {
			return nil
		}
		stale.note(k, old, want)
		c.del, c.add = append(c.del, del...), append(c.add, add...)
		c.states[k] = want
		if len(c.del)+len(c.add) < maxTransaction {
			return nil
		}
		return n.commitServices(&c)
	}
	for _, k := range gone {
		if err := change(k, serviceState{}); err != nil {
			return err
		}
	}
	for _, s := range set {
		if err := change(s.ServiceKey, s.state(n.services[s.ServiceKey])); err != nil {
			return err
		}
	}
	return n.commitServices(&c)
}

func (n *Network) commitServices(c *serviceChange) error {
	n.mu.Lock()
	err := n.nf.do(encodeElements(n.plan.table, c.del, c.add)...)
	n.mu.Unlock()
	if err != nil {
		return err
	}
	for k, s := range c.states {
		if s.listed {
			n.services[k] = s
		} else {
			delete(n.services, k)
		}
	}
	*c = serviceChange{states: map[ServiceKey]serviceState{}}
	return nil
}

// state is what the sets should hold, starting from what they hold.
func (s Service) state(old serviceState) serviceState {
	out := serviceState{listed: true, ports: map[servicePort]portState{}}
	for _, p := range s.Ports {
		if len(p.Targets) == 0 {
			continue
		}
		key := servicePort{unix.IPPROTO_TCP, uint16(p.Number)}
		if p.Protocol == "UDP" {
			key.protocol = unix.IPPROTO_UDP
		}
		var want []target
		for _, t := range p.Targets {
			want = append(want, targetOf(t))
		}
		slices.Sort(want)
		want = slices.Compact(want)
		buckets := service.Buckets(len(want), s.Sticky)
		class := uint32(buckets)
		held := old.ports[key].buckets
		if s.Sticky && buckets > 1 {
			class |= classSticky
			held = scale(held, buckets)
		}
		out.ports[key] = portState{class: class, open: s.Hosts, buckets: spread(held, want, buckets)}
	}
	return out
}

// serviceDifference is what leads from one state to another.
func serviceDifference(k ServiceKey, old, want serviceState) (del, add []element) {
	note := func(before, after bool, e element) {
		switch {
		case before && !after:
			del = append(del, e)
		case after && !before:
			add = append(add, e)
		}
	}
	note(old.listed, want.listed, element{set: setServiceIP, key: k.key()})
	for p := range union(old.ports, want.ports) {
		a, b := old.ports[p], want.ports[p]
		port := k.key() + p.key()
		note(a.open, b.open, element{set: setServiceHost, key: port})
		if a.class != b.class {
			note(a.class != 0, false, element{set: setService, key: port, value: native(a.class)})
			note(false, b.class != 0, element{set: setService, key: port, value: native(b.class)})
		}
		for i := range max(len(a.buckets), len(b.buckets)) {
			was, is := bucketAt(a.buckets, i), bucketAt(b.buckets, i)
			if was == is {
				continue
			}
			note(was != 0, false, element{set: setEndpoint, key: port + native(uint32(i)), value: was.value()})
			note(false, is != 0, element{set: setEndpoint, key: port + native(uint32(i)), value: is.value()})
		}
	}
	return del, add
}

func union(a, b map[servicePort]portState) map[servicePort]bool {
	out := map[servicePort]bool{}
	for p := range a {
		out[p] = true
	}
	for p := range b {
		out[p] = true
	}
	return out
}

func bucketAt(list []target, i int) target {
	if i < len(list) {
		return list[i]
	}
	return 0
}

// maxBucket is far above every class: a larger number in a key is not ours.
const maxBucket = 1 << 16

// read notes an entry that the kernel holds.
func (h serviceStates) read(e element) {
	b := []byte(e.key[:8])
	k := ServiceKey{binary.NativeEndian.Uint32(b), netip.AddrFrom4([4]byte(b[4:]))}
	s := h[k]
	s.add(e)
	h[k] = s
}

func (s *serviceState) add(e element) {
	if e.set == setServiceIP {
		s.listed = true
		return
	}
	if s.ports == nil {
		s.ports = map[servicePort]portState{}
	}
	b := []byte(e.key[8:])
	p := servicePort{b[0], binary.BigEndian.Uint16(b[4:])}
	state := s.ports[p]
	switch e.set {
	case setServiceHost:
		state.open = true
	case setService:
		state.class = binary.NativeEndian.Uint32([]byte(e.value))
	case setEndpoint:
		i := int(binary.NativeEndian.Uint32(b[8:]))
		if i >= maxBucket {
			return
		}
		for len(state.buckets) <= i {
			state.buckets = append(state.buckets, 0)
		}
		v := []byte(e.value)
		state.buckets[i] = targetOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte(v)), binary.BigEndian.Uint16(v[4:])))
	}
	s.ports[p] = state
}

func native(v uint32) string { return string(binary.NativeEndian.AppendUint32(nil, v)) }

func (k ServiceKey) key() string { return native(k.Network) + addrKey(k.Addr) }

func (p servicePort) key() string {
	return string([]byte{p.protocol, 0, 0, 0, byte(p.number >> 8), byte(p.number), 0, 0})
}

// value is a target as the endpoint map holds it: the address, then the port filled up to 4 bytes.
func (t target) value() string {
	return addrKey(t.addr()) + string([]byte{byte(t >> 8), byte(t), 0, 0})
}
