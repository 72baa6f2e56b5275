package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/service"
)

const (
	cluster  = "10.96.0.10"
	patience = 1200 * time.Millisecond // for an answer: one packet may be lost, and the machine be busy
)

// speak answers every TCP line and every UDP packet with its name and the caller's address.
func (w *world) speak(ns *os.File, at, name string) {
	w.t.Helper()
	w.in(ns, func() error {
		l, err := net.Listen("tcp4", at)
		if err != nil {
			return err
		}
		u, err := net.ListenPacket("udp4", at)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { l.Close(); u.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
					for scan := bufio.NewScanner(c); scan.Scan(); {
						fmt.Fprintln(c, name, host)
					}
				}()
			}
		}()
		go func() {
			buf := make([]byte, 100)
			for {
				_, from, err := u.ReadFrom(buf)
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(from.String())
				_, _ = u.WriteTo([]byte(name+" "+host+"\n"), from)
			}
		}()
		return nil
	})
}

// call is a connection that asks again and again.
type call struct {
	net.Conn
	in *bufio.Reader
}

func (w *world) call(ns *os.File, network, to string) (*call, error) {
	var c net.Conn
	err := within1(ns, func() (err error) {
		c, err = net.DialTimeout(network, to, patience)
		return err
	})
	if err != nil {
		return nil, err
	}
	w.t.Cleanup(func() { c.Close() })
	return newCall(c), nil
}

func newCall(c net.Conn) *call { return &call{c, bufio.NewReader(c)} }

// say asks who is there: the endpoint's name and the address that it saw.
func (c *call) say() (name, seen string, err error) {
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(c, "who"); err != nil {
		return "", "", err
	}
	line, err := c.in.ReadString('\n')
	name, seen, _ = strings.Cut(strings.TrimSpace(line), " ")
	return name, seen, err
}

// who asks once.
func (w *world) who(ns *os.File, network, to string) (name, seen string, err error) {
	c, err := w.call(ns, network, to)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	return c.say()
}

func targets(list ...string) []netip.AddrPort {
	var out []netip.AddrPort
	for _, t := range list {
		out = append(out, netip.MustParseAddrPort(t))
	}
	return out
}

// both is a service address whose port 80 leads to the same targets by TCP and UDP.
func both(network uint32, list ...string) Service {
	return Service{ServiceKey: ServiceKey{network, netip.MustParseAddr(cluster)}, Ports: []service.RoutePort{
		{Number: 80, Protocol: "TCP", Targets: targets(list...)}, {Number: 80, Protocol: "UDP", Targets: targets(list...)}}}
}

func (w *world) set(list ...Service) {
	w.t.Helper()
	if err := w.net.SetServices(context.Background(), list, nil); err != nil {
		w.t.Fatal(err)
	}
}

// members makes groups of a network that speak on port 8080, named by their index.
func (w *world) members(network uint32, indexes ...uint32) {
	w.t.Helper()
	for _, i := range indexes {
		w.attach(i)
		w.join(i, network, "")
		w.speak(w.ns[i], "0.0.0.0:8080", fmt.Sprint(i))
		w.carries(w.slot(i).Addr.String() + ":8080")
	}
}

func TestServiceBalances(t *testing.T) {
	w := newWorld(t)
	w.members(7, 1, 2, 3, 4)
	s := both(7, "10.99.1.2:8080", "10.99.1.3:8080", "10.99.1.4:8080")
	w.set(s)
	for _, network := range []string{"tcp4", "udp4"} {
		got := map[string]int{}
		for range 120 {
			name, seen, err := w.who(w.ns[1], network, cluster+":80")
			if err != nil || seen != "10.99.1.1" {
				t.Fatalf("%s: %s saw %q, %v", network, name, seen, err)
			}
			got[name]++
		}
		for _, name := range []string{"2", "3", "4"} {
			if got[name] < 15 {
				t.Errorf("%s: endpoint %s took %d of 120 connections", network, name, got[name])
			}
		}
	}
	// At another address: a datagram from a port that was used before goes where its predecessors went.
	const sticky = "10.96.0.11"
	s.Sticky, s.Addr = true, netip.MustParseAddr(sticky)
	w.set(s)
	first := map[string]string{}
	for _, network := range []string{"tcp4", "udp4"} {
		for range 20 {
			name, _, err := w.who(w.ns[1], network, sticky+":80")
			if err != nil {
				t.Fatal(err)
			}
			if first[network] == "" {
				first[network] = name
			}
			if name != first[network] {
				t.Fatalf("%s: a client that sticks went from %s to %s", network, first[network], name)
			}
		}
	}
	before := w.net.Changes()
	if w.set(s); w.net.Changes() != before {
		t.Errorf("setting the same again took %d changes", w.net.Changes()-before)
	}
}

func TestServiceHairpin(t *testing.T) {
	w := newWorld(t)
	w.members(7, 1)
	w.set(both(7, "10.99.1.1:8080"))
	for _, network := range []string{"tcp4", "udp4"} {
		if name, seen, err := w.who(w.ns[1], network, cluster+":80"); name != "1" || seen != "10.99.0.1" {
			t.Errorf("%s: a group that reaches itself met %q and was seen as %q, %v", network, name, seen, err)
		}
	}
}

func TestServiceRefusesAtOnce(t *testing.T) {
	w := newWorld(t)
	w.members(7, 1, 2)
	w.set(both(7))
	check := func(what, network, to string) {
		t.Helper()
		start := time.Now()
		_, _, err := w.who(w.ns[1], network, to)
		if !errors.Is(err, unix.ECONNREFUSED) || time.Since(start) > 500*time.Millisecond {
			t.Errorf("%s: %v after %s, want a refusal at once", what, err, time.Since(start))
		}
	}
	check("no endpoints", "tcp4", cluster+":80")
	check("no endpoints", "udp4", cluster+":80")
	w.set(both(7, "10.99.1.2:8080"))
	check("a port that the address has not", "tcp4", cluster+":81")
	check("a port that the address has not", "udp4", cluster+":81")
	if name, _, err := w.who(w.ns[1], "udp4", cluster+":80"); name != "2" {
		t.Errorf("after the first endpoint came: %q, %v", name, err)
	}
	c, err := w.call(w.ns[1], "tcp4", cluster+":80")
	if err != nil {
		t.Fatal(err)
	}
	w.set(both(7))
	check("endpoints gone", "tcp4", cluster+":80")
	check("endpoints gone", "udp4", cluster+":80")
	if name, _, err := c.say(); name != "2" {
		t.Errorf("a connection of TCP to an endpoint that went: %q, %v", name, err)
	}
}

func TestServiceKeepsOtherConnections(t *testing.T) {
	w := newWorld(t)
	w.members(7, 1, 2, 3, 4)
	all := []string{"10.99.1.2:8080", "10.99.1.3:8080", "10.99.1.4:8080"}
	w.set(both(7, all...))
	var calls []*call
	names := map[*call]string{}
	for i := range 40 {
		network := []string{"tcp4", "udp4"}[i%2]
		c, err := w.call(w.ns[1], network, cluster+":80")
		if err != nil {
			t.Fatal(err)
		}
		if names[c], _, err = c.say(); err != nil {
			t.Fatal(err)
		}
		calls = append(calls, c)
	}
	w.set(both(7, all[:2]...))
	for i, c := range calls {
		name, _, err := c.say()
		switch udp := i%2 == 1; {
		case err != nil:
			t.Errorf("connection %d to %s broke: %v", i, names[c], err)
		case udp && names[c] == "4" && name == "4":
			t.Errorf("connection %d of UDP still leads to the endpoint that went", i)
		case (!udp || names[c] != "4") && name != names[c]:
			t.Errorf("connection %d went from %s to %s", i, names[c], name)
		}
	}
	for range 40 {
		if name, _, err := w.who(w.ns[1], "tcp4", cluster+":80"); err != nil || name == "4" {
			t.Fatalf("a new connection met %q, %v", name, err)
		}
	}
}

// TestServiceStaysInItsNetwork has the same address in two networks, and endpoints of the other one.
func TestServiceStaysInItsNetwork(t *testing.T) {
	w := newWorld(t)
	w.members(7, 1, 2)
	w.members(8, 3, 4)
	w.attach(5) // in no network
	w.set(both(7, "10.99.1.2:8080"), both(8, "10.99.1.4:8080"))
	for i, want := range map[uint32]string{1: "2", 3: "4"} {
		if name, _, err := w.who(w.ns[i], "tcp4", cluster+":80"); name != want {
			t.Errorf("group %d met %q, %v, want %s", i, name, err, want)
		}
	}
	unreached := func(what string, ns *os.File, to string) {
		t.Helper()
		for _, network := range []string{"tcp4", "udp4"} {
			if name, _, err := w.who(ns, network, to); err == nil {
				t.Errorf("%s: %s reached %s", what, network, name)
			}
		}
	}
	unreached("a group of no network", w.ns[5], cluster+":80")
	unreached("from outside", w.out, cluster+":80")
	w.set(both(7, "10.99.1.4:8080"))
	unreached("an endpoint of another network", w.ns[1], cluster+":80")
	if err := w.net.SetServices(context.Background(), nil, []ServiceKey{both(7).ServiceKey}); err != nil {
		t.Fatal(err)
	}
	unreached("after its removal", w.ns[1], cluster+":80")
	if name, _, err := w.who(w.ns[3], "tcp4", cluster+":80"); name != "4" {
		t.Errorf("the other network's address met %q, %v after the removal of its namesake", name, err)
	}
}

func TestServiceLeadsOutAndToTheMachine(t *testing.T) {
	w := newWorld(t)
	w.members(7, 1)
	w.members(8, 2)
	w.speak(w.out, "0.0.0.0:8080", "out")
	w.speak(w.host, "203.0.113.2:6443", "machine") // an answer of UDP comes from where it was asked
	w.set(both(7, "203.0.113.1:8080"))
	for _, network := range []string{"tcp4", "udp4"} {
		if name, seen, err := w.who(w.ns[1], network, cluster+":80"); name != "out" || seen != "203.0.113.2" {
			t.Errorf("%s out: met %q, seen as %q, %v", network, name, seen, err)
		}
	}
	closed := func(what string, ns *os.File, to string) {
		t.Helper()
		for _, network := range []string{"tcp4", "udp4"} {
			if name, _, err := w.who(ns, network, to); err == nil {
				t.Errorf("%s: %s reached %s", what, network, name)
			}
		}
	}
	s := both(7, "203.0.113.2:6443")
	w.set(s)
	closed("without the right", w.ns[1], cluster+":80")
	s.Hosts = true
	w.set(s)
	for _, network := range []string{"tcp4", "udp4"} {
		if name, seen, err := w.who(w.ns[1], network, cluster+":80"); name != "machine" || seen != "10.99.1.1" {
			t.Errorf("%s to the machine: met %q, seen as %q, %v", network, name, seen, err)
		}
	}
	closed("past the service address", w.ns[1], "203.0.113.2:6443")
	closed("another network", w.ns[2], cluster+":80")
	flow, err := w.call(w.ns[1], "udp4", cluster+":80")
	if err != nil {
		t.Fatal(err)
	}
	if name, _, err := flow.say(); name != "machine" {
		t.Errorf("a flow of UDP met %q, %v", name, err)
	}
	s.Hosts = false
	w.set(s)
	if name, _, err := flow.say(); err == nil {
		t.Errorf("a flow of UDP still reaches %s after the right was taken back", name)
	}
	closed("the right taken back", w.ns[1], cluster+":80")
	metadata := both(7, "169.254.169.254:80")
	w.set(metadata)
	closed("metadata", w.ns[1], cluster+":80")
}

// TestServiceIsTheMachinesOwnAddress: an address of the machine stands for itself, at its declared port and to its own
// network, as long as it may.
func TestServiceIsTheMachinesOwnAddress(t *testing.T) {
	w := newWorld(t)
	w.members(7, 1)
	w.members(8, 2)
	const own = "203.0.113.2"
	w.speak(w.host, own+":6443", "machine")
	w.speak(w.host, own+":6444", "machine's other port")
	s := both(7, own+":6443")
	s.Addr = netip.MustParseAddr(own)
	for i := range s.Ports {
		s.Ports[i].Number = 6443
	}
	reached := func(what string, ns *os.File, to string, want bool) {
		t.Helper()
		for _, network := range []string{"tcp4", "udp4"} {
			if name, seen, err := w.who(ns, network, to); (err == nil) != want || want && (name != "machine" || seen != "10.99.1.1") {
				t.Errorf("%s: %s met %q, seen as %q, %v", what, network, name, seen, err)
			}
		}
	}
	w.set(s)
	reached("without the right", w.ns[1], own+":6443", false)
	s.Hosts = true
	w.set(s)
	reached("with the right", w.ns[1], own+":6443", true)
	reached("another port", w.ns[1], own+":6444", false)
	reached("another network", w.ns[2], own+":6443", false)
	beside := both(7, own+":6444")
	beside.Hosts = true
	w.set(beside)
	if name, _, err := w.who(w.ns[1], "tcp4", cluster+":80"); name != "machine's" {
		t.Errorf("another service address that leads to the other port met %q, %v", name, err)
	}
	flow, err := w.call(w.ns[1], "tcp4", own+":6443")
	if err != nil {
		t.Fatal(err)
	}
	s.Hosts = false
	w.set(s)
	if name, _, err := flow.say(); err == nil {
		t.Errorf("a connection still reaches %s after the right was taken back", name)
	}
	reached("the right taken back", w.ns[1], own+":6443", false)
}

// TestServicesArePutRight loses the record, as a crash does, and meddles with the table.
func TestServicesArePutRight(t *testing.T) {
	w := newWorld(t)
	w.members(7, 1, 2, 3)
	two := both(7, "10.99.1.2:8080", "10.99.1.3:8080")
	other := two
	other.Addr = netip.MustParseAddr("10.96.0.11")
	w.set(two, other)
	c, err := w.call(w.ns[1], "tcp4", cluster+":80")
	if err != nil {
		t.Fatal(err)
	}
	was, _, _ := c.say()
	w.net.Close()
	w.open()
	if name, _, err := c.say(); err != nil || name != was {
		t.Errorf("a connection over a restart: %q, %v, want %s", name, err, was)
	}
	keep := []Keep{}
	for i := uint32(1); i <= 3; i++ {
		keep = append(keep, Keep{Slot: w.slot(i), Membership: &Membership{Addr: addr(i), Network: 7}})
	}
	if r, err := w.net.Sync(context.Background(), keep); err != nil || r.Elements+r.Restored != 0 {
		t.Errorf("Sync = %+v, %v, want no change", r, err)
	}
	if name, _, err := w.who(w.ns[1], "tcp4", cluster+":80"); err != nil {
		t.Errorf("after a Sync: %q, %v", name, err)
	}
	before := w.net.Changes()
	if err := w.net.SyncServices(context.Background(), []Service{two}, []ServiceKey{other.ServiceKey}); err != nil || w.net.Changes() != before {
		t.Errorf("SyncServices of what is there: %d changes, %v", w.net.Changes()-before, err)
	}
	// Somebody removes entries behind our back.
	del, _ := serviceDifference(two.ServiceKey, w.net.services[two.ServiceKey], serviceState{})
	if err := w.net.nf.do(encodeElements(w.net.plan.table, del[:3], nil)...); err != nil {
		t.Fatal(err)
	}
	w.set(both(7, "10.99.1.2:8080"))
	if name, _, err := w.who(w.ns[1], "tcp4", cluster+":80"); name != "2" {
		t.Errorf("after a repair: %q, %v", name, err)
	}
	if err := w.net.SyncServices(context.Background(), nil, nil); err != nil {
		t.Fatal(err)
	}
	recorded := len(w.net.services)
	if err := w.net.readServices(); err != nil || recorded != 0 || len(w.net.services) != 0 {
		t.Errorf("left: %d in the record, in the table %v, %v", recorded, w.net.services, err)
	}
}

// BenchmarkServiceFirstPacket connects through one of few and of many service addresses: a new connection costs the
// same. It also says what it takes to make them all.
func BenchmarkServiceFirstPacket(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	for _, n := range []int{10, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			w := &world{t: &testing.T{}, host: newNS(&testing.T{}), ns: map[uint32]*os.File{}}
			var set []Service
			for i := range n {
				s := both(7, "10.99.1.2:8080", "10.99.1.3:8080", "10.99.1.4:8080")
				s.Addr = netip.AddrFrom4([4]byte{10, 32, byte(i >> 8), byte(i)})
				set = append(set, s)
			}
			w.in(w.host, func() (err error) {
				w.net, err = Open(context.Background(), Config{Instance: "00cc", CIDR: testCIDR})
				return err
			})
			defer w.net.Close()
			w.members(7, 1, 2, 3, 4)
			start := time.Now()
			w.set(set...)
			made := time.Since(start)
			start = time.Now()
			change := both(7, "10.99.1.2:8080", "10.99.1.3:8080")
			change.Addr = set[n/2].Addr
			w.set(change)
			changed := time.Since(start)
			start = time.Now()
			if err := w.net.SyncServices(context.Background(), set, nil); err != nil {
				b.Fatal(err)
			}
			synced := time.Since(start)
			b.ResetTimer()
			w.in(w.ns[1], func() error {
				for i := range b.N {
					c, err := net.Dial("tcp4", netip.AddrPortFrom(set[(i*7919)%n].Addr, 80).String())
					if err != nil {
						return err
					}
					c.Close()
				}
				return nil
			})
			b.ReportMetric(made.Seconds()*1000, "ms/all")
			b.ReportMetric(synced.Seconds()*1000, "ms/sync")
			b.ReportMetric(changed.Seconds()*1000, "ms/change")
		})
	}
}
