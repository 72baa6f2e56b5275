package network

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/group"
)

// world is a machine of its own: a network namespace that plays the host, one that plays the internet, and slots.
type world struct {
	t        *testing.T
	host     *os.File
	out      *os.File // 203.0.113.1 on a link to the host, which has 203.0.113.2
	net      *Network
	fastPath FastPath
	ns       map[uint32]*os.File
}

var testCIDR = netip.MustParsePrefix("10.99.0.0/16")
var testPublic = netip.MustParsePrefix("198.51.100.0/28")

func newWorld(t *testing.T) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	w := &world{t: t, host: newNS(t), out: newNS(t), ns: map[uint32]*os.File{}}
	w.in(w.host, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "uplink", PeerNamespace: netlink.NsFd(w.out.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		return up("uplink", "203.0.113.2/24")
	})
	w.in(w.out, func() error { return up("uplink", "203.0.113.1/24") })
	w.in(w.out, func() error {
		l, err := netlink.LinkByName("uplink")
		if err != nil {
			return err
		}
		_, dst, _ := net.ParseCIDR(testPublic.String())
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Gw: net.IPv4(203, 0, 113, 2)})
	})
	w.open()
	return w
}

func (w *world) open() {
	w.t.Helper()
	w.in(w.host, func() error {
		n, err := Open(context.Background(), Config{Instance: "00aa", CIDR: testCIDR, Public: []netip.Prefix{testPublic}, FastPath: w.fastPath})
		w.net = n
		return err
	})
	n := w.net
	w.t.Cleanup(func() { n.Close() })
}

func up(name, cidr string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func newNS(t *testing.T) *os.File {
	t.Helper()
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		done <- result{f, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatalf("new network namespace: %v", r.err)
	}
	t.Cleanup(func() { r.f.Close() })
	return r.f
}

// in runs f on a thread inside a namespace.
func (w *world) in(ns *os.File, f func() error) {
	w.t.Helper()
	if err := within1(ns, f); err != nil {
		w.t.Fatal(err)
	}
}

func within1(ns *os.File, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func addr(index uint32) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, 1, byte(index)}) }

func (w *world) slot(index uint32) Slot {
	return Slot{Index: index, Addr: addr(index), NetNS: w.ns[index]}
}

func (w *world) attach(index uint32) {
	w.t.Helper()
	w.ns[index] = newNS(w.t)
	if err := w.net.Attach(context.Background(), w.slot(index)); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) join(index, network uint32, public string, ports ...int) {
	w.t.Helper()
	m := Membership{Addr: addr(index), Network: network}
	if public != "" {
		m.Public = netip.MustParseAddr(public)
	}
	for _, p := range ports {
		m.Ports = append(m.Ports, group.Port{Number: p, Protocol: "TCP"})
	}
	if err := w.net.Join(context.Background(), m); err != nil {
		w.t.Fatal(err)
	}
}

// serve answers each connection with the caller's address.
func (w *world) serve(ns *os.File, at string) {
	w.t.Helper()
	w.in(ns, func() error {
		l, err := net.Listen("tcp4", at)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				fmt.Fprint(c, host)
				c.Close()
			}
		}()
		return nil
	})
}

// ask connects from a namespace; it gives what the server saw, or "" when it could not connect.
func (w *world) ask(ns *os.File, to string) string {
	var got string
	within1(ns, func() error {
		c, err := net.DialTimeout("tcp4", to, 300*time.Millisecond)
		if err != nil {
			return err
		}
		defer c.Close()
		b, err := io.ReadAll(c)
		got = string(b)
		return err
	})
	return got
}

func (w *world) expect(what string, ns *os.File, to, want string) {
	w.t.Helper()
	if got := w.ask(ns, to); got != want {
		w.t.Errorf("%s: connection to %s was seen as %q, want %q", what, to, got, want)
	}
}

func TestReachability(t *testing.T) {
	w := newWorld(t)
	for i := uint32(1); i <= 4; i++ {
		w.attach(i)
		w.serve(w.ns[i], "0.0.0.0:80")
	}
	w.join(1, 7, "198.51.100.3", 80)
	w.join(2, 7, "")
	w.join(3, 8, "")
	w.serve(w.host, "0.0.0.0:9000")
	w.serve(w.host, "10.99.0.1:53")
	w.serve(w.out, "0.0.0.0:80")

	a1, a2, a3, a4 := w.ns[1], w.ns[2], w.ns[3], w.ns[4]
	w.expect("same network", a1, "10.99.1.2:80", "10.99.1.1")
	w.expect("other network", a1, "10.99.1.3:80", "")
	w.expect("other network, back", a3, "10.99.1.1:80", "")
	w.expect("to one that has not joined", a1, "10.99.1.4:80", "")
	w.expect("from one that has not joined", a4, "10.99.1.1:80", "")
	w.expect("out, not joined", a4, "203.0.113.1:80", "")
	w.expect("out", a1, "203.0.113.1:80", "203.0.113.2")
	w.expect("host to group", w.host, "10.99.1.1:80", "10.99.0.1")
	w.expect("itself", a1, "10.99.1.1:80", "10.99.1.1")

	for _, host := range []string{"10.99.0.1", "203.0.113.2", "127.0.0.1", "198.51.100.3", "198.51.100.4"} {
		w.expect("platform port", a1, host+":9000", "")
	}
	w.expect("DNS", a1, "10.99.0.1:53", "10.99.1.1")
	w.expect("outside to private address", w.out, "10.99.1.1:80", "")

	w.expect("public from outside", w.out, "198.51.100.3:80", "203.0.113.1")
	w.expect("public, undeclared port, from outside", w.out, "198.51.100.3:9000", "")
	w.expect("public, unused address, from outside", w.out, "198.51.100.4:9000", "")
	w.expect("public from host", w.host, "198.51.100.3:80", "10.99.0.1")
	w.expect("public, undeclared, from host", w.host, "198.51.100.3:9000", "")
	w.expect("public from another network", a3, "198.51.100.3:80", "10.99.0.1")
	w.expect("public from itself", a1, "198.51.100.3:80", "10.99.0.1")

	if err := w.net.Leave(context.Background(), addr(1)); err != nil {
		t.Fatal(err)
	}
	w.expect("same network after leave", a2, "10.99.1.1:80", "")
	w.expect("public after leave", w.out, "198.51.100.3:80", "")
	w.join(1, 8, "")
	w.expect("new network", a3, "10.99.1.1:80", "10.99.1.3")
	w.join(1, 7, "")
	w.expect("moved without leave", a3, "10.99.1.1:80", "")
	w.expect("moved without leave", a2, "10.99.1.1:80", "10.99.1.2")
}

func TestSpoofedSourceIsDropped(t *testing.T) {
	w := newWorld(t)
	w.attach(1)
	w.attach(2)
	w.attach(3)
	w.join(1, 7, "")
	w.join(2, 7, "")
	w.join(3, 8, "")
	w.serve(w.ns[2], "0.0.0.0:80")
	got := make(chan string, 10)
	w.in(w.ns[2], func() error {
		c, err := net.ListenPacket("udp4", "0.0.0.0:5000")
		if err != nil {
			return err
		}
		t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 100)
			for {
				n, _, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				got <- string(buf[:n])
			}
		}()
		return nil
	})
	send := func(ns *os.File, from, text string) {
		w.in(ns, func() error {
			d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
			c, err := d.Dial("udp4", "10.99.1.2:5000")
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte(text))
			return err
		})
	}
	w.in(w.ns[3], func() error { return up("eth0", "10.99.1.1/32") }) // 3 takes 1's address
	send(w.ns[3], "10.99.1.1", "spoofed")
	send(w.ns[1], "10.99.1.1", "genuine")
	select {
	case text := <-got:
		if text != "genuine" {
			t.Errorf("a packet %q came through", text)
		}
	case <-time.After(2 * time.Second):
		t.Error("the genuine packet did not come through either")
	}
}

func TestSyncAndPurge(t *testing.T) {
	w := newWorld(t)
	for i := uint32(1); i <= 3; i++ {
		w.attach(i)
		w.serve(w.ns[i], "0.0.0.0:80")
	}
	w.join(1, 7, "198.51.100.3", 80)
	w.join(2, 7, "")
	w.join(3, 7, "")
	w.net.Close()
	w.open() // as after a crash: everything is adopted
	w.expect("adopted", w.ns[1], "10.99.1.2:80", "10.99.1.1")

	keep := []Keep{
		{Slot: w.slot(1), Membership: &Membership{Addr: addr(1), Network: 7}},
		{Slot: w.slot(3), Membership: &Membership{Addr: addr(3), Network: 7, Public: netip.MustParseAddr("198.51.100.5"), Ports: []group.Port{{Number: 80, Protocol: "TCP"}}}},
		{Slot: Slot{Index: 77, Addr: addr(77)}},
	}
	r, err := w.net.Sync(context.Background(), keep)
	if err != nil {
		t.Fatal(err)
	}
	// Gone: link 2, its guard, net_of and member, and the public port of 1. Back: the public port of 3.
	if r.Links != 1 || r.Elements != 4 || r.Restored != 1 || len(r.Missing) != 1 || r.Missing[0].Index != 77 {
		t.Errorf("Sync = %+v, want 1 link, 4 elements, 1 restored, slot 77 missing", r)
	}
	w.expect("kept", w.ns[1], "10.99.1.3:80", "10.99.1.1")
	w.expect("restored", w.out, "198.51.100.5:80", "203.0.113.1")
	w.expect("removed", w.out, "198.51.100.3:80", "")
	if r, err = w.net.Sync(context.Background(), keep[:2]); err != nil || r.Links+r.Elements+r.Restored != 0 {
		t.Errorf("second Sync = %+v, %v, want no change", r, err)
	}
	if st, err := w.net.Stats(w.slot(3)); err != nil || st.RxBytes == 0 || st.TxBytes == 0 {
		t.Errorf("Stats = %+v, %v, want traffic", st, err)
	}
	if err := w.net.Detach(context.Background(), w.slot(3), w.slot(3), w.slot(99)); err != nil {
		t.Errorf("Detach: %v", err)
	}
	for range 2 {
		w.in(w.host, func() error { return Purge(context.Background(), w.net.cfg) })
	}
	w.in(w.host, func() error {
		tables, err := Tables()
		if err != nil || len(tables) != 0 {
			t.Errorf("tables after Purge = %v, %v, want none", tables, err)
		}
		prefixes, err := HostPrefixes()
		for _, p := range prefixes {
			if p.Overlaps(testCIDR) || p.Overlaps(testPublic) {
				t.Errorf("address or route %s left after Purge", p)
			}
		}
		if left, err := w.net.links(); err != nil || len(left) != 0 {
			t.Errorf("links after Purge = %v, %v, want none", left, err)
		}
		return err
	})
}

func TestTwoInstancesLeaveEachOtherAlone(t *testing.T) {
	w := newWorld(t)
	w.attach(1)
	w.join(1, 7, "")
	w.serve(w.ns[1], "0.0.0.0:80")
	var other *Network
	w.in(w.host, func() error {
		used, err := HostPrefixes()
		if err != nil {
			return err
		}
		cidr, err := ChooseCIDR("00bb", append(used, netip.MustParsePrefix("10.64.0.0/12")))
		if err != nil {
			return err
		}
		other, err = Open(context.Background(), Config{Instance: "00bb", CIDR: cidr})
		return err
	})
	defer other.Close()
	ns := newNS(t)
	s := Slot{Index: 1, Addr: other.Gateway().Next(), NetNS: ns}
	if err := other.Attach(context.Background(), s); err != nil {
		t.Fatal(err)
	}
	if err := other.Join(context.Background(), Membership{Addr: s.Addr, Network: 7}); err != nil {
		t.Fatal(err)
	}
	w.expect("other instance, same network number", ns, "10.99.1.1:80", "")
	w.expect("other instance goes out", w.host, "10.99.1.1:80", "10.99.0.1")
	w.in(w.host, func() error { return Purge(context.Background(), other.cfg) })
	w.expect("after the other's purge", w.host, "10.99.1.1:80", "10.99.0.1")
}

func TestKernelTableChangedBehindOurBack(t *testing.T) {
	w := newWorld(t)
	w.attach(1)
	w.join(1, 7, "")
	w.in(w.host, func() error { return w.net.applyRuleset(tunnel{}, false) })
	w.net.have = newElements() // as if the record were lost
	w.join(1, 9, "")
	if got := fmt.Sprint(len(w.net.have.member[addr(1)])); got != "2" {
		t.Errorf("entries after repair = %s, want 2", got)
	}
	if err := w.net.readGroups(); err != nil {
		t.Fatal(err)
	}
	have := w.net.have
	if want := membershipElements(Membership{Addr: addr(1), Network: 9}); len(difference(want, have.member[addr(1)])) > 0 {
		t.Errorf("kernel has %v, want network 9", have.member)
	}
}

func BenchmarkAttachJoin(b *testing.B) {
	t := &testing.T{}
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	host := newNS(t)
	var n *Network
	if err := within1(host, func() (err error) {
		n, err = Open(context.Background(), Config{Instance: "00cc", CIDR: testCIDR})
		return err
	}); err != nil {
		b.Fatal(err)
	}
	ns := make([]*os.File, b.N)
	for i := range ns {
		ns[i] = newNS(t)
	}
	var attach, join time.Duration
	b.ResetTimer()
	for i := range ns {
		s := Slot{Index: uint32(i + 1), Addr: netip.AddrFrom4([4]byte{10, 99, byte(1 + i>>8), byte(i)}), NetNS: ns[i]}
		start := time.Now()
		if err := n.Attach(context.Background(), s); err != nil {
			b.Fatal(err)
		}
		mid := time.Now()
		if err := n.Join(context.Background(), Membership{Addr: s.Addr, Network: 7}); err != nil {
			b.Fatal(err)
		}
		attach += mid.Sub(start)
		join += time.Since(mid)
	}
	b.StopTimer()
	b.ReportMetric(float64(attach.Microseconds())/float64(b.N), "µs/attach")
	b.ReportMetric(float64(join.Microseconds())/float64(b.N), "µs/join")
	for _, f := range ns {
		f.Close()
	}
	n.Close()
	host.Close()
}

func TestManySlotsAtOnce(t *testing.T) {
	w := newWorld(t)
	const n = 40
	slots := make([]Slot, n)
	for i := range slots {
		slots[i] = Slot{Index: uint32(i + 1), Addr: addr(uint32(i + 1)), NetNS: newNS(t)}
	}
	failed := make(chan error, 2*n)
	for _, s := range slots {
		go func() {
			err := w.net.Attach(context.Background(), s)
			failed <- err
			failed <- w.net.Join(context.Background(), Membership{Addr: s.Addr, Network: 7})
		}()
	}
	for range 2 * n {
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}
	before := w.net.Changes()
	if err := w.net.Join(context.Background(), Membership{Addr: slots[0].Addr, Network: 8}); err != nil || w.net.Changes() != before+1 {
		t.Errorf("a join took %d netlink changes, %v, want 1", w.net.Changes()-before, err)
	}
	if err := w.net.Join(context.Background(), Membership{Addr: slots[0].Addr, Network: 8}); err != nil || w.net.Changes() != before+1 {
		t.Errorf("a repeated join took %d netlink changes, %v, want none", w.net.Changes()-before-1, err)
	}
	start := time.Now()
	if err := w.net.Detach(context.Background(), slots...); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d slots detached in %s", n, time.Since(start))
	if left, err := w.net.links(); err != nil || len(left) != 0 || len(w.net.have.guard)+len(w.net.have.member) != 0 {
		t.Errorf("left: links %v, %v, entries %v", left, err, w.net.have)
	}
}
