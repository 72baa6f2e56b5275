package network

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
)

// TestOverlayReach: groups of a network reach each other wherever they are, and no others.
func TestOverlayReach(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3, 1500)
	f.connect()
	a, b, c := f.hosts[0], f.hosts[1], f.hosts[2]
	for _, h := range f.hosts {
		h.group(1, 7)
		h.group(2, 8)
	}
	a.group(3, 7)
	c.group(4, 0)
	a.settled(1, b, 1)
	for _, from := range f.hosts {
		for _, to := range f.hosts {
			for _, i := range []uint32{1, 2} {
				from.reaches(i, to, i, true)
				from.reaches(i, to, 3-i, false)
			}
		}
	}
	a.reaches(3, b, 1, true)
	a.reaches(1, c, 4, false)
	c.reaches(4, a, 1, false)
	b.swallow(b.ns[1], "0.0.0.0:9000")
	if err := bulk(a.ns[1], b.addr(1).String()+":9000", 4<<20); err != nil {
		t.Errorf("4 MiB: %v", err)
	}
	if !echo(a.ns[1], b.addr(1), 4000) {
		t.Error("an echo of 4000 bytes did not come back")
	}
	if got := mtuOf(t, a.ns[1]); got != 1450 {
		t.Errorf("a group's link has an MTU of %d, want 1450", got)
	}
	if err := a.net.Leave(context.Background(), a.addr(1)); err != nil {
		t.Fatal(err)
	}
	b.reaches(1, a, 1, false)
	a.reaches(1, b, 1, false)
}

func mtuOf(t *testing.T, ns *os.File) (mtu int) {
	t.Helper()
	if err := within1(ns, func() error {
		l, err := netlink.LinkByName("eth0")
		if err == nil {
			mtu = l.Attrs().MTU
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return mtu
}

// TestOverlayForgery sends what hosts and groups must not.
func TestOverlayForgery(t *testing.T) {
	t.Parallel()
	f, a, b := newPair(t)
	b.group(2, 7)
	stranger := f.plug("192.0.2.66")
	a.ns[9] = newNS(t)
	if err := a.net.Attach(context.Background(), Slot{Index: 9, Addr: a.addr(9), NetNS: a.ns[9]}); err != nil {
		t.Fatal(err)
	}
	if err := a.net.Join(context.Background(), Membership{Addr: a.addr(9), Network: 7}); err != nil {
		t.Fatal(err)
	}
	heard := a.listen(a.ns[9], "0.0.0.0:8080")
	remote, local, outside := b.addr(1), a.addr(1), netip.MustParseAddr("192.0.2.66")
	forged := func(what string, from *os.File, packet []byte, want string) {
		t.Helper()
		if err := sendUDP(from, a.outerPort(), packet); err != nil && !errors.Is(err, unix.EPERM) { // already its own host may refuse it
			t.Fatal(err)
		}
		hear := heard.next
		if want != "" {
			hear = heard.surely
		}
		if got := hear(); got != want {
			t.Errorf("%s: heard %q, want %q", what, got, want)
		}
	}
	forged("from a peer", b.host, a.forge(1007, remote, a.addr(9), "real"), remote.String()+" real")
	forged("from a stranger", stranger, a.forge(1007, remote, a.addr(9), "strange"), "")
	forged("from the host itself", a.host, a.forge(1007, remote, a.addr(9), "own"), "")
	forged("with the source of a local group", b.host, a.forge(1007, local, a.addr(9), "local"), "")
	forged("with the gateway as its source", b.host, a.forge(1007, a.net.Gateway(), a.addr(9), "gateway"), "")
	forged("with a source outside", b.host, a.forge(1007, outside, a.addr(9), "outside"), "")
	forged("over another network", b.host, a.forge(1008, remote, a.addr(9), "8"), "")
	forged("from a group of the peer", b.ns[1], a.forge(1007, b.addr(2), a.addr(9), "grouped"), "")
	forged("from a group here", a.ns[1], a.forge(1007, remote, a.addr(9), "here"), "")

	// What is for the host is nobody's.
	host := a.listen(a.host, "0.0.0.0:8080")
	for _, to := range []netip.Addr{a.underlay(), a.net.Gateway()} {
		if err := sendUDP(b.host, a.outerPort(), a.forge(1007, remote, to, "host")); err != nil {
			t.Fatal(err)
		}
	}
	if got := host.next(); got != "" {
		t.Errorf("the host heard %q over the overlay", got)
	}

}

// TestOverlayKeepsGroupsFromHosts: groups reach no host of the fleet, and take no address of another group.
func TestOverlayKeepsGroupsFromHosts(t *testing.T) {
	t.Parallel()
	f, a, b := newPair(t)
	b.group(2, 7)
	stranger := f.plug("192.0.2.66")
	b.serve(b.host, "0.0.0.0:9100")
	a.expect("a group to a peer", a.ns[1], b.underlay().String()+":9100", "")
	a.expect("a group to its host", a.ns[1], a.underlay().String()+":9100", "")
	a.expect("a host to a peer", a.host, b.underlay().String()+":9100", a.underlay().String())
	a.serve(stranger, "0.0.0.0:9100")
	a.expect("a group to a stranger", a.ns[1], "192.0.2.66:9100", a.underlay().String())

	// A group that takes another's address is stopped where it is.
	a.in(a.ns[1], func() error { return up("eth0", b.addr(2).String()+"/32") })
	spoofed := b.listen(b.ns[1], "0.0.0.0:5000")
	b.in(a.ns[1], func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		if err := unix.Bind(s, &unix.SockaddrInet4{Addr: b.addr(2).As4()}); err != nil {
			return err
		}
		return unix.Sendto(s, []byte("spoofed"), 0, &unix.SockaddrInet4{Port: 5000, Addr: b.addr(1).As4()})
	})
	if got := spoofed.next(); got != "" {
		t.Errorf("a group with another's address was heard: %q", got)
	}
}

// TestOverlayFence takes a peer away and brings it back; others notice nothing.
func TestOverlayFence(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3, 1500)
	f.connect()
	a, b, c := f.hosts[0], f.hosts[1], f.hosts[2]
	for _, h := range f.hosts {
		h.group(1, 7)
	}
	a.settled(1, b, 1)
	a.settled(1, c, 1)
	talk, err := a.call(a.ns[1], "tcp4", c.addr(1).String()+":8080")
	if err != nil {
		t.Fatal(err)
	}
	cut, err := a.call(a.ns[1], "tcp4", b.addr(1).String()+":8080")
	if err != nil {
		t.Fatal(err)
	}
	if name, _, err := cut.say(); name != "2.1" {
		t.Fatalf("before: %q, %v", name, err)
	}
	goesOn := func(when string) {
		t.Helper()
		if name, _, err := talk.say(); name != "3.1" {
			t.Errorf("%s: a connection to another peer: %q, %v", when, name, err)
		}
	}
	a.see(c)
	goesOn("a peer fenced")
	a.reaches(1, b, 1, false)
	b.reaches(1, a, 1, false)
	if name, _, err := cut.say(); err == nil {
		t.Errorf("a connection to a fenced peer goes on: %q", name)
	}
	a.reaches(1, c, 1, true)
	b.reaches(1, c, 1, true)
	a.see(b, c)
	goesOn("a peer back")
	a.reaches(1, b, 1, true)
	b.reaches(1, a, 1, true)

	// Networks go and come likewise.
	one := a.overlay
	one.Networks = testNetworks[1:]
	a.set(one)
	a.reaches(1, c, 1, false)
	a.see(b, c)
	a.settled(1, c, 1)
	goesOn("its network away and back")

	// A peer moves to another address, with its block.
	moved := a.overlay
	moved.Peers = []Peer{{Underlay: netip.MustParseAddr("192.0.2.99"), Blocks: b.peer().Blocks}, c.peer()}
	a.set(moved)
	goesOn("a peer moved")
	a.reaches(1, b, 1, false)
	a.see(b, c)
	a.reaches(1, b, 1, true)

	// An underlay that is gone keeps no peer in.
	lost := a.overlay
	lost.Underlay = netip.MustParseAddr("192.0.2.200")
	lost.Peers = []Peer{c.peer()}
	if err := a.net.SetOverlay(context.Background(), lost); fault.KindOf(err) != fault.Unavailable || !strings.Contains(err.Error(), "192.0.2.200") {
		t.Errorf("without the underlay's address: %v", err)
	}
	b.reaches(1, a, 1, false)
}

// TestOverlayService has endpoints of a service address on other hosts.
func TestOverlayService(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3, 1500)
	f.connect()
	a, b, c := f.hosts[0], f.hosts[1], f.hosts[2]
	for _, h := range f.hosts {
		h.group(1, 7)
	}
	b.group(2, 8)
	a.settled(1, b, 1)
	a.settled(1, c, 1)
	a.world.set(both(7, "10.99.1.1:8080", "10.99.2.1:8080", "10.99.3.1:8080"))
	for _, network := range []string{"tcp4", "udp4"} {
		got := map[string]int{}
		for range 90 {
			name, seen, err := a.who(a.ns[1], network, cluster+":80")
			if err != nil || seen != a.addr(1).String() && name != "1.1" {
				t.Fatalf("%s: %s saw %q, %v", network, name, seen, err)
			}
			got[name]++
		}
		for _, name := range []string{"1.1", "2.1", "3.1"} {
			if got[name] < 10 {
				t.Errorf("%s: endpoint %s took %d of 90 connections", network, name, got[name])
			}
		}
	}
	a.world.set(both(7, "10.99.2.2:8080"))
	if name, _, err := a.who(a.ns[1], "tcp4", cluster+":80"); err == nil {
		t.Errorf("a service address led to %s, of another network", name)
	}
	// A host may be an endpoint, for those that have the right, from every host.
	b.speak(b.host, "0.0.0.0:6443", "machine")
	s := both(7, "192.0.2.12:6443")
	a.world.set(s)
	if name, _, err := a.who(a.ns[1], "tcp4", cluster+":80"); err == nil {
		t.Errorf("without the right a service address led to %s on a peer", name)
	}
	s.Hosts = true
	a.world.set(s)
	for _, network := range []string{"tcp4", "udp4"} {
		if name, seen, err := a.who(a.ns[1], network, cluster+":80"); network == "tcp4" && (name != "machine" || seen != "192.0.2.11") {
			t.Errorf("%s to a peer: met %q, seen as %q, %v", network, name, seen, err)
		}
	}
	vx := both(7, "192.0.2.12:4797")
	vx.Hosts = true
	a.world.set(vx)
	heard := b.listen(b.ns[1], "0.0.0.0:5001")
	packet := b.forge(1007, a.addr(1), b.addr(1), "by service")
	packet[8+14+20+2], packet[8+14+20+3] = 5001>>8, 5001&0xff
	if err := sendUDP(a.host, b.outerPort(), packet); err != nil {
		t.Fatal(err)
	}
	if got := heard.next(); !strings.HasSuffix(got, "by service") {
		t.Fatalf("the packet itself is wrong: heard %q", got)
	}
	if err := sendUDP(a.ns[1], netip.MustParseAddrPort(cluster+":80"), packet); err != nil {
		t.Fatal(err)
	}
	if got := heard.next(); got != "" {
		t.Errorf("a service address leads groups to the VXLAN port of a peer: heard %q", got)
	}
}

// TestOverlaySizes: groups whose links are as large as before there was an overlay, and other sizes of the underlay.
func TestOverlaySizes(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, 1500)
	a, b := f.hosts[0], f.hosts[1]
	a.group(1, 7)
	b.group(1, 7)
	f.connect()
	a.settled(1, b, 1)
	if got := mtuOf(t, a.ns[1]); got != 1500 {
		t.Errorf("the link of a group that was there has an MTU of %d, want 1500", got)
	}
	b.swallow(b.ns[1], "0.0.0.0:9000")
	if err := bulk(a.ns[1], b.addr(1).String()+":9000", 4<<20); err != nil {
		t.Errorf("4 MiB between links of 1500 bytes: %v", err)
	}
	b.listen(b.ns[1], "0.0.0.0:5000")
	large := strings.Repeat("x", 1460)
	if err := sendUDP(a.ns[1], netip.AddrPortFrom(b.addr(1), 5000), []byte(large)); err != nil { // known by now
		t.Errorf("a large packet of UDP: %v", err)
	}
	b.group(2, 7)
	a.group(2, 7)
	b.swallow(b.ns[2], "0.0.0.0:9000")
	for _, i := range []uint32{1, 2} {
		if err := bulk(a.ns[i], b.addr(3-i).String()+":9000", 1<<20); err != nil {
			t.Errorf("1 MiB between links of different size: %v", err)
		}
	}
	jumbo := newFleet(t, 2, 9000)
	jumbo.connect()
	for _, h := range jumbo.hosts {
		h.group(1, 7)
	}
	jumbo.hosts[0].settled(1, jumbo.hosts[1], 1)
	if got := mtuOf(t, jumbo.hosts[0].ns[1]); got != 1500 {
		t.Errorf("over a large underlay a link has an MTU of %d, want 1500", got)
	}
}
