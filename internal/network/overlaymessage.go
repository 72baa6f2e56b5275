package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/network/overlay"
)

// This file is what the kernel is told and asked of overlays.

// Numbers of a device's IPv4 settings, as netlink counts them.
const (
	confForwarding = 1
	confRPFilter   = 8
	confMarkCounts = 24 // src_valid_mark
)

// ruleToTable is the action of a rule that leads to a table (FR_ACT_TO_TBL).
const ruleToTable = 1

// ruleProtocol marks rules about routes as a platform's, for who lists them; what counts is the range that they are about.
const ruleProtocol = 83

// newVXLAN makes a network's device, down. It learns nothing and asks nobody: what it must know it is told.
func newVXLAN(name string, d overlay.Device) *message {
	m := newMessage(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, linkHead(0, 0))
	m.text(unix.IFLA_IFNAME, name).u32(unix.IFLA_MTU, d.MTU).attr(unix.IFLA_ADDRESS, d.MAC[:])
	return m.nest(unix.IFLA_LINKINFO, func() {
		m.text(unix.IFLA_INFO_KIND, "vxlan")
		m.nest(unix.IFLA_INFO_DATA, func() {
			m.u32(unix.IFLA_VXLAN_ID, d.VNI).attr(unix.IFLA_VXLAN_LOCAL, d.Underlay.AsSlice())
			m.attr(unix.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, d.Port)).attr(unix.IFLA_VXLAN_LEARNING, []byte{0})
		})
	})
}

// settleVXLAN is what a device has before it is up. The mark counts when a source is checked: its route is in the network's
// own table. What is checked is for the rules to say.
func settleVXLAN(index uint32) *message {
	m := newMessage(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHead(index, 0))
	return m.nest(unix.IFLA_AF_SPEC, func() {
		m.nest(unix.AF_INET, func() {
			m.nest(unix.IFLA_INET_CONF, func() {
				m.u32(confForwarding, 1).u32(confRPFilter, 0).u32(confMarkCounts, 1)
			})
		})
	})
}

// raiseVXLAN brings a device up; it answers no questions for addresses.
func raiseVXLAN(index uint32) *message {
	return newMessage(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHead(index, unix.IFF_UP|unix.IFF_NOARP))
}

func sizeVXLAN(index, mtu uint32) *message {
	return newMessage(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHead(index, 0)).u32(unix.IFLA_MTU, mtu)
}

// deviceWithoutIPv6 is withoutIPv6 for a device that may be too small to have any.
func deviceWithoutIPv6(index uint32) *message {
	m := withoutIPv6(index)
	m.fine = []unix.Errno{unix.EAFNOSUPPORT}
	return m
}

// blockRoute leads a block to a peer, in the table of a network. The peer is reached through the device although no
// address of it says so. What is on this host comes first.
func blockRoute(at place, block netip.Prefix, peer netip.Addr) *message {
	r := routeSpec{dst: block.Addr().AsSlice(), bits: uint8(block.Bits()), via: peer.AsSlice(), dev: at.device,
		table: overlay.TableOf(at.network, at.device), flags: unix.RTNH_F_ONLINK}
	if overlay.Virtual(at.network) {
		r.metric = metricElsewhere
	}
	return route(r)
}

// forward tells a device to which peer packets for a hardware address go.
func forward(dev uint32, mac overlay.MAC, peer netip.Addr) *message {
	head := make([]byte, unix.SizeofNdMsg)
	head[0] = unix.AF_BRIDGE
	binary.NativeEndian.PutUint32(head[4:], dev)
	binary.NativeEndian.PutUint16(head[8:], unix.NUD_PERMANENT)
	head[10] = unix.NTF_SELF
	m := newMessage(unix.RTM_NEWNEIGH, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, head)
	return m.attr(unix.NDA_LLADDR, mac[:]).attr(unix.NDA_DST, peer.AsSlice())
}

// routeRule is a rule about packets from the range to the range.
func routeRule(cidr netip.Prefix, r overlay.Rule) *message {
	head := make([]byte, unix.SizeofRtMsg)
	head[0], head[1], head[2], head[7] = unix.AF_INET, uint8(cidr.Bits()), uint8(cidr.Bits()), ruleToTable
	m := newMessage(unix.RTM_NEWRULE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, head)
	m.attr(unix.FRA_SRC, cidr.Addr().AsSlice()).attr(unix.FRA_DST, cidr.Addr().AsSlice())
	m.u32(unix.FRA_PRIORITY, r.Priority).u32(unix.FRA_TABLE, r.Table).attr(unix.FRA_PROTOCOL, []byte{ruleProtocol})
	if r.Network != 0 {
		m.u32(unix.FRA_FWMARK, r.Network).u32(unix.FRA_FWMASK, ^uint32(0))
	}
	if r.HostOnly {
		m.u32(unix.FRA_SUPPRESS_PREFIXLEN, 31)
	}
	return m
}

// heldDevice is a device of an overlay that is there.
type heldDevice struct {
	name  string
	index uint32
	overlay.Device
}

// readDevices are the VXLAN devices of this machine.
func (s *socket) readDevices() ([]heldDevice, error) {
	return whole(func() ([]heldDevice, error) {
		m := newMessage(unix.RTM_GETLINK, unix.NLM_F_DUMP, linkHead(0, 0))
		m.nest(unix.IFLA_LINKINFO, func() { m.text(unix.IFLA_INFO_KIND, "vxlan") })
		var out []heldDevice
		err := s.dump(m, func(body []byte) {
			if d, ok := decodeDevice(body); ok {
				out = append(out, d)
			}
		})
		return out, err
	})
}

func decodeDevice(body []byte) (heldDevice, bool) {
	var d heldDevice
	if len(body) < unix.SizeofIfInfomsg {
		return d, false
	}
	d.index = binary.NativeEndian.Uint32(body[4:])
	const raised = unix.IFF_UP | unix.IFF_NOARP
	d.Up = binary.NativeEndian.Uint32(body[8:])&raised == raised
	kind := ""
	attributes(body[unix.SizeofIfInfomsg:], func(k uint16, v []byte) {
		switch k {
		case unix.IFLA_IFNAME:
			d.name = unix.ByteSliceToString(v)
		case unix.IFLA_MTU:
			d.MTU = number32(v)
		case unix.IFLA_ADDRESS:
			copy(d.MAC[:], v)
		case unix.IFLA_LINKINFO:
			attributes(v, func(k uint16, v []byte) {
				switch k {
				case unix.IFLA_INFO_KIND:
					kind = unix.ByteSliceToString(v)
				case unix.IFLA_INFO_DATA:
					attributes(v, d.decodeVXLAN)
				}
			})
		}
	})
	return d, kind == "vxlan"
}

func (d *heldDevice) decodeVXLAN(k uint16, v []byte) {
	switch k {
	case unix.IFLA_VXLAN_ID:
		d.VNI = number32(v)
	case unix.IFLA_VXLAN_LOCAL:
		d.Underlay, _ = netip.AddrFromSlice(v)
	case unix.IFLA_VXLAN_PORT:
		if len(v) >= 2 {
			d.Port = binary.BigEndian.Uint16(v)
		}
	}
}

func number32(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}

// readEntries is what a device and its table hold.
func (s *socket) readEntries(at place) (overlay.Entries, error) {
	dev, table := at.device, overlay.TableOf(at.network, at.device)
	e := overlay.Entries{Routes: map[netip.Prefix]netip.Addr{}, Neighbours: map[netip.Addr]overlay.MAC{}, Forwards: map[overlay.MAC]netip.Addr{}}
	head := make([]byte, unix.SizeofRtMsg)
	head[0] = unix.AF_INET
	err := s.dumpWhole(func() *message {
		return newMessage(unix.RTM_GETROUTE, unix.NLM_F_DUMP, head).u32(unix.RTA_TABLE, table)
	}, func(body []byte) {
		if dst, via, ok := decodeRoute(body, dev); ok {
			e.Routes[dst] = via
		}
	})
	if err != nil && !errors.Is(err, unix.ENOENT) { // without a route there is no table
		return e, fmt.Errorf("list routes: %w", err)
	}
	err = s.dumpWhole(func() *message {
		return newMessage(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, neighbourHead(unix.AF_INET, 0)).u32(unix.NDA_IFINDEX, dev)
	}, func(body []byte) {
		if a, mac, at := decodeNeighbour(body); at == dev && a.IsValid() {
			e.Neighbours[a] = mac
		}
	})
	if err != nil {
		return e, fmt.Errorf("list neighbours: %w", err)
	}
	err = s.dumpWhole(func() *message {
		return newMessage(unix.RTM_GETNEIGH, unix.NLM_F_DUMP, neighbourHead(unix.AF_BRIDGE, dev))
	}, func(body []byte) {
		if a, mac, at := decodeNeighbour(body); at == dev && a.IsValid() {
			e.Forwards[mac] = a
		}
	})
	if err != nil {
		return e, fmt.Errorf("list where packets are forwarded to: %w", err)
	}
	return e, nil
}

// dumpWhole asks for a list until it comes in one piece. Entries may be given more than once.
func (s *socket) dumpWhole(ask func() *message, each func(body []byte)) error {
	_, err := whole(func() ([]struct{}, error) { return nil, s.dump(ask(), each) })
	return err
}

func neighbourHead(family byte, dev uint32) []byte {
	head := make([]byte, unix.SizeofNdMsg)
	head[0] = family
	binary.NativeEndian.PutUint32(head[4:], dev)
	return head
}

// decodeRoute reads a route over a device by way of another address.
func decodeRoute(body []byte, dev uint32) (dst netip.Prefix, via netip.Addr, ok bool) {
	if len(body) < unix.SizeofRtMsg {
		return dst, via, false
	}
	to, over := netip.IPv4Unspecified(), uint32(0)
	attributes(body[unix.SizeofRtMsg:], func(k uint16, v []byte) {
		switch k {
		case unix.RTA_OIF:
			over = number32(v)
		case unix.RTA_DST:
			to, _ = netip.AddrFromSlice(v)
		case unix.RTA_GATEWAY:
			via, _ = netip.AddrFromSlice(v)
		}
	})
	return netip.PrefixFrom(to, int(body[1])), via, to.IsValid() && over == dev
}

// decodeNeighbour reads a neighbour, or where a device forwards to. Those that are not for good are left out: a zero address.
func decodeNeighbour(body []byte) (a netip.Addr, mac overlay.MAC, dev uint32) {
	if len(body) < unix.SizeofNdMsg {
		return a, mac, 0
	}
	attributes(body[unix.SizeofNdMsg:], func(k uint16, v []byte) {
		switch k {
		case unix.NDA_DST:
			a, _ = netip.AddrFromSlice(v)
		case unix.NDA_LLADDR:
			copy(mac[:], v)
		}
	})
	if binary.NativeEndian.Uint16(body[8:])&unix.NUD_PERMANENT == 0 {
		a = netip.Addr{}
	}
	return a, mac, binary.NativeEndian.Uint32(body[4:])
}

// readRules are the rules about routes of an instance: those about its range, at our priorities.
func (s *socket) readRules(cidr netip.Prefix) (map[overlay.Rule]bool, error) {
	list, err := whole(func() ([]overlay.Rule, error) {
		head := make([]byte, unix.SizeofRtMsg)
		head[0] = unix.AF_INET
		var out []overlay.Rule
		err := s.dump(newMessage(unix.RTM_GETRULE, unix.NLM_F_DUMP, head), func(body []byte) {
			if r, ok := decodeRule(cidr, body); ok {
				out = append(out, r)
			}
		})
		return out, err
	})
	out := map[overlay.Rule]bool{}
	for _, r := range list {
		out[r] = true
	}
	return out, err
}

func decodeRule(cidr netip.Prefix, body []byte) (overlay.Rule, bool) {
	var r overlay.Rule
	if len(body) < unix.SizeofRtMsg {
		return r, false
	}
	var from, to netip.Addr
	attributes(body[unix.SizeofRtMsg:], func(k uint16, v []byte) {
		switch k {
		case unix.FRA_SRC:
			from, _ = netip.AddrFromSlice(v)
		case unix.FRA_DST:
			to, _ = netip.AddrFromSlice(v)
		case unix.FRA_PRIORITY:
			r.Priority = number32(v)
		case unix.FRA_FWMARK:
			r.Network = number32(v)
		case unix.FRA_TABLE:
			r.Table = number32(v)
		case unix.FRA_SUPPRESS_PREFIXLEN:
			r.HostOnly = number32(v) == 31
		}
	})
	ours := from == cidr.Addr() && to == cidr.Addr() && int(body[1]) == cidr.Bits() && int(body[2]) == cidr.Bits()
	return r, ours && (r.Priority == overlay.PriorityLocal || r.Priority == overlay.PriorityNetwork)
}
