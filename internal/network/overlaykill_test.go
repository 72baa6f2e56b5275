package network

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/network/overlay"
)

// TestOverlayIsAdopted closes and opens again, as a restart does.
func TestOverlayIsAdopted(t *testing.T) {
	t.Parallel()
	_, a, b := newPair(t)
	talk, err := a.call(a.ns[1], "tcp4", b.addr(1).String()+":8080")
	if err != nil {
		t.Fatal(err)
	}
	goesOn := func(when string) {
		t.Helper()
		if name, _, err := talk.say(); name != "2.1" {
			t.Errorf("%s: %q, %v", when, name, err)
		}
	}
	goesOn("before")
	a.net.Close()
	a.open()
	goesOn("opened again")
	a.group(2, 7)
	if got := mtuOf(t, a.ns[2]); got != 1450 {
		t.Errorf("a group made before the overlay was set again has an MTU of %d, want 1450", got)
	}
	a.reaches(2, b, 1, true)
	a.set(a.overlay) // a process has programs of its own, which it puts in place
	before := a.changes()
	a.set(a.overlay)
	if n := a.changes() - before; n != 0 {
		t.Errorf("setting what there is took %d changes, want none", n)
	}
	r, err := a.net.Sync(context.Background(), []Keep{
		{Slot: Slot{Index: 1, Addr: a.addr(1)}, Membership: &Membership{Addr: a.addr(1), Network: 7}},
		{Slot: Slot{Index: 2, Addr: a.addr(2)}, Membership: &Membership{Addr: a.addr(2), Network: 7}}})
	if err != nil || r.Links+r.Elements+r.Restored+len(r.Missing) != 0 {
		t.Errorf("Sync = %+v, %v, want no change", r, err)
	}
	if slots, err := a.net.Slots(); err != nil || len(slots) != 2 {
		t.Errorf("Slots = %v, %v, want two", slots, err)
	}
	goesOn("after a Sync")
	a.meddle(b)
	a.set(a.overlay)
	goesOn("put right")
	a.reaches(1, b, 1, true)
	if _, err := a.state(); err != nil {
		t.Error(err)
	}

	a.set(Overlay{})
	a.reaches(1, b, 1, false)
	a.reaches(1, a, 2, true)
	if got := a.leftovers(); got != "" {
		t.Errorf("without an overlay there is still %s", got)
	}
	a.open()
	before = a.changes()
	a.set(Overlay{})
	if n := a.changes() - before; n != 0 {
		t.Errorf("no overlay where there is none took %d changes", n)
	}
}

func (h *hostWorld) changes() int64 { return h.net.Changes() + h.net.way.sent.Load() }

// meddle changes parts of the overlay behind our back.
func (h *hostWorld) meddle(peer *hostWorld) {
	h.t.Helper()
	_, index, err := h.net.overlayDevices()
	if err != nil || len(index) != 2 {
		h.t.Fatalf("devices = %v, %v", index, err)
	}
	dev := index["sw00aav7"]
	at := place{dev, 7}
	have, err := h.net.way.readEntries(at)
	if err != nil {
		h.t.Fatal(err)
	}
	gone, _ := (&overlay.Plan{}).Compare("", have)
	msgs := append(entryMessages(at, gone, overlay.Entries{}), forward(dev, overlay.MAC{2, 3}, peer.underlay()),
		blockRoute(at, netip.MustParsePrefix("10.99.77.0/24"), peer.underlay()), neighbour(dev, []byte{192, 0, 2, 77}, [6]byte{2, 4}),
		routeRule(testCIDR, overlay.Rule{Priority: overlay.PriorityNetwork, Network: 7, Table: overlay.Table(dev)}).removal(unix.RTM_DELRULE),
		routeRule(testCIDR, overlay.Rule{Priority: overlay.PriorityNetwork, Network: 9, Table: overlay.Table(77777)}),
		newMessage(unix.RTM_NEWLINK, unix.NLM_F_ACK, linkHead(index["sw00aav8"], 0)).u32(unix.IFLA_MTU, 1000))
	if err := h.net.way.do(msgs...); err != nil {
		h.t.Fatal(err)
	}
	if err := h.net.nf.do(encodeElements(h.net.plan.table, []element{{set: setPeer, key: addrKey(peer.underlay())}}, []element{{set: setPeer, key: addrKey(netip.MustParseAddr("192.0.2.78"))}})...); err != nil {
		h.t.Fatal(err)
	}
}

// state says what a host holds of its overlay, and whether it is what was set.
func (h *hostWorld) state() (string, error) {
	p, _, err := h.net.planOverlay(h.overlay)
	if err != nil {
		return "", err
	}
	devices, index, err := h.net.overlayDevices()
	if err != nil {
		return "", err
	}
	out := []string{fmt.Sprint(devices)}
	if c := p.CompareDevices(devices); len(c.Remove)+len(c.Make)+len(c.Adjust) > 0 {
		return "", fmt.Errorf("devices differ: %+v", c)
	}
	for name, i := range index {
		at := place{i, p.Numbers[name]}
		have, err := h.net.way.readEntries(at)
		if err != nil {
			return "", err
		}
		if gone, come := p.Compare(name, have); len(entryMessages(at, gone, come)) > 0 {
			return "", fmt.Errorf("entries of %s differ: %v too many, %v missing", name, gone, come)
		}
	}
	rules, err := h.net.way.readRules(testCIDR)
	if err != nil {
		return "", err
	}
	if gone, come := overlay.CompareRules(rules, p.Rules(index)); len(gone)+len(come) > 0 {
		return "", fmt.Errorf("rules differ: %v too many, %v missing", gone, come)
	}
	have, err := h.net.readOverlay()
	if err != nil {
		return "", err
	}
	if want := overlayElements(p); len(missing(have, want))+len(missing(want, have)) > 0 {
		return "", fmt.Errorf("sets hold %v, want %v", have, want)
	}
	return strings.Join(out, " "), nil
}

// leftovers are what a host has that only an overlay makes.
func (h *hostWorld) leftovers() string {
	h.t.Helper()
	var out []string
	h.in(h.host, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Type() == "vxlan" {
				out = append(out, l.Attrs().Name)
			}
		}
		rules, err := netlink.RuleList(unix.AF_INET)
		if err != nil {
			return err
		}
		for _, r := range rules {
			if r.Priority > 0 && r.Priority < 32766 {
				out = append(out, r.String())
			}
		}
		routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		for _, r := range routes {
			if r.Table != unix.RT_TABLE_MAIN && r.Table != unix.RT_TABLE_LOCAL {
				out = append(out, r.String())
			}
		}
		return err
	})
	if _, err := h.net.dumpSet(h.net.nf, setPeer); err == nil {
		out = append(out, "set "+setPeer)
	}
	return strings.Join(out, ", ")
}

// TestOverlayOfTwoInstances has two platforms on one machine, each with an overlay; one goes.
func TestOverlayOfTwoInstances(t *testing.T) {
	t.Parallel()
	_, a, b := newPair(t)
	var other *Network
	a.in(a.host, func() (err error) {
		other, err = Open(context.Background(), Config{Instance: "00bb", CIDR: netip.MustParsePrefix("10.98.0.0/16")})
		return err
	})
	defer other.Close()
	o := Overlay{Underlay: a.underlay(), Networks: testNetworks, Peers: []Peer{{Underlay: b.underlay(), Blocks: []netip.Prefix{netip.MustParsePrefix("10.98.2.0/24")}}}}
	if err := other.SetOverlay(context.Background(), o); fault.KindOf(err) != fault.Conflict {
		t.Errorf("two overlays at one port: %v, want a conflict", err)
	}
	o.Port = 4799
	if err := other.SetOverlay(context.Background(), o); err != nil {
		t.Fatal(err)
	}
	a.reaches(1, b, 1, true)
	a.in(a.host, func() error { return Purge(context.Background(), other.cfg) })
	a.reaches(1, b, 1, true)
	if _, err := a.state(); err != nil {
		t.Errorf("after the other's purge: %v", err)
	}
	for range 2 {
		a.in(a.host, func() error { return Purge(context.Background(), a.net.cfg) })
	}
	if got := a.leftovers(); got != "" {
		t.Errorf("left after both purges: %s", got)
	}
}

// helperEnv tells a process of this test what to do: set one of two overlays after the other, for ever.
const helperEnv = "SPILLWAY_OVERLAY_HELPER"

// TestOverlayHelper is no test: it is the process that is killed.
func TestOverlayHelper(t *testing.T) {
	if os.Getenv(helperEnv) == "" {
		t.Skip("runs only as a part of other tests")
	}
	n, err := Open(context.Background(), Config{Instance: "00aa", CIDR: testCIDR, Public: []netip.Prefix{testPublic}})
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("ready")
	for i := 0; ; i++ {
		if err := n.SetOverlay(context.Background(), changing(i)); err != nil {
			t.Fatal(err)
		}
	}
}

// changing is one of several overlays of host 1, each with parts that the next one has not.
func changing(i int) Overlay {
	o := Overlay{Underlay: netip.MustParseAddr("192.0.2.11")}
	if i%5 == 4 {
		return Overlay{}
	}
	for n := uint32(7); n <= 12; n++ {
		if n == 7 || int(n)%3 != i%3 {
			o.Networks = append(o.Networks, OverlayNetwork{Number: n, VNI: 1000 + n})
		}
	}
	for p := range 20 {
		if p == 0 || p%4 != i%4 {
			o.Peers = append(o.Peers, Peer{Underlay: netip.AddrFrom4([4]byte{192, 0, 2, byte(12 + p)}),
				Blocks: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(2 + p), 0}), 24)}})
		}
	}
	return o
}

// helper starts the process that will be killed, in a host's namespace.
func (h *hostWorld) helper(program string, env ...string) (*exec.Cmd, func() string) {
	h.t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		h.t.Fatal(err)
	}
	c := exec.Command(program, "-test.run", "^TestOverlayHelper$")
	c.Env = append(os.Environ(), append(env, helperEnv+"=1")...)
	c.Stdout, c.Stderr = w, w
	c.SysProcAttr = &syscall.SysProcAttr{}
	h.in(h.host, c.Start)
	w.Close()
	h.t.Cleanup(func() { r.Close() })
	return c, func() string {
		buf := make([]byte, 4096)
		_ = r.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, _ := r.Read(buf)
		return string(buf[:n])
	}
}

// comesBack opens what a killed process left, sets an overlay and expects that it is there and works.
func (h *hostWorld) comesBack(when string, peer *hostWorld) {
	h.t.Helper()
	h.net.Close()
	h.open()
	h.set(changing(0))
	if _, err := h.state(); err != nil {
		h.t.Errorf("%s: %v", when, err)
	}
	h.settled(1, peer, 1)
	h.anyFast(when, h.ns[1], peer.addr(1))
}

// TestOverlayKilledAnywhere kills a process that changes the overlay all the time.
func TestOverlayKilledAnywhere(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, 1500)
	a, b := f.hosts[0], f.hosts[1]
	f.connect()
	a.group(1, 7)
	b.group(1, 7)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for i := range 12 {
		c, read := a.helper(self)
		if got := read(); !strings.Contains(got, "ready") {
			t.Fatalf("the helper says %q", got)
		}
		time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
		_ = c.Process.Kill()
		_ = c.Wait()
		a.comesBack(fmt.Sprintf("kill %d", i), b)
	}
	a.in(a.host, func() error { return Purge(context.Background(), a.net.cfg) })
	if got := a.leftovers(); got != "" {
		t.Errorf("left after the purge: %s", got)
	}
}

// overlayPoints are all places between two effects.
var overlayPoints = []string{"overlayFenced", "overlayUnruled", "overlayMade", "overlayRouted", "fastLinked", "fastHooked", "fastFenced"}

// TestOverlayKilledBetweenEffects kills it at every point.
func TestOverlayKilledBetweenEffects(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2, 1500)
	program := armedProgram(t)
	a, b := f.hosts[0], f.hosts[1]
	f.connect()
	a.group(1, 7)
	b.group(1, 7)
	for _, point := range overlayPoints {
		for _, skip := range []string{"", "2*off->", "7*off->"} {
			// The point tells that somebody has come, and holds whoever comes next.
			c, read := a.helper(program, "GOFAIL_FAILPOINTS="+point+"="+skip+"1*print->sleep(600000)")
			said := ""
			for next := read(); next != "" && !strings.Contains(said, point); next = read() {
				if said += next; strings.Contains(said, point) {
					break
				}
			}
			time.Sleep(100 * time.Millisecond)
			_ = c.Process.Kill()
			_ = c.Wait()
			if !strings.Contains(said, point) {
				t.Fatalf("nobody came to %s: %q", point, said)
			}
			a.comesBack("killed at "+point, b)
		}
	}
	a.in(a.host, func() error { return Purge(context.Background(), a.net.cfg) })
	if got := a.leftovers(); got != "" {
		t.Errorf("left after the purge: %s", got)
	}
}

// armedProgram builds this test with its failpoints switched on, from a copy of what it needs.
func armedProgram(t *testing.T) string {
	t.Helper()
	tree := t.TempDir()
	for _, dir := range []string{"internal/network", "internal/network/overlay", "internal/network/fastpath", "internal/fault", "internal/group", "internal/service"} {
		if err := copyGo(filepath.Join("../..", dir), filepath.Join(tree, dir)); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"go.mod", "go.sum"} {
		body, err := os.ReadFile(filepath.Join("../..", file))
		if err == nil {
			err = os.WriteFile(filepath.Join(tree, file), body, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(tree, "armed.test")
	for _, args := range [][]string{{"tool", "gofail", "enable", "internal/network"}, {"test", "-c", "-o", program, "./internal/network"}} {
		c := exec.Command("go", args...)
		c.Dir = tree
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("go %v: %v: %s", args, err, out)
		}
	}
	return program
}

func copyGo(from, to string) error {
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	list, err := filepath.Glob(filepath.Join(from, "*.go"))
	for _, path := range slices.Sorted(slices.Values(list)) {
		body, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(filepath.Join(to, filepath.Base(path)), body, 0o644)
		}
		if err != nil {
			return err
		}
	}
	return err
}

// BenchmarkSetOverlay makes the overlay of a host of a large fleet, sets it again, and takes one peer out of it.
func BenchmarkSetOverlay(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	t := &testing.T{}
	w := &world{t: t, host: newNS(t), out: newNS(t), ns: map[uint32]*os.File{}}
	w.in(w.host, func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "uplink", PeerNamespace: netlink.NsFd(w.out.Fd())}); err != nil {
			return err
		}
		return up("uplink", "192.0.2.11/24")
	})
	w.in(w.host, func() (err error) {
		w.net, err = Open(context.Background(), Config{Instance: "00cc", CIDR: testCIDR})
		return err
	})
	defer w.net.Close()
	o := Overlay{Underlay: netip.MustParseAddr("192.0.2.11")}
	for i := range uint32(20) {
		o.Networks = append(o.Networks, OverlayNetwork{Number: i + 1, VNI: i + 1})
	}
	for i := range 200 {
		o.Peers = append(o.Peers, Peer{Underlay: netip.AddrFrom4([4]byte{192, 0, 2, byte(20 + i)}), Blocks: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, byte(1 + i), 0}), 24)}})
	}
	less := o
	less.Peers = o.Peers[1:]
	took := map[string]time.Duration{}
	set := func(o Overlay) func() error {
		return func() error { return w.net.SetOverlay(context.Background(), o) }
	}
	b.ResetTimer()
	for range b.N {
		for _, step := range []struct {
			name string
			do   func() error
		}{{"all", set(o)}, {"nothing", set(o)}, {"follow", func() error { return w.net.FollowRoutes(context.Background()) }}, {"fence", set(less)}, {"back", set(o)}, {"none", set(Overlay{})}} {
			start := time.Now()
			if err := step.do(); err != nil {
				b.Fatal(err)
			}
			took[step.name] += time.Since(start)
		}
	}
	for name, d := range took {
		b.ReportMetric(d.Seconds()*1000/float64(b.N), "ms/"+name)
	}
}
