package network

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/network/overlay"
)

// mirror answers connections with what they say, until they end.
func (h *hostWorld) mirror(ns *os.File, at string) {
	h.t.Helper()
	h.answer(ns, at, func(c net.Conn) { _, _ = io.Copy(c, c) })
}

// reach connects to where a mirror is.
func reach(ns *os.File, to string) (c *net.TCPConn, err error) {
	err = within1(ns, func() error {
		conn, err := net.DialTimeout("tcp4", to, 5*time.Second)
		if err == nil {
			c = conn.(*net.TCPConn)
			err = c.SetDeadline(time.Now().Add(40 * time.Second))
		}
		return err
	})
	return c, err
}

// exchange sends much, then does something else, and expects all of it back meanwhile.
func exchange(c net.Conn, size int, then func() error) error {
	body := make([]byte, size)
	for i := range body {
		body[i] = byte(rand.Uint32())
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(body)
		wrote <- errors.Join(err, then())
	}()
	got := make([]byte, size)
	n, err := io.ReadFull(c, got)
	if err = errors.Join(err, <-wrote); err == nil && !bytes.Equal(got, body) {
		err = fmt.Errorf("%d bytes came back otherwise", n)
	}
	return err
}

// through sends much over one connection, and expects all of it back, and no more.
func through(ns *os.File, to string, size int) error {
	c, err := reach(ns, to)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := exchange(c, size, c.CloseWrite); err != nil {
		return err
	}
	if n, err := c.Read(make([]byte, 1)); err != io.EOF {
		return fmt.Errorf("after all of it came %d bytes, %v", n, err)
	}
	return nil
}

// TestFastPathForgets: connections go on, both ways and with much in them, when what is known of them is lost all the time.
func TestFastPathForgets(t *testing.T) {
	t.Parallel()
	f, a, b := newPair(t)
	a.group(2, 7)
	for _, h := range f.hosts {
		h.mirror(h.ns[1], "0.0.0.0:9000")
	}
	a.mirror(a.ns[2], "0.0.0.0:9000")
	end, ended := make(chan struct{}), make(chan error, 2)
	for _, h := range f.hosts {
		go func() {
			tick := time.NewTicker(3 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-end:
					ended <- nil
					return
				case <-tick.C:
				}
				h.net.mu.Lock()
				err := h.net.fast.path.ForgetFlows()
				h.net.mu.Unlock()
				if err != nil {
					ended <- err
					return
				}
			}
		}()
	}
	var all sync.WaitGroup
	for what, c := range map[string]struct {
		ns *os.File
		to netip.Addr
	}{"there": {a.ns[1], b.addr(1)}, "back": {b.ns[1], a.addr(1)}, "on one host": {a.ns[1], a.addr(2)}} {
		all.Go(func() {
			for range 3 {
				if err := through(c.ns, c.to.String()+":9000", 4<<20); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
	all.Wait()
	close(end)
	if err := errors.Join(<-ended, <-ended); err != nil {
		t.Error(err)
	}
	a.anyFast("afterwards", a.ns[1], b.addr(1))
}

// TestFastPathBesideStack: a host that cannot have programs talks with one that has them.
func TestFastPathBesideStack(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, 1500)
	a, b := f.hosts[0], f.hosts[1]
	refused, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	refused.Close()
	a.net.fast.flows = refused // no path can be made with it
	f.connect()
	if a.net.fast.path != nil {
		t.Fatal("the host has programs")
	}
	for _, h := range f.hosts {
		h.group(1, 7)
		h.mirror(h.ns[1], "0.0.0.0:9000")
	}
	a.settled(1, b, 1)
	for _, way := range [][2]*hostWorld{{a, b}, {b, a}} {
		from, to := way[0], way[1]
		from.reaches(1, to, 1, true)
		if err := through(from.ns[1], to.addr(1).String()+":9000", 4<<20); err != nil {
			t.Errorf("from host %d: %v", from.number, err)
		}
		talk, err := from.call(from.ns[1], "tcp4", to.addr(1).String()+":8080")
		if err != nil {
			t.Fatal(err)
		}
		from.goesFast(fmt.Sprintf("from host %d", from.number), talk, from == b)
	}
}

// tuple is a packet of a connection that is there.
func (h *hostWorld) tuple(index uint32, c *call, text string) []byte {
	return segment{from: c.LocalAddr().(*net.TCPAddr).AddrPort(), to: c.RemoteAddr().(*net.TCPAddr).AddrPort(), flags: 0x10, text: text,
		toMAC: h.net.plan.mac(index, false), byMAC: h.net.plan.mac(index, true)}.frame()
}

// answering is a packet of the same connection, the other way.
func (h *hostWorld) answering(index uint32, c *call, text string) []byte {
	return segment{from: c.RemoteAddr().(*net.TCPAddr).AddrPort(), to: c.LocalAddr().(*net.TCPAddr).AddrPort(), flags: 0x10, text: text,
		toMAC: h.net.plan.mac(index, false), byMAC: h.net.plan.mac(index, true)}.frame()
}

// has expects a text among packets, or not.
func has(t *testing.T, what string, frames [][]byte, text string) {
	t.Helper()
	for _, f := range frames {
		if bytes.Contains(f, []byte(text)) {
			t.Errorf("%s: a packet came that must not: %q", what, f)
		}
	}
}

// TestFastPathFences: what a host sends to a peer that has been withdrawn, and what comes from it, is cut off when SetOverlay
// returns, though the peer knows nothing of it.
func TestFastPathFences(t *testing.T) {
	t.Parallel()
	_, a, b := newPair(t)
	talk, err := a.call(a.ns[1], "tcp4", b.addr(1).String()+":8080")
	if err != nil {
		t.Fatal(err)
	}
	a.goesFast("before", talk, true)
	here, there := a.tap(a.ns[1]), b.tap(b.ns[1])
	speak := func(text string) {
		a.inject(a.ns[1], "eth0", a.tuple(1, talk, text))
		b.inject(b.ns[1], "eth0", b.answering(1, talk, text))
	}
	speak("first word")
	for _, tap := range []*tap{here, there} {
		if _, came := tap.until("first word"); !came {
			t.Fatal("nothing comes before the peer is withdrawn")
		}
	}
	// That what comes after it fails does not matter: another's device is in the way of a network.
	a.in(a.host, func() error {
		return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: "another's"}, VxlanId: 4711, Port: overlay.DefaultPort})
	})
	alone := Overlay{Underlay: a.underlay(), Networks: append([]OverlayNetwork{{Number: 9, VNI: 4711}}, testNetworks...)}
	if err := a.net.SetOverlay(t.Context(), alone); fault.KindOf(err) != fault.Conflict {
		t.Fatalf("an overlay with another's network: %v, want a conflict", err)
	}
	speak("cut off")
	a.see(b)
	a.settled(1, b, 1)
	speak("last word")
	for what, tap := range map[string]*tap{"from the peer": here, "to the peer": there} {
		frames, came := tap.until("last word")
		if has(t, what, frames, "cut off"); !came {
			t.Errorf("%s: nothing comes when it is there again", what)
		}
	}
}

// TestFastPathAddressGoesOn: a group of another network has the address of one that was just removed; what still comes for the old
// connections does not come to it.
func TestFastPathAddressGoesOn(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, 1500)
	f.connect()
	a, b := f.hosts[0], f.hosts[1]
	for _, h := range f.hosts {
		h.group(1, 7)
		h.group(3, 8)
	}
	a.group(2, 7)
	a.settled(1, b, 1)
	a.settled(3, b, 3)
	old := map[*hostWorld]*call{}
	for _, h := range f.hosts {
		c, err := h.call(h.ns[1], "tcp4", a.addr(2).String()+":8080")
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := c.say(); err != nil {
			t.Fatal(err)
		}
		old[h] = c
	}
	if err := a.net.Detach(t.Context(), Slot{Index: 2, Addr: a.addr(2)}); err != nil {
		t.Fatal(err)
	}
	ns := newNS(t)
	if err := a.net.Attach(t.Context(), Slot{Index: 9, Addr: a.addr(2), NetNS: ns}); err != nil {
		t.Fatal(err)
	}
	heir := a.tap(ns)
	if err := a.net.Join(t.Context(), Membership{Addr: a.addr(2), Network: 8}); err != nil {
		t.Fatal(err)
	}
	for _, h := range f.hosts {
		h.inject(h.ns[1], "eth0", h.tuple(1, old[h], "for the old one"))
		s := segment{from: netip.AddrPortFrom(h.addr(3), 40_000), to: netip.AddrPortFrom(a.addr(2), 9), flags: 2, text: "for the new one", toMAC: h.net.plan.mac(3, false)}
		h.inject(h.ns[3], "eth0", s.frame())
		frames, came := heir.until("for the new one")
		if has(t, fmt.Sprintf("from host %d", h.number), frames, "for the old one"); !came {
			t.Errorf("nothing comes to the new group from host %d", h.number)
		}
	}
}

// TestFastPathOnOneHost: connections between groups of one host pass neither the host's ends of their links nor its rules, and
// their bytes are counted.
func TestFastPathOnOneHost(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, 1500)
	f.connect()
	a := f.hosts[0]
	a.group(1, 7)
	a.group(2, 7)
	a.mirror(a.ns[2], "0.0.0.0:9000")
	ends := func() uint64 { return a.sent(a.net.plan.link(1)) + a.sent(a.net.plan.link(2)) }
	start := ends()
	if err := through(a.ns[1], a.addr(2).String()+":9000", 4<<20); err != nil {
		t.Fatal(err)
	}
	if n := ends() - start; n > 10 { // those of a connection before
		t.Errorf("%d packets have taken the stack", n)
	}
	// What asks for the same connection again and has to take the stack is no newcomer.
	a.speak(a.ns[2], "0.0.0.0:9001", "again")
	talk, err := a.call(a.ns[1], "tcp4", a.addr(2).String()+":9001")
	if err != nil {
		t.Fatal(err)
	}
	far := a.tuple(1, talk, "asked again")
	far[22], far[24], far[25], far[47] = 2, 0, 0, 2 // few hops are left
	binary.BigEndian.PutUint16(far[24:], sumUp(far[14:34]))
	there := a.tap(a.ns[2])
	a.inject(a.ns[1], "eth0", far)
	if _, came := there.until("asked again"); !came {
		t.Error("what asks for a live connection again does not come")
	}
	for i := uint32(1); i <= 2; i++ {
		if c, err := a.net.Stats(Slot{Index: i}); err != nil || c.RxBytes < 4<<20 || c.TxBytes < 4<<20 || c.RxBytes > 6<<20 || c.TxBytes > 6<<20 {
			t.Errorf("the counters of group %d are %+v, %v, want 4 MiB each way", i, c, err)
		}
	}
}

// TestFastPathSizes: packets go as large as links let them; groups that have a link as large as the hosts' learn what is too large.
func TestFastPathSizes(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, 1500)
	a, b := f.hosts[0], f.hosts[1]
	a.group(1, 7) // with a link of 1500 bytes, as on one machine
	f.connect()
	b.group(1, 7)
	a.group(2, 7)
	a.settled(2, b, 1)
	b.mirror(b.ns[1], "0.0.0.0:9000")
	a.mirror(a.ns[1], "0.0.0.0:9000")
	large := b.tap(b.ns[1])
	if err := through(a.ns[2], b.addr(1).String()+":9000", 8<<20); err != nil {
		t.Error(err)
	}
	most := 0
	for len(large.frames) > 0 {
		most = max(most, len(<-large.frames))
	}
	if most < 30_000 {
		t.Errorf("the largest packet has come with %d bytes, want those that were sent in one piece", most)
	}
	slow := a.slowPackets()
	told := a.tap(a.ns[1])
	// The receiver's link says how large segments may be; this asks for more.
	s := segment{from: netip.AddrPortFrom(a.addr(1), 40_000), to: netip.AddrPortFrom(b.addr(1), 9), flags: 2, text: string(make([]byte, 1460)),
		toMAC: a.net.plan.mac(1, false), byMAC: a.net.plan.mac(1, true)}
	f1 := s.frame()
	f1[20] = 0x40 // do not fragment
	f1[24], f1[25] = 0, 0
	binary.BigEndian.PutUint16(f1[24:], sumUp(f1[14:34]))
	a.inject(a.ns[1], "eth0", f1)
	if _, came := told.until("\x03\x04"); !came {
		t.Error("nobody has said that a packet is too large")
	}
	for what, c := range map[string]struct {
		ns *os.File
		to netip.Addr
	}{"from the large link": {a.ns[1], b.addr(1)}, "to the large link": {b.ns[1], a.addr(1)}} {
		if err := through(c.ns, c.to.String()+":9000", 4<<20); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := a.slowPackets() - slow; n > 500 {
		t.Errorf("%d packets have taken the stack", n)
	}
}

// TestFastPathOverPlainWire: devices that neither segment packets nor sum them up are given what they can send.
func TestFastPathOverPlainWire(t *testing.T) {
	t.Parallel()
	f, a, b := newPair(t)
	for _, h := range f.hosts {
		h.in(h.host, func() error { return plain("uplink") })
		h.mirror(h.ns[1], "0.0.0.0:9000")
	}
	wire := b.tapAt(b.host, "uplink")
	for _, ends := range [][2]*hostWorld{{a, b}, {b, a}} {
		c, err := reach(ends[0].ns[1], ends[1].addr(1).String()+":9000")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close() // what is lost, as much of it is, and sent again behind the ends of both sides takes the stack
		slow := a.slowPackets() + b.slowPackets()
		if err := exchange(c, 4<<20, func() error { return nil }); err != nil {
			t.Errorf("from host %d: %v", ends[0].number, err)
		}
		if n := a.slowPackets() + b.slowPackets() - slow; n != 0 {
			t.Errorf("%d packets from host %d and back have taken the stack", n, ends[0].number)
		}
	}
	frames := 0
	for ; len(wire.frames) > 0; frames++ {
		if f := <-wire.frames; len(f) > 1514 {
			t.Fatalf("a frame of %d bytes was on the wire", len(f))
		}
	}
	if frames == 0 {
		t.Error("nothing was on the wire")
	}
}

// plain switches off what a device does for the kernel.
func plain(device string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	for _, command := range []uint32{unix.ETHTOOL_STSO, unix.ETHTOOL_SGSO, unix.ETHTOOL_SSG, unix.ETHTOOL_STXCSUM, unix.ETHTOOL_SRXCSUM} {
		value := [2]uint32{command, 0}
		request := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&value)}
		copy(request.name[:], device)
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); e != 0 {
			return fmt.Errorf("switch %#x off: %w", command, e)
		}
	}
	return nil
}

// TestFastPathLiveConnection: a connection by a service address that would have the ports of a direct one that lives is not let
// in; when that has ended it is.
func TestFastPathLiveConnection(t *testing.T) {
	t.Parallel()
	_, a, b := newPair(t)
	a.group(2, 7)
	dial := func(to string, within time.Duration) (c net.Conn, err error) {
		err = within1(a.ns[1], func() (err error) {
			d := net.Dialer{Timeout: within, LocalAddr: &net.TCPAddr{IP: a.addr(1).AsSlice(), Port: 33_334}, Control: func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
			}}
			c, err = d.DialContext(context.Background(), "tcp4", to)
			return err
		})
		return c, err
	}
	for _, endpoint := range []netip.Addr{b.addr(1), a.addr(2)} {
		to := endpoint.String() + ":8080"
		a.world.set(both(7, to))
		direct, err := dial(to, 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		talk := newCall(direct)
		for range 2 {
			if _, _, err := talk.say(); err != nil {
				t.Errorf("the direct connection to %s: %v", endpoint, err)
			}
			if c, err := dial(cluster+":80", patience); err == nil {
				t.Errorf("a connection by a service address has the ports of a live one to %s", endpoint)
				c.Close()
			}
		}
		slow := a.slowPackets() + a.sent(a.net.plan.link(2))
		if _, _, err := talk.say(); err != nil {
			t.Errorf("the direct connection to %s after that: %v", endpoint, err)
		}
		if n := a.slowPackets() + a.sent(a.net.plan.link(2)) - slow; n != 0 {
			t.Errorf("the direct connection to %s takes the stack now", endpoint)
		}
		if err := direct.(*net.TCPConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if _, err := talk.in.ReadString('\n'); err != io.EOF {
			t.Errorf("the end of the direct connection: %v", err)
		}
		direct.Close()
		served, err := dial(cluster+":80", 10*time.Second)
		if err != nil {
			t.Errorf("a service address after the direct connection to %s has ended: %v", endpoint, err)
			continue
		}
		if _, _, err := newCall(served).say(); err != nil {
			t.Errorf("a service address after the direct connection to %s has ended: %v", endpoint, err)
		}
		_ = served.(*net.TCPConn).SetLinger(0)
		served.Close()
	}
}
