package overlay

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"spillway.dev/spillway/internal/fault"
)

var (
	cidr = netip.MustParsePrefix("10.99.0.0/16")
	site = Site{Instance: "00aa", CIDR: cidr, MTU: 1500}
	good = Overlay{Underlay: netip.MustParseAddr("192.0.2.11"), Networks: []Network{{7, 1007}, {0x7ffffffe, 1008}},
		Peers: []Peer{peer("192.0.2.12", "10.99.2.0/24", "10.99.200.9/32"), peer("192.0.2.13")}}
)

func peer(underlay string, blocks ...string) Peer {
	p := Peer{Underlay: netip.MustParseAddr(underlay)}
	for _, b := range blocks {
		p.Blocks = append(p.Blocks, netip.MustParsePrefix(b))
	}
	return p
}

func TestPlan(t *testing.T) {
	p, err := New(site, good)
	if err != nil {
		t.Fatal(err)
	}
	want := Device{VNI: 1007, Underlay: good.Underlay, Port: DefaultPort, MAC: MAC{0x0a, 0x53, 192, 0, 2, 11}, MTU: 1450, Up: true}
	if got := p.Devices["sw00aav7"]; got != want || len(p.Devices) != 2 {
		t.Errorf("devices = %+v, want %+v for the first", p.Devices, want)
	}
	for name := range p.Devices {
		if len(name) > 15 {
			t.Errorf("device name %q is longer than the kernel allows", name)
		}
	}
	if got, want := fmt.Sprint(p.Entries.Routes), "map[10.99.2.0/24:192.0.2.12 10.99.200.9/32:192.0.2.12]"; got != want {
		t.Errorf("routes = %s, want %s", got, want)
	}
	for _, a := range []string{"192.0.2.12", "192.0.2.13"} {
		ip := netip.MustParseAddr(a)
		if mac := p.Entries.Neighbours[ip]; p.Entries.Forwards[mac] != ip || !p.Peers[ip] {
			t.Errorf("peer %s has the address %v, which leads to %s", a, mac, p.Entries.Forwards[mac])
		}
	}
	rules := p.Rules(map[string]uint32{"sw00aav7": 3, "sw00aav7ffffffe": 4})
	for _, r := range []Rule{{PriorityLocal, 0, MainTable, true}, {PriorityNetwork, 7, 1<<31 | 3, false}, {PriorityNetwork, 0x7ffffffe, 1<<31 | 4, false}} {
		if !rules[r] {
			t.Errorf("rules = %v lack %v", rules, r)
		}
	}
	if len(rules) != 3 || len(p.Rules(nil)) != 0 {
		t.Errorf("rules = %v; without devices %v", rules, p.Rules(nil))
	}
	if none, err := New(site, Overlay{}); err != nil || len(none.Devices)+len(none.Peers)+len(none.Entries.Routes) != 0 {
		t.Errorf("no overlay = %+v, %v", none, err)
	}
}

// TestHomes: an address of one network is in that network's table alone, beside the blocks.
func TestHomes(t *testing.T) {
	o := good
	o.Homes = []Home{{7, netip.MustParseAddr("10.99.128.4"), netip.MustParseAddr("192.0.2.13")}}
	p, err := New(site, o)
	if err != nil {
		t.Fatal(err)
	}
	for device, want := range map[string]string{
		"sw00aav7":        "map[10.99.2.0/24:192.0.2.12 10.99.128.4/32:192.0.2.13 10.99.200.9/32:192.0.2.12]",
		"sw00aav7ffffffe": "map[10.99.2.0/24:192.0.2.12 10.99.200.9/32:192.0.2.12]",
	} {
		if _, come := p.Compare(device, Entries{}); fmt.Sprint(come.Routes) != want {
			t.Errorf("routes of %s = %v, want %s", device, come.Routes, want)
		}
	}
	gone, _ := p.Compare("sw00aav7ffffffe", Entries{Routes: map[netip.Prefix]netip.Addr{netip.MustParsePrefix("10.99.128.4/32"): netip.MustParseAddr("192.0.2.13")}})
	if len(gone.Routes) != 1 {
		t.Errorf("a home of another network stays: %v", gone.Routes)
	}
	for what, h := range map[string]Home{
		"in a network that is not carried": {8, netip.MustParseAddr("10.99.128.4"), netip.MustParseAddr("192.0.2.13")},
		"at nobody":                        {7, netip.MustParseAddr("10.99.128.4"), netip.MustParseAddr("192.0.2.14")},
		"at this host":                     {7, netip.MustParseAddr("10.99.128.4"), good.Underlay},
		"outside":                          {7, netip.MustParseAddr("10.98.128.4"), netip.MustParseAddr("192.0.2.13")},
		"in a block":                       {7, netip.MustParseAddr("10.99.2.4"), netip.MustParseAddr("192.0.2.13")},
	} {
		o.Homes = []Home{h}
		if _, err := New(site, o); fault.KindOf(err) != fault.Invalid {
			t.Errorf("a home %s: %v, want invalid", what, err)
		}
	}
}

// TestVirtual: a network with addresses outside the groups' range has its homes in a table of its own number, and nothing else.
func TestVirtual(t *testing.T) {
	number := VirtualBase("00aa") | 1
	if !Virtual(number) || Virtual(7) || Virtual(Table(77)) || VirtualBase("00aa") == VirtualBase("00ab") || number&VirtualMask != VirtualBase("00aa") {
		t.Fatalf("the number %x of a virtual network is like others", number)
	}
	if TableOf(number, 3) != number || TableOf(7, 3) != Table(3) {
		t.Errorf("tables are %x and %x", TableOf(number, 3), TableOf(7, 3))
	}
	o := good
	o.Networks = append([]Network{{number, 1009}}, good.Networks...)
	o.Homes = []Home{{number, netip.MustParseAddr("10.0.0.4"), netip.MustParseAddr("192.0.2.13")}}
	p, err := New(site, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, come := p.Compare(site.Name(number), Entries{}); fmt.Sprint(come.Routes) != "map[10.0.0.4/32:192.0.2.13]" {
		t.Errorf("routes of a virtual network = %v", come.Routes)
	}
	if rules := p.Rules(map[string]uint32{site.Name(number): 3}); len(rules) != 0 {
		t.Errorf("rules of a virtual network alone = %v, want none", rules)
	}
	for what, h := range map[string]Home{
		"in the range":                    {number, netip.MustParseAddr("10.99.128.4"), netip.MustParseAddr("192.0.2.13")},
		"outside, of an ordinary network": {7, netip.MustParseAddr("10.0.0.4"), netip.MustParseAddr("192.0.2.13")},
		"of six":                          {number, netip.MustParseAddr("fd00::4"), netip.MustParseAddr("192.0.2.13")},
	} {
		o.Homes = []Home{h}
		if _, err := New(site, o); fault.KindOf(err) != fault.Invalid {
			t.Errorf("a home %s: %v, want invalid", what, err)
		}
	}
}

func TestLinkMTU(t *testing.T) {
	for _, c := range []struct{ underlay, want uint32 }{{1500, 1450}, {1549, 1499}, {1550, 1500}, {9000, 1500}} {
		if got := LinkMTU(c.underlay, 1500); got != c.want {
			t.Errorf("LinkMTU(%d) = %d, want %d", c.underlay, got, c.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	for name, change := range map[string]func(o *Overlay, s *Site){
		"underlay of six":          func(o *Overlay, _ *Site) { o.Underlay = netip.MustParseAddr("fd00::1") },
		"underlay of a group":      func(o *Overlay, _ *Site) { o.Underlay = netip.MustParseAddr("10.99.0.9") },
		"underlay of nobody":       func(o *Overlay, _ *Site) { o.Underlay = netip.IPv4Unspecified() },
		"underlay on loopback":     func(o *Overlay, _ *Site) { o.Underlay = netip.MustParseAddr("127.0.0.1") },
		"network 0":                func(o *Overlay, _ *Site) { o.Networks = []Network{{0, 5}} },
		"id 0":                     func(o *Overlay, _ *Site) { o.Networks = []Network{{5, 0}} },
		"id of 25 bits":            func(o *Overlay, _ *Site) { o.Networks = []Network{{5, 1 << 24}} },
		"network twice":            func(o *Overlay, _ *Site) { o.Networks = []Network{{5, 5}, {5, 6}} },
		"id twice":                 func(o *Overlay, _ *Site) { o.Networks = []Network{{5, 5}, {6, 5}} },
		"peer is this host":        func(o *Overlay, _ *Site) { o.Peers = []Peer{peer("192.0.2.11")} },
		"peer twice":               func(o *Overlay, _ *Site) { o.Peers = []Peer{peer("192.0.2.12"), peer("192.0.2.12")} },
		"peer without address":     func(o *Overlay, _ *Site) { o.Peers = []Peer{{}} },
		"peer with a group's":      func(o *Overlay, _ *Site) { o.Peers = []Peer{peer("10.99.3.3")} },
		"block outside":            func(o *Overlay, _ *Site) { o.Peers = []Peer{peer("192.0.2.12", "10.98.0.0/24")} },
		"block of the whole range": func(o *Overlay, _ *Site) { o.Peers = []Peer{peer("192.0.2.12", "10.99.0.0/16")} },
		"block with host bits":     func(o *Overlay, _ *Site) { o.Peers = []Peer{peer("192.0.2.12", "10.99.3.1/24")} },
		"block of two": func(o *Overlay, _ *Site) {
			o.Peers = []Peer{peer("192.0.2.12", "10.99.3.0/24"), peer("192.0.2.13", "10.99.3.0/24")}
		},
		"block within block":         func(o *Overlay, _ *Site) { o.Peers = []Peer{peer("192.0.2.12", "10.99.3.64/26", "10.99.3.0/24")} },
		"device that carries little": func(_ *Overlay, s *Site) { s.MTU = 600 },
	} {
		o, s := good, site
		change(&o, &s)
		if _, err := New(s, o); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}

func TestCompareDevices(t *testing.T) {
	p, err := New(site, good)
	if err != nil {
		t.Fatal(err)
	}
	const first, second = "sw00aav7", "sw00aav7ffffffe"
	with := func(change func(d *Device)) map[string]Device {
		have := maps.Clone(p.Devices)
		d := have[first]
		change(&d)
		have[first] = d
		return have
	}
	for name, c := range map[string]struct {
		have map[string]Device
		want DeviceChanges
	}{
		"nothing":         {nil, DeviceChanges{Make: []string{first, second}, Adjust: []string{first, second}}},
		"all right":       {p.Devices, DeviceChanges{}},
		"another id":      {with(func(d *Device) { d.VNI = 1 }), DeviceChanges{[]string{first}, []string{first}, []string{first}}},
		"another port":    {with(func(d *Device) { d.Port = 1 }), DeviceChanges{[]string{first}, []string{first}, []string{first}}},
		"another host":    {with(func(d *Device) { d.Underlay = netip.Addr{} }), DeviceChanges{[]string{first}, []string{first}, []string{first}}},
		"another address": {with(func(d *Device) { d.MAC = MAC{} }), DeviceChanges{[]string{first}, []string{first}, []string{first}}},
		"down":            {with(func(d *Device) { d.Up = false }), DeviceChanges{Adjust: []string{first}}},
		"another size":    {with(func(d *Device) { d.MTU = 1400 }), DeviceChanges{Adjust: []string{first}}},
		"one too many": {func() map[string]Device {
			have := maps.Clone(p.Devices)
			have["sw00aav9"] = Device{}
			return have
		}(), DeviceChanges{Remove: []string{"sw00aav9"}}},
	} {
		if got := p.CompareDevices(c.have); fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// drawn is any overlay of good form.
func drawn(t *rapid.T) Overlay {
	o := Overlay{Underlay: good.Underlay}
	for _, n := range rapid.SliceOfDistinct(rapid.Uint32Range(1, 12), rapid.ID).Draw(t, "networks") {
		o.Networks = append(o.Networks, Network{n, 1000 + n})
	}
	for _, n := range rapid.SliceOfDistinct(rapid.ByteRange(12, 30), rapid.ID).Draw(t, "peers") {
		p := Peer{Underlay: netip.AddrFrom4([4]byte{192, 0, 2, n})}
		for i := range rapid.IntRange(0, 3).Draw(t, "blocks") {
			p.Blocks = append(p.Blocks, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 99, n, byte(i * 64)}), 26))
		}
		o.Peers = append(o.Peers, p)
	}
	return o
}

// TestComparisonLeadsThere applies what is planned from one overlay to another: afterwards nothing is left to do, and what
// both have was not touched.
func TestComparisonLeadsThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, err := New(site, drawn(t))
		if err != nil {
			t.Fatal(err)
		}
		b, err := New(site, drawn(t))
		if err != nil {
			t.Fatal(err)
		}
		have := Entries{maps.Clone(a.Entries.Routes), maps.Clone(a.Entries.Neighbours), maps.Clone(a.Entries.Forwards)}
		gone, come := b.Compare("", have)
		for k := range gone.Routes {
			if _, wanted := b.Entries.Routes[k]; wanted {
				t.Fatalf("route %s is wanted and goes", k)
			}
			delete(have.Routes, k)
		}
		for k, v := range come.Routes {
			if have.Routes[k] == v {
				t.Fatalf("route %s is there and comes", k)
			}
			have.Routes[k] = v
		}
		maps.DeleteFunc(have.Neighbours, func(k netip.Addr, _ MAC) bool { _, ok := gone.Neighbours[k]; return ok })
		maps.Copy(have.Neighbours, come.Neighbours)
		maps.DeleteFunc(have.Forwards, func(k MAC, _ netip.Addr) bool { _, ok := gone.Forwards[k]; return ok })
		maps.Copy(have.Forwards, come.Forwards)
		gone, come = b.Compare("", have)
		if n := len(gone.Routes) + len(gone.Neighbours) + len(gone.Forwards) + len(come.Routes) + len(come.Neighbours) + len(come.Forwards); n > 0 {
			t.Fatalf("still %v and %v", gone, come)
		}
		index := map[string]uint32{}
		for _, name := range slices.Sorted(maps.Keys(b.Devices)) {
			index[name] = uint32(len(index) + 2)
		}
		before, after := a.Rules(index), b.Rules(index)
		lost, added := CompareRules(before, after)
		for _, r := range lost {
			delete(before, r)
		}
		for _, r := range added {
			before[r] = true
		}
		if !maps.Equal(before, after) {
			t.Fatalf("rules are %v, want %v", before, after)
		}
	})
}
