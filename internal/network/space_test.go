package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/network/overlay"
)

// Virtual networks of the tests, of instance 00aa.
var (
	firstVirtual  = VirtualNetwork("00aa", 1)
	secondVirtual = VirtualNetwork("00aa", 2)
	firstSpace    = Space{firstVirtual, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/25")}}
	secondSpace   = Space{secondVirtual, []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24"), netip.MustParsePrefix("172.16.0.0/12")}}
)

// virtual makes a group of a virtual network that speaks on port 8080, named by its address; with a public address or "".
func (w *world) virtual(index, network uint32, at, public string) *os.File {
	w.t.Helper()
	w.ns[index] = newNS(w.t)
	a := netip.MustParseAddr(at)
	if err := w.net.Attach(context.Background(), Slot{Index: index, Addr: a, NetNS: w.ns[index], Network: network}); err != nil {
		w.t.Fatal(err)
	}
	m := Membership{Addr: a, Network: network}
	if public != "" {
		m.Public, m.Ports = netip.MustParseAddr(public), []group.Port{{Number: 8080, Protocol: "TCP"}, {Number: 8080, Protocol: "UDP"}}
	}
	if err := w.net.Join(context.Background(), m); err != nil {
		w.t.Fatal(err)
	}
	w.speak(w.ns[index], "0.0.0.0:8080", at)
	w.carries10(at)
	return w.ns[index]
}

// carries10 is carries for a group of a virtual network, which the machine reaches from the gateway's address only.
func (w *world) carries10(at string) {
	w.t.Helper()
	var err error
	for range 1000 {
		if _, err = w.fromGateway(at + ":8080"); err == nil {
			return
		}
	}
	w.t.Fatalf("no packet comes through to %s: %v", at, err)
}

// fromGateway connects from the machine, with the gateway's address.
func (w *world) fromGateway(to string) (seen string, err error) {
	err = within1(w.host, func() error {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: w.net.Gateway().AsSlice()}, Timeout: patience}
		c, err := d.Dial("tcp4", to)
		if err != nil {
			return err
		}
		defer c.Close()
		seen = c.LocalAddr().String()
		return nil
	})
	return seen, err
}

func (w *world) enter(spaces ...Space) {
	w.t.Helper()
	for _, s := range spaces {
		if err := w.net.EnterSpace(context.Background(), s); err != nil {
			w.t.Fatal(err)
		}
	}
}

// address gives a device more addresses.
func (w *world) address(ns *os.File, device string, list ...string) {
	w.t.Helper()
	w.in(ns, func() error {
		var errs []error
		for _, a := range list {
			errs = append(errs, up(device, a))
		}
		return errors.Join(errs...)
	})
}

// meets expects that something is met by TCP and UDP, and seen as an address; name "" that nobody is.
func (w *world) meets(m meeting) {
	w.t.Helper()
	var all sync.WaitGroup
	for _, network := range []string{"tcp4", "udp4"} {
		all.Go(func() {
			got, from, err := w.who(m.ns, network, m.to)
			if got != m.name || m.name != "" && from != m.seen {
				w.t.Errorf("%s: to %s by %s: met %q, seen as %q, %v, want %q as %q", m.what, m.to, network, got, from, err, m.name, m.seen)
			}
		})
	}
	all.Wait()
}

// meeting is a case of meets.
type meeting struct {
	what           string
	ns             *os.File
	to, name, seen string
}

// meetAll looks at all cases at once: those in which nobody is met take their time.
func (w *world) meetAll(list []meeting) {
	w.t.Helper()
	var all sync.WaitGroup
	for _, m := range list {
		all.Go(func() { w.meets(m) })
	}
	all.Wait()
}

// besideLAN is a machine whose own network is 10.0.0.0/24, with groups that have addresses of it.
func besideLAN(t *testing.T) *world {
	w := newWorld(t)
	w.address(w.host, "uplink", "10.0.0.200/24")
	w.address(w.out, "uplink", "10.0.0.9/24", "10.0.0.10/24")
	for _, lan := range []string{"10.0.0.9", "10.0.0.10"} {
		w.speak(w.out, lan+":8080", "lan"+lan[strings.LastIndex(lan, ".")+1:])
	}
	w.speak(w.out, "203.0.113.1:8080", "out")
	w.speak(w.host, "10.0.0.200:8080", "machine")
	w.speak(w.host, "10.99.0.1:53", "names")
	w.enter(firstSpace, secondSpace)
	w.virtual(1, firstVirtual, "10.0.0.4", "")
	w.virtual(2, firstVirtual, "10.0.0.9", "")
	w.virtual(3, secondVirtual, "10.0.1.4", "")
	w.members(7, 4)
	w.virtual(5, firstVirtual, "10.0.0.5", "198.51.100.3")
	return w
}

// checkBesideLAN looks at who meets whom. A machine that checks sources strictly keeps groups of two virtual networks from meeting
// by a public address.
func (w *world) checkBesideLAN(strict bool) {
	w.t.Helper()
	cases := []meeting{
		{"in one network", w.ns[1], "10.0.0.9:8080", "10.0.0.9", "10.0.0.4"},
		{"in one network, back", w.ns[2], "10.0.0.4:8080", "10.0.0.4", "10.0.0.9"},
		{"the machine to its own network", w.host, "10.0.0.9:8080", "lan9", "10.0.0.200"},
		{"the machine to its own network", w.host, "10.0.0.10:8080", "lan10", "10.0.0.200"},
		{"a group to the machine's network, in its own space", w.ns[1], "10.0.0.10:8080", "", ""},
		{"a group of another network to the machine's", w.ns[3], "10.0.0.9:8080", "lan9", "10.0.0.200"},
		{"a group of no virtual network to the machine's", w.ns[4], "10.0.0.9:8080", "lan9", "10.0.0.200"},
		{"to another virtual network", w.ns[1], "10.0.1.4:8080", "", ""},
		{"to another virtual network, back", w.ns[3], "10.0.0.4:8080", "", ""},
		{"to a group of the range", w.ns[1], "10.99.1.4:8080", "", ""},
		{"from a group of the range", w.ns[4], "10.0.0.4:8080", "", ""},
		{"out", w.ns[1], "203.0.113.1:8080", "out", "203.0.113.2"},
		{"to names", w.ns[1], "10.99.0.1:53", "names", "10.0.0.4"},
		{"to the machine", w.ns[1], "10.0.0.200:8080", "", ""},
		{"the machine's network to the machine", w.out, "10.0.0.200:8080", "machine", "10.0.0.9"},
		{"by the public address", w.out, "198.51.100.3:8080", "10.0.0.5", "203.0.113.1"},
	}
	for what, ns := range map[string]*os.File{"a neighbour": w.ns[1], "a group of another network": w.ns[3], "a group of the range": w.ns[4], "the machine": w.host, "itself": w.ns[5]} {
		if !strict || ns != w.ns[3] {
			cases = append(cases, meeting{what + " by the public address", ns, "198.51.100.3:8080", "10.0.0.5", "10.99.0.1"})
		}
	}
	w.meetAll(cases)
	if !echo(w.ns[1], netip.MustParseAddr("10.99.0.1"), 56) || !echo(w.ns[1], netip.MustParseAddr("10.0.0.9"), 56) {
		w.t.Error("an echo did not come back")
	}
	if _, err := w.fromGateway("10.0.0.9:8080"); err != nil {
		w.t.Errorf("the machine from the gateway's address: %v", err)
	}
}

// TestSpaceBesideTheMachinesNetwork: an address that is in the machine's own network, too, is a group's to groups of its virtual
// network, and nobody else's.
func TestSpaceBesideTheMachinesNetwork(t *testing.T) {
	t.Parallel()
	w := besideLAN(t)
	w.checkBesideLAN(false)
	w.in(w.host, func() error { return os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("1"), 0) })
	w.checkBesideLAN(true)
	w.net.Close()
	w.open()
	before := w.net.way.sent.Load()
	w.enter(firstSpace, secondSpace)
	if err := w.net.SyncSpaces(t.Context(), []Space{firstSpace, secondSpace}); err != nil || w.net.way.sent.Load() != before {
		t.Errorf("what is there again: %v, %d changes", err, w.net.way.sent.Load()-before)
	}
	w.checkBesideLAN(true)
	smaller := Space{firstVirtual, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/29"), netip.MustParsePrefix("10.0.0.9/32")}}
	w.enter(smaller)
	w.meets(meeting{"to an address that the space has given up", w.ns[1], "10.0.0.10:8080", "lan10", "10.0.0.200"})
	if err := w.net.SyncSpaces(t.Context(), []Space{firstSpace}); err != nil {
		t.Fatal(err)
	}
	w.meets(meeting{"to an address that the space has again", w.ns[1], "10.0.0.10:8080", "", ""})
	routes, rules, err := w.net.readSpaces(func(uint32) bool { return true })
	if err != nil || len(routes) != 1 || len(rules) != 2 {
		t.Errorf("of one space there is %v, %v, %v", routes, rules, err)
	}
	w.in(w.host, func() error { return Purge(context.Background(), w.net.cfg) })
	if got := (&hostWorld{world: w}).remains(); got != "" {
		t.Errorf("after a purge there is still %s", got)
	}
}

// remains are rules about routes and routes outside the machine's own tables.
func (h *hostWorld) remains() string {
	h.open()
	return h.leftovers()
}

// TestSpaceGoesOn begins where a process was killed that had done a part of it, or that left what nobody wants.
func TestSpaceGoesOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for what, left := range map[string]func() []*message{
		"the range alone": func() []*message { return []*message{nowhere{firstVirtual, firstSpace.Prefixes[0]}.message()} },
		"the rule of all": func() []*message {
			return []*message{w.net.plan.ruleMessage(spaceRule{priorityHere, w.net.plan.base()})}
		},
		"another's range and rule": func() []*message {
			return []*message{nowhere{secondVirtual, secondSpace.Prefixes[1]}.message(), w.net.plan.ruleMessage(spaceRule{prioritySpace, secondVirtual})}
		},
		"a rule without its range": func() []*message { return []*message{w.net.plan.ruleMessage(spaceRule{prioritySpace, firstVirtual})} },
	} {
		if err := w.net.way.do(left()...); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		w.net.Close()
		w.open()
		w.enter(firstSpace)
		if err := w.net.SyncSpaces(t.Context(), []Space{firstSpace}); err != nil {
			t.Errorf("after %s: %v", what, err)
		}
		routes, rules, err := w.net.readSpaces(func(uint32) bool { return true })
		if err != nil || len(routes) != 1 || !routes[nowhere{firstVirtual, firstSpace.Prefixes[0]}] || len(rules) != 2 || !rules[spaceRule{prioritySpace, firstVirtual}] {
			t.Errorf("after %s there is %v, %v, %v", what, routes, rules, err)
		}
		if err := w.net.SyncSpaces(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if got := (&hostWorld{world: w}).leftovers(); got != "" {
		t.Errorf("without a space there is still %s", got)
	}
}

// TestSpacesThatCannotBe are refused, and so are addresses.
func TestSpacesThatCannotBe(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for what, s := range map[string]Space{
		"another instance's": {VirtualNetwork("00ab", 1), firstSpace.Prefixes},
		"of no network":      {w.net.plan.base(), firstSpace.Prefixes},
		"of an ordinary one": {7, firstSpace.Prefixes},
		"empty":              {firstVirtual, nil},
		"in the range":       {firstVirtual, []netip.Prefix{netip.MustParsePrefix("10.99.128.0/17")}},
		"with host bits":     {firstVirtual, []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}},
	} {
		if err := w.net.EnterSpace(t.Context(), s); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v, want invalid", what, err)
		}
	}
	ns := newNS(t)
	for _, s := range []Slot{{1, netip.MustParseAddr("10.0.0.4"), ns, 0}, {1, netip.MustParseAddr("10.0.0.4"), ns, 7}, {1, addr(1), ns, firstVirtual},
		{1, netip.MustParseAddr("10.0.0.4"), ns, VirtualNetwork("00ab", 1)}} {
		if err := w.net.Attach(t.Context(), s); fault.KindOf(err) != fault.Invalid {
			t.Errorf("Attach(%v) = %v, want invalid", s, err)
		}
	}
	if err := w.net.Join(t.Context(), Membership{Addr: netip.MustParseAddr("10.0.0.4"), Network: 7}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("an address outside joins an ordinary network: %v", err)
	}
	c := connectionsOf{w.net.plan, map[netip.Addr]bool{addr(1): true, netip.MustParseAddr("10.0.0.4"): true}}
	for _, x := range []struct {
		from string
		mark uint32
		want bool
	}{{"10.99.1.1", 0, true}, {"10.0.0.4", firstVirtual, true}, {"10.0.0.4", 0, false}, {"10.0.0.4", 7, false}, {"10.0.0.5", firstVirtual, false}} {
		f := &netlink.ConntrackFlow{Mark: x.mark, Forward: netlink.IPTuple{SrcIP: net.ParseIP(x.from)}}
		if got := c.MatchConntrackFlow(f); got != x.want {
			t.Errorf("a connection of %s with mark %x is a group's: %v, want %v", x.from, x.mark, got, x.want)
		}
	}
}

// virtualOverlay lets every host carry the first virtual network, with groups at the addresses that are given by host.
func (f *fleet) virtualOverlay(homes map[int][]string) {
	f.Helper()
	for _, h := range f.hosts {
		o := Overlay{Underlay: h.underlay(), Networks: append([]OverlayNetwork{{Number: firstVirtual, VNI: 1009}}, testNetworks...)}
		for _, p := range f.hosts {
			if p == h {
				continue
			}
			o.Peers = append(o.Peers, p.peer())
			for _, a := range homes[p.number] {
				o.Homes = append(o.Homes, Home{Network: firstVirtual, Addr: netip.MustParseAddr(a), Peer: p.underlay()})
			}
		}
		h.set(o)
	}
}

// TestSpaceOverHosts: the same over two hosts, on a wire whose own network has addresses of the space.
func TestSpaceOverHosts(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, 1500)
	a, b := f.hosts[0], f.hosts[1]
	lan := f.plug("192.0.2.77")
	a.address(lan, "uplink", "10.0.0.9/24", "10.0.0.10/24")
	a.speak(lan, "0.0.0.0:8080", "lan")
	for i, h := range f.hosts {
		h.address(h.host, "uplink", fmt.Sprintf("10.0.0.%d/24", 200+i))
		h.enter(firstSpace)
	}
	a.virtual(1, firstVirtual, "10.0.0.4", "") // its link is as large as those of a platform of one machine
	f.virtualOverlay(map[int][]string{1: {"10.0.0.4", "10.0.0.5"}, 2: {"10.0.0.9", "10.0.0.11"}})
	b.virtual(1, firstVirtual, "10.0.0.9", "")
	a.virtual(2, firstVirtual, "10.0.0.5", "")
	a.group(3, 7)
	b.group(3, 7)
	a.settled(3, b, 3)
	check := func() {
		t.Helper()
		a.reaches(3, b, 3, true)
		a.meetAll([]meeting{
			{"over the wire", a.ns[1], "10.0.0.9:8080", "10.0.0.9", "10.0.0.4"},
			{"over the wire, back", b.ns[1], "10.0.0.4:8080", "10.0.0.4", "10.0.0.9"},
			{"on one host", a.ns[2], "10.0.0.4:8080", "10.0.0.4", "10.0.0.5"},
			{"an address of nobody", a.ns[1], "10.0.0.10:8080", "", ""},
			{"an address of a group that is not there", a.ns[1], "10.0.0.11:8080", "", ""},
			{"a host", a.host, "10.0.0.9:8080", "lan", "10.0.0.200"},
			{"another network to the wire", a.ns[3], "10.0.0.9:8080", "lan", "10.0.0.200"},
			{"out of the range", a.ns[3], "10.0.0.4:8080", "", ""},
			{"into the range", a.ns[1], b.addr(3).String() + ":8080", "", ""},
		})
	}
	check()
	b.swallow(b.ns[1], "0.0.0.0:9000")
	if err := bulk(a.ns[1], "10.0.0.9:9000", 4<<20); err != nil {
		t.Errorf("4 MiB from a link of 1500 bytes: %v", err)
	}

	b.forgeInto(a)
	for _, h := range f.hosts {
		h.net.Close()
		h.open()
		h.set(h.overlay) // a process has programs of its own, which it puts in place
		before := h.changes()
		h.set(h.overlay)
		h.enter(firstSpace)
		if n := h.changes() - before; n != 0 {
			t.Errorf("setting what there is took %d changes", n)
		}
		if _, err := h.state(); err != nil {
			t.Error(err)
		}
	}
	check()
	// A host that is lost is out; the address is here then.
	alone := a.overlay
	alone.Peers, alone.Homes = nil, nil
	a.set(alone)
	a.meets(meeting{"to a lost host", a.ns[1], "10.0.0.9:8080", "", ""})
	a.virtual(4, firstVirtual, "10.0.0.9", "")
	a.meets(meeting{"to the group that was started here", a.ns[1], "10.0.0.9:8080", "10.0.0.9", "10.0.0.4"})
}

// forgeInto sends what no group of a host has sent: it does not come in at another.
func (h *hostWorld) forgeInto(a *hostWorld) {
	h.t.Helper()
	heard := a.listen(a.ns[2], "0.0.0.0:9999")
	to := netip.MustParseAddr("10.0.0.5")
	for from, want := range map[string]string{"10.0.0.9": "10.0.0.9 text", "10.0.0.4": "", "10.0.0.10": "", "192.0.2.77": "", "10.99.2.3": ""} {
		packet := a.forge(1009, netip.MustParseAddr(from), to, "text")
		packet[8+14+20+2], packet[8+14+20+3] = 9999>>8, 9999&0xff
		if err := sendUDP(h.host, a.outerPort(), packet); err != nil {
			h.t.Fatal(err)
		}
		hear := heard.next
		if want != "" {
			hear = heard.surely
		}
		if got := hear(); got != want {
			h.t.Errorf("with the source %s: heard %q, want %q", from, got, want)
		}
	}
}

// TestSpaceOfTwoInstances: two platforms of one machine have the same address space, and know nothing of each other.
func TestSpaceOfTwoInstances(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.enter(firstSpace)
	w.virtual(1, firstVirtual, "10.0.0.4", "")
	w.virtual(2, firstVirtual, "10.0.0.5", "")
	other := &world{t: t, host: w.host, out: w.out, ns: map[uint32]*os.File{}}
	other.in(w.host, func() error {
		n, err := Open(context.Background(), Config{Instance: "00bb", CIDR: netip.MustParsePrefix("10.98.0.0/16")})
		other.net = n
		return err
	})
	t.Cleanup(func() { other.net.Close() })
	its := VirtualNetwork("00bb", 1)
	if its == firstVirtual || !overlay.Virtual(its) {
		t.Fatalf("the networks have the numbers %x and %x", its, firstVirtual)
	}
	other.enter(Space{its, firstSpace.Prefixes})
	other.virtual(1, its, "10.0.0.5", "")
	other.virtual(2, its, "10.0.0.6", "")
	w.speak(w.ns[2], "0.0.0.0:8081", "one's")
	other.speak(other.ns[1], "0.0.0.0:8081", "other's")
	w.meets(meeting{"in one", w.ns[1], "10.0.0.5:8081", "one's", "10.0.0.4"})
	other.meets(meeting{"in the other", other.ns[2], "10.0.0.5:8081", "other's", "10.0.0.6"})
	w.meets(meeting{"from one into the other", w.ns[1], "10.0.0.6:8080", "", ""})
	w.in(w.host, func() error { return Purge(context.Background(), other.net.cfg) })
	w.meets(meeting{"when the other has gone", w.ns[1], "10.0.0.5:8081", "one's", "10.0.0.4"})
}
