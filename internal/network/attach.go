package network

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
)

const (
	ipv6GenNone   = 1 // IN6_ADDR_GEN_MODE_NONE
	vethInfoPeer  = 1 // VETH_INFO_PEER
	loopbackIndex = 1 // the first device of every network namespace
)

// Attach gives a slot's namespace its network: both ends of the link, up, with address, routes and known neighbours,
// and the entry that lets the address send at all. IPv6 is off in there. Attaching what is attached is an error, and
// after any error nothing of the slot is left.
func (n *Network) Attach(ctx context.Context, s Slot) error {
	if !n.plan.place(s.Addr, s.Network) || s.NetNS == nil {
		return fault.New(fault.Invalid, "", "slot %d: address %s must be one of %s, or of the virtual network that is given, and the namespace open", s.Index, s.Addr, n.plan.cidr)
	}
	inside, err := enterNetNS(s.NetNS)
	if err != nil {
		return fmt.Errorf("attach slot %d: %w", s.Index, err)
	}
	defer inside.close()
	link := n.plan.link(s.Index)
	if err := n.attachHost(link, s); err != nil {
		if !errors.Is(err, unix.EEXIST) {
			err = errors.Join(err, n.deleteLinks(link))
		}
		return fmt.Errorf("attach slot %d: make link %s: %w", s.Index, link, err)
	}
	// gofail: var attachLinked struct{}
	if err := n.configureInside(inside, s); err != nil {
		return errors.Join(fmt.Errorf("attach slot %d: configure its namespace: %w", s.Index, err), n.Detach(ctx, s))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	// gofail: var attachConfigured struct{}
	n.fastAttach(link)
	guard := guardElement(link, s.Addr)
	err = n.commit(func(have elements) (del, add []element) {
		old, ok := have.guard[s.Addr]
		if ok && old == guard {
			return nil, nil
		}
		if ok {
			del = []element{old}
		}
		return del, []element{guard}
	})
	if err != nil {
		return errors.Join(fmt.Errorf("attach slot %d: allow address %s: %w", s.Index, s.Addr, err), n.deleteLinks(link))
	}
	return nil
}

// Restore configures the inside of an attached slot again. A guest kernel of its own takes the address and routes for
// itself when it starts and does not give them back: the next one in the same slot needs them.
func (n *Network) Restore(_ context.Context, s Slot) error {
	inside, err := enterNetNS(s.NetNS)
	if err != nil {
		return fmt.Errorf("restore slot %d: %w", s.Index, err)
	}
	defer inside.close()
	if err := n.configureInside(inside, s); err != nil {
		return fmt.Errorf("restore slot %d: %w", s.Index, err)
	}
	return nil
}

// attachHost makes the pair in one change, then brings its end up with route and neighbour in another.
func (n *Network) attachHost(link string, s Slot) error {
	n.rtMu.Lock()
	defer n.rtMu.Unlock()
	if err := n.rt.do(n.plan.newPair(link, s, n.linkMTU.Load())); err != nil {
		return err
	}
	index, err := n.rt.index(link)
	if err != nil {
		return err
	}
	var msgs []*message
	if n.plan.ipv6 {
		msgs = append(msgs, withoutIPv6(index)) // before it comes up: no address, no solicitations
	}
	if s.Network != 0 {
		msgs = append(msgs, settleVXLAN(index)) // its source is found by its mark only, as those of a network's device
	}
	msgs = append(msgs, linkUp(index), neighbour(index, s.Addr.AsSlice(), n.plan.mac(s.Index, true)))
	return n.rt.do(append(msgs, n.plan.routesTo(index, s)...)...)
}

func (n *Network) configureInside(inside *socket, s Slot) error {
	index, err := inside.index("eth0")
	if err != nil {
		return err
	}
	gw := n.plan.gateway.AsSlice()
	return inside.do(
		linkUp(loopbackIndex),
		newAddress(index, s.Addr.AsSlice()),
		linkUp(index),
		route(routeSpec{dst: gw, dev: index, scope: unix.RT_SCOPE_LINK}),
		route(routeSpec{via: gw, dev: index}),
		neighbour(index, gw, n.plan.mac(s.Index, false)),
	)
}

// enterNetNS opens a route socket inside a namespace and sets what only a thread inside can set.
func enterNetNS(ns *os.File) (*socket, error) { return inside(ns, prepareInside) }

// inside runs a function on a thread inside a network namespace. The thread comes back to its own namespace, or dies.
func inside[T any](ns *os.File, do func() (T, error)) (T, error) {
	type result struct {
		v   T
		err error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		defer func() { done <- r }()
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			r.err = fmt.Errorf("open own namespace: %w", err)
			return
		}
		defer unix.Close(home)
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			r.err = fmt.Errorf("enter namespace: %w", err)
			return
		}
		r.v, r.err = do()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the goroutine ends locked, and its thread with it
		}
	}()
	r := <-done
	return r.v, r.err
}

// prepareInside is run by a thread inside the slot's namespace. As in other engines, unprivileged programs of a group
// may bind low ports and send echo requests: the namespace is theirs alone.
func prepareInside() (*socket, error) {
	for _, kv := range [][2]string{
		{"net/ipv6/conf/all/disable_ipv6", "1"},
		{"net/ipv4/ip_unprivileged_port_start", "0"},
		{"net/ipv4/ping_group_range", "0 2147483647"},
	} {
		if err := os.WriteFile("/proc/sys/"+kv[0], []byte(kv[1]), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("set %s: %w", kv[0], err)
		}
	}
	return dial(unix.NETLINK_ROUTE)
}

// index is the number of a device in the socket's namespace.
func (s *socket) index(name string) (uint32, error) {
	req, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("device name %s: %w", name, err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.fd), unix.SIOCGIFINDEX, uintptr(unsafe.Pointer(req))); errno != 0 {
		return 0, fmt.Errorf("find device %s: %w", name, errno)
	}
	return req.Uint32(), nil
}

// newPair makes both ends in one change: the far one inside the slot's namespace from the start, so that it is never
// seen on the host. One queue each: groups are many, processors are few. Both are down for now: the kernel wants it so.
func (p plan) newPair(link string, s Slot, mtu uint32) *message {
	m := newMessage(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkHead(0, 0))
	inner, outer := p.mac(s.Index, true), p.mac(s.Index, false)
	m.text(unix.IFLA_IFNAME, link).u32(unix.IFLA_MTU, mtu).attr(unix.IFLA_ADDRESS, outer[:])
	m.u32(unix.IFLA_NUM_TX_QUEUES, 1).u32(unix.IFLA_NUM_RX_QUEUES, 1)
	m.nest(unix.IFLA_LINKINFO, func() {
		m.text(unix.IFLA_INFO_KIND, "veth")
		m.nest(unix.IFLA_INFO_DATA, func() {
			m.nest(vethInfoPeer, func() {
				m.raw(linkHead(0, 0))
				m.text(unix.IFLA_IFNAME, "eth0").u32(unix.IFLA_MTU, mtu).attr(unix.IFLA_ADDRESS, inner[:])
				m.u32(unix.IFLA_NUM_TX_QUEUES, 1).u32(unix.IFLA_NUM_RX_QUEUES, 1)
				m.u32(unix.IFLA_NET_NS_FD, uint32(s.NetNS.Fd()))
			})
		})
	})
	return m
}

// routesTo lead to a slot: for all, or for its virtual network and for what the machine sends from the gateway's address.
func (p plan) routesTo(dev uint32, s Slot) []*message {
	to := routeSpec{dst: s.Addr.AsSlice(), dev: dev, src: p.gateway.AsSlice(), scope: unix.RT_SCOPE_LINK}
	if s.Network == 0 {
		return []*message{route(to)}
	}
	here := to
	to.table, here.table = s.Network, p.base()
	return []*message{route(to), route(here)}
}

// linkHead is struct ifinfomsg.
func linkHead(index, flags uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], index)
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], flags)
	return b
}

func linkUp(index uint32) *message {
	return newMessage(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHead(index, unix.IFF_UP))
}

func withoutIPv6(index uint32) *message {
	m := newMessage(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHead(index, 0))
	return m.nest(unix.IFLA_AF_SPEC, func() {
		m.nest(unix.AF_INET6, func() { m.attr(unix.IFLA_INET6_ADDR_GEN_MODE, []byte{ipv6GenNone}) })
	})
}

// newAddress is a /32 on a device.
func newAddress(dev uint32, addr []byte) *message {
	m := newMessage(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, addressHead(dev))
	return m.attr(unix.IFA_LOCAL, addr).attr(unix.IFA_ADDRESS, addr)
}

// addressHead is struct ifaddrmsg of a /32.
func addressHead(dev uint32) []byte {
	head := make([]byte, unix.SizeofIfAddrmsg)
	head[0], head[1] = unix.AF_INET, 32
	binary.NativeEndian.PutUint32(head[4:], dev)
	return head
}

// routeSpec is one IPv4 route; zero fields are left out.
type routeSpec struct {
	dst, via, src []byte
	bits          uint8 // of dst; 0 with a dst: 32
	dev           uint32
	scope         uint8
	kind          uint8  // 0: unicast
	table         uint32 // 0: main
	flags         uint32
	metric        uint32 // the smallest of a destination counts
}

func route(r routeSpec) *message {
	head := make([]byte, unix.SizeofRtMsg)
	head[0] = unix.AF_INET
	if r.dst != nil {
		head[1] = 32
		if r.bits != 0 {
			head[1] = r.bits
		}
	}
	head[4], head[5], head[6], head[7] = unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, r.scope, unix.RTN_UNICAST
	if r.kind != 0 {
		head[7] = r.kind
	}
	if r.table != 0 {
		head[4] = unix.RT_TABLE_UNSPEC
	}
	binary.NativeEndian.PutUint32(head[8:], r.flags)
	m := newMessage(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, head)
	for kind, v := range map[uint16][]byte{unix.RTA_DST: r.dst, unix.RTA_GATEWAY: r.via, unix.RTA_PREFSRC: r.src} {
		if v != nil {
			m.attr(kind, v)
		}
	}
	if r.table != 0 {
		m.u32(unix.RTA_TABLE, r.table)
	}
	if r.metric != 0 {
		m.u32(unix.RTA_PRIORITY, r.metric)
	}
	if r.dev != 0 {
		m.u32(unix.RTA_OIF, r.dev)
	}
	return m
}

// neighbour tells a device the hardware address of the only other end: no question goes over the link, and none can be
// answered wrongly.
func neighbour(dev uint32, addr []byte, mac [6]byte) *message {
	head := make([]byte, unix.SizeofNdMsg)
	head[0] = unix.AF_INET
	binary.NativeEndian.PutUint32(head[4:], dev)
	binary.NativeEndian.PutUint16(head[8:], unix.NUD_PERMANENT)
	m := newMessage(unix.RTM_NEWNEIGH, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, head)
	return m.attr(unix.NDA_DST, addr).attr(unix.NDA_LLADDR, mac[:])
}
