package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/network/fastpath"
	"spillway.dev/spillway/internal/network/overlay"
)

// This file is about the way around the stack that TCP between groups takes where there is an overlay: package fastpath has its
// programs. It grants nothing by itself. What the table's sets lose it loses before them, and what they get it gets after.
// Where something of it cannot be had, packets take the way through the stack.

// fast is what this process knows of the way around the stack; Network.mu guards it.
type fast struct {
	path    *fastpath.Path      // nil: there is none
	links   map[string]fastLink // of groups, those that have programs
	devices map[uint32]hook     // of hosts and overlays, those that have one
	flows   *ebpf.Map           // what is known of connections: a path before has left it
	told    bool                // that there is none

	// Network.overlayMu guards what follows as well: who has either may read, who has both may write.
	peers []netip.Addr          // that the overlay has
	mtu   uint32                // of what groups send to them
	slow  map[netip.Addr]string // those that packets take the stack to, with why
	rests string                // why all do; "": they do not
}

// fastLink is the host's end of a group's link.
type fastLink struct{ index, mtu uint32 }

// fastRefuse takes those out of the way around the stack whose entries go from the sets. The lock is held.
func (n *Network) fastRefuse(del []element) error {
	if n.fast.path == nil {
		return nil
	}
	var errs []error
	for _, e := range del {
		if e.set == setNetOf || e.set == setMember || e.set == setGuard {
			errs = append(errs, n.fast.path.DropGroup(e.owner()))
		}
	}
	return errors.Join(errs...)
}

// fastAllow lets those in that the sets have all of. The lock is held.
func (n *Network) fastAllow(changed ...[]element) {
	if n.fast.path == nil {
		return
	}
	for _, list := range changed {
		for _, e := range list {
			n.fastAllowOne(e.owner())
		}
	}
}

func (n *Network) fastAllowOne(a netip.Addr) {
	guard, ok := n.have.guard[a]
	if !ok || n.have.networkOf(a) == 0 {
		return
	}
	name := unix.ByteSliceToString([]byte(guard.key[:unix.IFNAMSIZ]))
	link, ok := n.fast.links[name]
	slot, err := strconv.ParseUint(strings.TrimPrefix(name, n.plan.links), 16, 32)
	if !ok || err != nil {
		return
	}
	g := fastpath.Group{Ifindex: link.index, Network: n.have.networkOf(a), MTU: link.mtu,
		Inside: n.plan.mac(uint32(slot), true), Outside: n.plan.mac(uint32(slot), false)}
	if err := n.fast.path.PutGroup(a, g); err != nil {
		n.fastMissing(err)
	}
}

// fastCompare takes out what is other than the sets, which have been read. The lock is held.
func (n *Network) fastCompare() error {
	if n.fast.path == nil {
		return nil
	}
	return n.fast.path.KeepGroups(func(a netip.Addr, g fastpath.Group) bool {
		guard, ok := n.have.guard[a]
		link := n.fast.links[unix.ByteSliceToString([]byte(guard.key))]
		return ok && link.index == g.Ifindex && n.have.networkOf(a) == g.Network
	})
}

// fastAttach puts programs at a new link. The lock is held.
func (n *Network) fastAttach(name string) {
	if n.fast.path == nil {
		return
	}
	n.rtMu.Lock()
	defer n.rtMu.Unlock()
	index, err := n.rt.index(name)
	if err == nil {
		err = n.rt.do(n.linkPrograms(index)...)
	}
	if err != nil {
		n.fastMissing(err)
		return
	}
	n.fast.links[name] = fastLink{index, n.linkMTU.Load()}
}

// linkPrograms puts programs at a group's link: that which sees what came the slow way is there before any goes fast.
func (n *Network) linkPrograms(index uint32) []*message {
	return []*message{hooks(index), n.plan.filter(index, egress, n.fast.path.Slowly), n.plan.filter(index, ingress, n.fast.path.FromGroup)}
}

// fastForget takes links out before they are deleted.
func (n *Network) fastForget(names []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fast.path == nil {
		return nil
	}
	gone := map[string]bool{}
	for _, name := range names {
		gone[linkKey(name)] = true
		delete(n.fast.links, name)
	}
	var errs []error
	for a, e := range n.have.guard {
		if gone[e.key[:unix.IFNAMSIZ]] {
			errs = append(errs, n.fast.path.DropGroup(a))
		}
	}
	return errors.Join(errs...)
}

// fastMissing says once that the stack carries everything, or more than it would have to.
func (n *Network) fastMissing(err error) {
	if !n.fast.told {
		n.log.Warn("packets between groups take the slow way", "instance", n.plan.instance, "error", err)
	}
	n.fast.told = true
}

// fastFence takes out whom the overlay no longer has, before anything else is done about them.
func (n *Network) fastFence(p *overlay.Plan, t tunnel) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fast.path == nil {
		return nil
	}
	if !t.enabled() || t != n.tunnel {
		return n.fastEnd(true)
	}
	v := fastView(p)
	for a := range p.Peers {
		v.Peers[a] = fastpath.Peer{}
	}
	return n.fast.path.Fence(v)
}

// fastView is the way as an overlay has it, without peers.
func fastView(p *overlay.Plan) fastpath.View {
	v := fastpath.View{Peers: map[netip.Addr]fastpath.Peer{}, Blocks: p.Entries.Routes, Homes: map[fastpath.Home]netip.Addr{}, Networks: map[uint32]uint32{}}
	for name, d := range p.Devices {
		v.Networks[p.Numbers[name]] = d.VNI
		for prefix, peer := range p.Homes[name] {
			v.Homes[fastpath.Home{Network: p.Numbers[name], Addr: prefix.Addr()}] = peer
		}
	}
	return v
}

// fastAdmit makes the way around the stack for what an overlay has. What cannot be had of it is no error; that somebody
// cannot be taken out is.
func (n *Network) fastAdmit(p *overlay.Plan) error {
	if n.cfg.FastPath == FastOff {
		return nil
	}
	why := n.reasonToRest()
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.fastBegin(p); err != nil {
		n.fastMissing(err)
		if n.fast.path == nil {
			return nil
		}
		return n.fastEnd(true)
	}
	v := fastView(p)
	n.fast.peers, n.fast.mtu = slices.SortedFunc(maps.Keys(p.Peers), netip.Addr.Compare), p.MTU
	v.Peers = n.fastWays()
	if err := n.fast.path.Fence(v); err != nil {
		return err
	}
	// gofail: var fastFenced struct{}
	if err := errors.Join(n.leaveUplinks(v.Peers), n.rest(why)); err != nil {
		return err
	}
	if err := n.fast.path.Admit(v); err != nil {
		n.fastMissing(err)
	}
	return nil
}

// fastBegin makes programs and puts them at all links of groups, and at the devices of networks.
func (n *Network) fastBegin(p *overlay.Plan) error {
	if n.fast.path == nil {
		path, err := fastpath.New(fastpath.Way{Underlay: n.tunnel.underlay, Port: n.tunnel.port}, n.fast.flows)
		if err != nil {
			return err
		}
		n.fast.path, n.fast.links, n.fast.devices = path, map[string]fastLink{}, map[uint32]hook{}
		list, err := n.linkList()
		if err != nil {
			return err
		}
		for _, l := range list {
			if name := l.Attrs().Name; strings.HasPrefix(name, n.plan.links) {
				if err := n.way.do(n.linkPrograms(uint32(l.Attrs().Index))...); err != nil {
					if errors.Is(err, unix.ENODEV) {
						continue // it has gone meanwhile
					}
					return fmt.Errorf("put programs at link %s: %w", name, err)
				}
				n.fast.links[name] = fastLink{uint32(l.Attrs().Index), uint32(l.Attrs().MTU)}
				// gofail: var fastLinked struct{}
			}
		}
		for a := range n.have.guard {
			n.fastAllowOne(a)
		}
	}
	_, index, err := n.overlayDevices()
	if err != nil {
		return err
	}
	for name := range p.Devices {
		if err := n.fastDevice(index[name], egress, n.fast.path.Slowly); err != nil {
			return fmt.Errorf("put a program at device %s: %w", name, err)
		}
	}
	return nil
}

func (n *Network) fastDevice(index uint32, at hook, p *ebpf.Program) error {
	if n.fast.devices[index] == at {
		return nil
	}
	if err := n.way.do(hooks(index), n.plan.filter(index, at, p)); err != nil {
		return err
	}
	n.fast.devices[index] = at
	// gofail: var fastHooked struct{}
	return nil
}

func (n *Network) linkList() ([]netlink.Link, error) {
	list, err := whole(n.route.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return list, nil
}

// unhook takes our program off a device that is not ours, and the hooks that nobody else uses.
func (n *Network) unhook(index uint32) error {
	delete(n.fast.devices, index)
	if err := n.way.do(n.plan.withoutFilter(index, ingress)); err != nil {
		return fmt.Errorf("take the program off device %d: %w", index, err)
	}
	others := false
	for _, at := range []hook{ingress, egress} {
		if err := n.way.dump(newMessage(unix.RTM_GETTFILTER, unix.NLM_F_DUMP, tcHead(index, 0, uint32(at), 0)), func([]byte) { others = true }); err != nil {
			return nil // there are no hooks
		}
	}
	if others {
		return nil
	}
	return n.way.do(withoutHooks(index))
}

// fastEnd takes all programs of this instance off, also those of a process before. What is known of connections stays for the
// next path when it is said to. The lock is held.
func (n *Network) fastEnd(keep bool) error {
	list, err := n.linkList()
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range list {
		a := l.Attrs()
		index := uint32(a.Index)
		switch {
		case strings.HasPrefix(a.Name, n.plan.links), strings.HasPrefix(a.Name, overlay.Prefix(n.plan.instance)):
			if keep && n.fast.flows == nil {
				n.fast.flows = n.programFlows(index)
			}
			errs = append(errs, n.way.do(withoutHooks(index)))
		case strings.HasPrefix(a.Name, "sw") && strings.Contains(a.Name, "-"): // of another instance
		default:
			errs = append(errs, n.unhook(index))
		}
	}
	if n.fast.path != nil {
		n.fast.path.Close()
	}
	n.fast.path, n.fast.links, n.fast.devices, n.fast.peers = nil, nil, nil, nil
	return errors.Join(errs...)
}

// programFlows is what the program that waits for the slow packets of a device knows of connections; nil: there is none.
func (n *Network) programFlows(index uint32) (m *ebpf.Map) {
	_ = n.way.dump(newMessage(unix.RTM_GETTFILTER, unix.NLM_F_DUMP, tcHead(index, 0, uint32(egress), 0)), func(body []byte) {
		if len(body) < tcHeadLen || m != nil {
			return
		}
		attributes(body[tcHeadLen:], func(kind uint16, v []byte) {
			if kind != unix.TCA_OPTIONS {
				return
			}
			attributes(v, func(kind uint16, v []byte) {
				if kind == bpfID && len(v) == 4 {
					m = fastpath.FlowsOf(binary.NativeEndian.Uint32(v))
				}
			})
		})
	})
	return m
}
