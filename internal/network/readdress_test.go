package network

import (
	"context"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

func TestReaddress(t *testing.T) {
	w := newWorld(t)
	w.members(7, 1, 2)
	w.members(8, 3)
	ctx := context.Background()
	public := netip.MustParseAddr("198.51.100.3")
	if err := w.net.Join(ctx, Membership{Addr: addr(1), Network: 7, Public: public, Ports: []group.Port{{Number: 8080, Protocol: "TCP"}}}); err != nil {
		t.Fatal(err)
	}
	to := netip.MustParseAddr("10.99.200.9")
	m := Membership{Addr: to, Network: 7, Public: public, Ports: []group.Port{{Number: 8080, Protocol: "TCP"}}}
	before := w.net.Changes()
	if err := w.net.Readdress(ctx, w.slot(1), m); err != nil {
		t.Fatal(err)
	}
	if n := w.net.Changes() - before; n > 2 {
		t.Errorf("it took %d changes on the host, want at most 2", n)
	}
	meets := func(what string, ns *os.File, to, name, seen string) {
		t.Helper()
		for _, network := range []string{"tcp4", "udp4"} {
			got, from, err := w.who(ns, network, to)
			if got != name || name != "" && seen != "" && from != seen {
				t.Errorf("%s by %s: met %q, seen as %q, %v, want %q as %q", what, network, got, from, err, name, seen)
			}
		}
	}
	check := func() {
		t.Helper()
		meets("to the new address", w.ns[2], "10.99.200.9:8080", "1", "10.99.1.2")
		meets("from the new address", w.ns[1], "10.99.1.2:8080", "2", "10.99.200.9")
		meets("to the old address", w.ns[2], "10.99.1.1:8080", "", "")
		meets("to another network", w.ns[1], "10.99.1.3:8080", "", "")
		w.expectName("by the public address", w.out, public.String()+":8080", "1")
	}
	check()
	before = w.net.Changes()
	if err := w.net.Readdress(ctx, w.slot(1), m); err != nil || w.net.Changes()-before > 1 {
		t.Errorf("again: %v, %d changes", err, w.net.Changes()-before)
	}
	check()
	moved := Slot{Index: 1, Addr: to}
	if r, err := w.net.Sync(ctx, []Keep{{moved, &m}, {w.slot(2), &Membership{Addr: addr(2), Network: 7}}, {w.slot(3), &Membership{Addr: addr(3), Network: 8}}}); err != nil || r.Elements+r.Restored+r.Links > 0 {
		t.Errorf("Sync = %+v, %v, want no change", r, err)
	}

	// Another slot can have the old address, and only that slot.
	taken := Membership{Addr: to, Network: 8}
	if err := w.net.Readdress(ctx, w.slot(3), taken); fault.KindOf(err) != fault.Conflict {
		t.Errorf("an address in use: %v, want a conflict", err)
	}
	if err := w.net.Readdress(ctx, w.slot(3), Membership{Addr: netip.MustParseAddr("10.98.0.9")}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("an address outside: %v, want invalid", err)
	}
	if err := w.net.Readdress(ctx, w.slot(3), Membership{Addr: addr(1)}); err != nil { // into no network
		t.Fatal(err)
	}
	meets("to a slot of no network", w.ns[2], "10.99.1.1:8080", "", "")
	meets("from the host", w.host, "10.99.1.1:8080", "3", "10.99.0.1")
	check1 := Slot{Index: 3, Addr: addr(1)}
	if err := w.net.Detach(ctx, check1, moved); err != nil {
		t.Fatal(err)
	}
	if w.net.have.guard[to] != (element{}) || len(w.net.have.member[to]) > 0 {
		t.Errorf("left after Detach: %v", w.net.have)
	}
}

// expectName connects by TCP and expects a name.
func (w *world) expectName(what string, ns *os.File, to, name string) {
	w.t.Helper()
	if got, _, err := w.who(ns, "tcp4", to); got != name {
		w.t.Errorf("%s: met %q, %v, want %q", what, got, err, name)
	}
}

// TestReaddressGoesOn begins where a process was killed that had done a part of it.
func TestReaddressGoesOn(t *testing.T) {
	w := newWorld(t)
	w.members(7, 1, 2)
	from := w.slot(1)
	for parts := range 3 {
		to := from
		to.Addr = netip.AddrFrom4([4]byte{10, 99, 200, byte(1 + parts)})
		if parts > 0 {
			if err := w.net.moveRoute(from, to); err != nil {
				t.Fatal(err)
			}
		}
		if parts > 1 {
			inside, err := enterNetNS(from.NetNS)
			if err != nil {
				t.Fatal(err)
			}
			if err := moveInside(inside, from, to); err != nil {
				t.Fatal(err)
			}
			inside.close()
		}
		w.net.Close()
		w.open()
		if err := w.net.Readdress(context.Background(), from, Membership{Addr: to.Addr, Network: 7}); err != nil {
			t.Errorf("after %d parts: %v", parts, err)
		}
		if name, seen, err := w.who(w.ns[1], "tcp4", "10.99.1.2:8080"); name != "2" || seen != to.Addr.String() {
			t.Errorf("after %d parts: met %q, seen as %q, %v", parts, name, seen, err)
		}
		from = to
	}
}

// TestReaddressIsUndone breaks each part of it.
func TestReaddressIsUndone(t *testing.T) {
	w := newWorld(t)
	w.members(7, 1, 2)
	ctx := context.Background()
	m := Membership{Addr: netip.MustParseAddr("10.99.200.9"), Network: 7}
	same := func(what string) {
		t.Helper()
		if name, seen, err := w.who(w.ns[2], "tcp4", "10.99.1.1:8080"); name != "1" || seen != "10.99.1.2" {
			t.Errorf("%s: to the old address: %q, %q, %v", what, name, seen, err)
		}
		if name, seen, err := w.who(w.ns[1], "tcp4", "10.99.1.2:8080"); name != "2" || seen != "10.99.1.1" {
			t.Errorf("%s: from the old address: %q, %q, %v", what, name, seen, err)
		}
		for _, place := range []*os.File{w.ns[1], w.host} {
			w.in(place, func() error {
				routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
				addrs, err2 := netlink.AddrList(nil, netlink.FAMILY_V4)
				for _, r := range routes {
					if r.Dst != nil && r.Dst.IP.String() == m.Addr.String() {
						t.Errorf("%s: a route stays: %s", what, r)
					}
				}
				for _, a := range addrs {
					if a.IP.String() == m.Addr.String() {
						t.Errorf("%s: the address stays", what)
					}
				}
				if err == nil {
					err = err2
				}
				return err
			})
		}
	}
	if err := w.net.Readdress(ctx, Slot{Index: 99, Addr: addr(99), NetNS: w.ns[1]}, m); err == nil {
		t.Error("a slot whose link is not there has another address")
	}
	same("without a link")
	rename := func(from, to string) {
		w.in(w.ns[1], func() error {
			l, err := netlink.LinkByName(from)
			if err != nil {
				return err
			}
			return netlink.LinkSetName(l, to)
		})
	}
	rename("eth0", "eth9")
	if err := w.net.Readdress(ctx, w.slot(1), m); err == nil {
		t.Error("without eth0 it worked")
	}
	rename("eth9", "eth0")
	same("without eth0")
	table := w.net.plan.table
	w.net.plan.table = "spillway_none"
	if err := w.net.Readdress(ctx, w.slot(1), m); err == nil {
		t.Error("without a table it worked")
	}
	w.net.plan.table = table
	same("without a table")
	if err := w.net.Readdress(ctx, w.slot(1), m); err != nil {
		t.Errorf("after all that: %v", err)
	}
}
