package network

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/network/overlay"
)

// tap sees every packet that comes to a group.
type tap struct{ frames chan []byte }

func (w *world) tap(ns *os.File) *tap { return w.tapAt(ns, "eth0") }

// tapAt is tap at another device than a group's.
func (w *world) tapAt(ns *os.File, device string) *tap {
	w.t.Helper()
	t := &tap{make(chan []byte, 10_000)}
	w.in(ns, func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0x0300)
		if err != nil {
			return err
		}
		pause := unix.NsecToTimeval((20 * time.Millisecond).Nanoseconds())
		if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &pause); err != nil {
			return err
		}
		if err := unix.Bind(s, &unix.SockaddrLinklayer{Protocol: 0x0300, Ifindex: l.Attrs().Index}); err != nil {
			return err
		}
		end, ended := make(chan struct{}), make(chan struct{})
		w.t.Cleanup(func() { close(end); <-ended; unix.Close(s) })
		go func() {
			defer close(ended)
			for buf := make([]byte, 1<<17); ; {
				select {
				case <-end:
					return
				default:
				}
				n, from, err := unix.Recvfrom(s, buf, 0)
				at, ok := from.(*unix.SockaddrLinklayer)
				if err == nil && ok && at.Pkttype != unix.PACKET_OUTGOING && len(t.frames) < cap(t.frames) {
					t.frames <- bytes.Clone(buf[:n])
				}
			}
		}()
		return nil
	})
	return t
}

// until gives what came before the first packet with a text; it must come.
func (t *tap) until(text string) (before [][]byte, came bool) {
	for late := time.After(10 * time.Second); ; {
		select {
		case f := <-t.frames:
			if bytes.Contains(f, []byte(text)) {
				return before, true
			}
			before = append(before, f)
		case <-late:
			return before, false
		}
	}
}

// inject sends packets as they are by a device.
func (w *world) inject(ns *os.File, device string, frames ...[]byte) {
	w.t.Helper()
	w.in(ns, func() error {
		l, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		for _, f := range frames {
			if err := unix.Sendto(s, f, 0, &unix.SockaddrLinklayer{Protocol: 0x0008, Ifindex: l.Attrs().Index}); err != nil {
				return fmt.Errorf("send %d bytes: %w", len(f), err)
			}
		}
		return nil
	})
}

// segment is a TCP packet in the making.
type segment struct {
	from, to     netip.AddrPort
	flags        byte
	text         string
	toMAC, byMAC [6]byte
}

func sumUp(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// packet is a network header without options, and what it carries.
func packet(from, to netip.Addr, protocol byte, body []byte) []byte {
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocol, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(body)))
	ip = append(append(ip, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], sumUp(ip))
	return append(ip, body...)
}

func frame(to, by [6]byte, body []byte) []byte {
	return append(append(append(append([]byte{}, to[:]...), by[:]...), 8, 0), body...)
}

// frame has a right network header; nobody but its receiver asks for the checksum of TCP.
func (s segment) frame() []byte {
	tcp := make([]byte, 20)
	binary.BigEndian.PutUint16(tcp, s.from.Port())
	binary.BigEndian.PutUint16(tcp[2:], s.to.Port())
	tcp[12], tcp[13] = 0x50, s.flags
	return frame(s.toMAC, s.byMAC, packet(s.from.Addr(), s.to.Addr(), unix.IPPROTO_TCP, append(tcp, s.text...)))
}

// wrapped is a packet in an envelope, from one machine to another, that says that its connection is direct.
func wrapped(from, to netip.Addr, vni uint32, inner []byte) []byte {
	udp := binary.BigEndian.AppendUint16([]byte{0xc0, 1}, overlay.DefaultPort)
	udp = binary.BigEndian.AppendUint16(udp, uint16(16+len(inner)))
	udp = append(udp, 0, 0, 8, 0, 0, 0, byte(vni>>16), byte(vni>>8), byte(vni), 0)
	return packet(from, to, unix.IPPROTO_UDP, append(udp, inner...))
}

// Where things are in a packet in its envelope.
const (
	outerIPAt = 14
	udpAt     = outerIPAt + 20
	vxlanAt   = udpAt + 8
	innerAt   = vxlanAt + 8
	innerIPAt = innerAt + 14
)

// direct is the packet that a group of another host would send to one of this host.
func (h *hostWorld) direct(by *hostWorld, from, to netip.Addr, text string) []byte {
	under, peer := h.underlay().As4(), by.underlay().As4()
	return segment{from: netip.AddrPortFrom(from, 40_000), to: netip.AddrPortFrom(to, 9), flags: 2, text: text,
		toMAC: [6]byte{0x0a, 0x53, under[0], under[1], under[2], under[3]}, byMAC: [6]byte{0x0e, 0x53, peer[0], peer[1], peer[2], peer[3]}}.frame()
}

func (h *hostWorld) hardware(ns *os.File, device string) (mac [6]byte) {
	h.t.Helper()
	h.in(ns, func() error {
		l, err := netlink.LinkByName(device)
		if err == nil {
			copy(mac[:], l.Attrs().HardwareAddr)
		}
		return err
	})
	return mac
}

// onlyGood expects that of what was sent to groups the good came, and nothing else but answers that a connection is not wanted.
func onlyGood(t *testing.T, taps map[string]*tap, good map[string]bool) {
	t.Helper()
	for name, tap := range taps {
		var before [][]byte
		came := true
		if good[name] {
			before, came = tap.until("good")
		}
		for len(tap.frames) > 0 {
			before = append(before, <-tap.frames)
		}
		if !came {
			t.Errorf("the group %s has not got what is good", name)
		}
		for _, f := range before {
			ours := len(f) >= 38 && (binary.BigEndian.Uint16(f[34:]) == 8080 || binary.BigEndian.Uint16(f[36:]) == 8080) // of connections before
			if !ours && (len(f) < 48 || f[47]&4 == 0) {
				t.Errorf("the group %s has got %d bytes: %q", name, len(f), f)
			}
		}
	}
}

// forgery are two hosts with two groups of network 7, one of 8 and taps at all of them; everything has been fast.
func forgery(t *testing.T) (f *fleet, taps map[string]*tap) {
	t.Helper()
	f = newFleet(t, 3, 1500) // the third has no groups
	f.connect()
	a, b := f.hosts[0], f.hosts[1]
	for _, h := range f.hosts[:2] {
		h.group(1, 7)
		h.group(2, 7)
		h.group(3, 8)
	}
	a.settled(1, b, 1)
	a.settled(3, b, 3)
	a.anyFast("before", a.ns[1], b.addr(1))
	b.anyFast("before", b.ns[1], a.addr(1))
	taps = map[string]*tap{}
	for _, h := range f.hosts[:2] {
		for i := uint32(1); i <= 3; i++ {
			taps[fmt.Sprintf("%d.%d", h.number, i)] = h.tap(h.ns[i])
		}
	}
	return f, taps
}

// TestFastPathForgedByGroups: what a group sends that it may not send reaches nobody.
func TestFastPathForgedByGroups(t *testing.T) {
	t.Parallel()
	f, taps := forgery(t)
	a, b := f.hosts[0], f.hosts[1]
	host, own := a.net.plan.mac(1, false), a.hardware(a.ns[1], "eth0")
	outside := netip.MustParseAddr("203.0.113.9")
	port := uint16(30_000)
	send := func(frames ...[]byte) { a.inject(a.ns[1], "eth0", frames...) }
	seg := func(text string, from, to netip.Addr) segment {
		port++
		return segment{from: netip.AddrPortFrom(from, port), to: netip.AddrPortFrom(to, 9), flags: 2, text: text, toMAC: host, byMAC: own}
	}
	for _, to := range []netip.Addr{a.addr(2), a.addr(3), b.addr(1), b.addr(3)} {
		for _, from := range []netip.Addr{a.addr(2), a.addr(3), b.addr(2), b.addr(3), outside, a.net.Gateway(), a.underlay()} {
			s := seg("bad: spoofed", from, to)
			marked := s
			marked.byMAC = [6]byte{0x0e, 0x53, 1, 2, 3, 4}
			send(s.frame(), marked.frame())
		}
		wrong := seg("bad: hardware address", a.addr(1), to)
		wrong.toMAC[5]++
		send(wrong.frame())
		for name, change := range map[string]func([]byte){
			"header of 16 bytes":  func(f []byte) { f[14] = 0x44 },
			"version 6":           func(f []byte) { f[14] = 0x65 },
			"says that is longer": func(f []byte) { f[16]++ },
			"says it is short":    func(f []byte) { f[17] = 19 },
			"of another protocol": func(f []byte) { f[12], f[13] = 0x88, 0xb5 },
		} {
			g := seg("bad: "+name, a.addr(1), to).frame()
			change(g)
			binary.BigEndian.PutUint16(g[24:], 0)
			binary.BigEndian.PutUint16(g[24:], sumUp(g[14:34]))
			send(g)
		}
		whole := seg("", a.addr(1), to).frame()
		for n := 14; n < len(whole); n++ {
			send(whole[:n])
		}
	}
	for _, to := range []netip.Addr{a.addr(3), b.addr(3)} {
		send(seg("bad: another network", a.addr(1), to).frame())
	}
	// Envelopes of a group's own.
	for _, from := range []netip.Addr{a.addr(1), a.underlay()} {
		for _, to := range []*hostWorld{a, b} {
			inner := to.direct(a, a.addr(2), to.addr(1), "bad: a group's envelope")
			send(frame(host, own, wrapped(from, to.underlay(), 1007, inner)))
		}
	}
	sent := a.slowPackets()
	for range 2 {
		send(seg("good", a.addr(1), a.addr(2)).frame(), seg("good", a.addr(1), b.addr(1)).frame())
		onlyGood(t, taps, map[string]bool{"1.2": true, "2.1": true})
	}
	if n := a.slowPackets(); n != sent {
		t.Errorf("%d good packets have taken the stack", n-sent)
	}
}

// broken is what may be wrong with an envelope and what is in it.
var broken = map[string]func([]byte){
	"outer header of 16 bytes": func(f []byte) { f[outerIPAt] = 0x44 },
	"outer header too long":    func(f []byte) { f[outerIPAt] = 0x4f },
	"outer version":            func(f []byte) { f[outerIPAt] = 0x65 },
	"outer first fragment":     func(f []byte) { f[outerIPAt+6] = 0x20 },
	"outer last fragment":      func(f []byte) { f[outerIPAt+7] = 9 },
	"outer longer":             func(f []byte) { f[outerIPAt+2]++ },
	"outer shorter":            func(f []byte) { f[outerIPAt+3] -= 8 },
	"another machine's":        func(f []byte) { f[outerIPAt+19]++ },
	"another port":             func(f []byte) { f[udpAt+3]++ },
	"UDP longer":               func(f []byte) { f[udpAt+4]++ },
	"UDP shorter":              func(f []byte) { f[udpAt+5] -= 8 },
	"UDP checksum":             func(f []byte) { f[udpAt+6] = 1 },
	"VXLAN without its flag":   func(f []byte) { f[vxlanAt] = 0 },
	"VXLAN reserved":           func(f []byte) { f[vxlanAt+1] = 1 },
	"inner receiver":           func(f []byte) { f[innerAt+5]++ },
	"inner protocol":           func(f []byte) { f[innerAt+12] = 0x88 },
	"inner header of 16 bytes": func(f []byte) { f[innerIPAt] = 0x44 },
	"inner header too long":    func(f []byte) { f[innerIPAt] = 0x4f },
	"inner longer":             func(f []byte) { f[innerIPAt+2]++ },
	"inner shorter":            func(f []byte) { f[innerIPAt+3] = 19 },
}

// TestFastPathForgedOnWire: what comes from other machines and says that it is direct, and is not what a peer's group sends.
func TestFastPathForgedOnWire(t *testing.T) {
	t.Parallel()
	f, taps := forgery(t)
	a, b := f.hosts[0], f.hosts[1]
	stranger := f.plug("192.0.2.99")
	to := a.hardware(a.host, "uplink")
	put := func(ns *os.File, from netip.Addr, vni uint32, inner []byte) []byte {
		return frame(to, b.hardware(ns, "uplink"), wrapped(from, a.underlay(), vni, inner))
	}
	fromPeer := func(vni uint32, inner []byte) []byte { return put(b.host, b.underlay(), vni, inner) }
	send := func(frames ...[]byte) { b.inject(b.host, "uplink", frames...) }
	b.inject(stranger, "uplink", put(stranger, netip.MustParseAddr("192.0.2.99"), 1007, a.direct(b, b.addr(1), a.addr(1), "bad: a stranger")))
	for _, from := range []string{"10.99.9.9", "10.99.1.2", "10.99.1.200", "203.0.113.9", "10.99.0.1", "192.0.2.11"} {
		send(fromPeer(1007, a.direct(b, netip.MustParseAddr(from), a.addr(1), "bad: from "+from)))
	}
	// Hosts trust each other to speak for third ones; around the stack they do not.
	slow := a.deviceRx()
	send(fromPeer(1007, a.direct(b, netip.MustParseAddr("10.99.3.1"), a.addr(1), "a third host's")))
	if _, came := taps["1.1"].until("a third host's"); !came || a.deviceRx() == slow {
		t.Errorf("what a peer says that a third host's group has sent: came %v, around the stack %v", came, a.deviceRx() == slow)
	}
	for _, vni := range []uint32{0, 1006, 1008, 4242, 1<<24 - 1} {
		send(fromPeer(vni, a.direct(b, b.addr(1), a.addr(1), fmt.Sprint("bad: id ", vni))))
	}
	send(fromPeer(1007, a.direct(b, b.addr(1), a.addr(3), "bad: into another network")), fromPeer(1008, a.direct(b, b.addr(3), a.addr(1), "bad: from another network")))
	for name, change := range broken {
		g := fromPeer(1007, a.direct(b, b.addr(1), a.addr(1), "bad: "+name))
		change(g)
		for _, at := range []int{outerIPAt, innerIPAt} { // nothing is wrong but what is meant
			g[at+10], g[at+11] = 0, 0
			binary.BigEndian.PutUint16(g[at+10:], sumUp(g[at:at+20]))
		}
		send(g)
	}
	whole := fromPeer(1007, a.direct(b, b.addr(1), a.addr(1), ""))
	for n := 14; n < len(whole); n++ {
		send(whole[:n])
	}
	rx := a.deviceRx()
	for range 2 {
		send(fromPeer(1007, a.direct(b, b.addr(1), a.addr(1), "good")), fromPeer(1008, a.direct(b, b.addr(3), a.addr(3), "good")))
		onlyGood(t, taps, map[string]bool{"1.1": true, "1.3": true})
	}
	if n := a.deviceRx(); n != rx {
		t.Errorf("%d good packets have taken the stack", n-rx)
	}

	// At random: nothing gets into a network by what was sent for another.
	good := fromPeer(1007, a.direct(b, b.addr(1), a.addr(1), "random"))
	var wild [][]byte
	for range 5_000 {
		g := bytes.Clone(good[:len(good)-rand.IntN(2)*rand.IntN(len(good)-14)])
		for range 1 + rand.IntN(3) {
			g[rand.IntN(len(g))] = byte(rand.Uint32())
		}
		copy(g, good[:12])
		wild = append(wild, g)
	}
	send(wild...)
	send(fromPeer(1008, a.direct(b, b.addr(3), a.addr(3), "good")))
	if before, came := taps["1.3"].until("good"); !came || strings.Contains(fmt.Sprintf("%s", before), "random") {
		t.Errorf("the group of the other network has got %q, and the good one: %v", before, came)
	}
	b.anyFast("after all that", b.ns[1], a.addr(1))
}

// deviceRx are how many packets of networks 7 and 8 have come to a host by the stack.
func (h *hostWorld) deviceRx() (n uint64) {
	h.t.Helper()
	h.in(h.host, func() error {
		for _, name := range []string{"v7", "v8"} {
			l, err := netlink.LinkByName("sw" + h.net.plan.instance + name)
			if err != nil {
				return err
			}
			n += l.Attrs().Statistics.RxPackets
		}
		return nil
	})
	return n
}
