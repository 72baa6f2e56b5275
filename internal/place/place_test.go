package place

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

const gb = 1 << 30

func plainHost(name string, change func(*host.Host)) host.Host {
	h := host.Host{Name: name, Capacity: group.Resources{MilliCPU: 2000, Memory: 4 * gb}, Isolation: []group.Isolation{group.IsolationShared}}
	if change != nil {
		change(&h)
	}
	return h
}

func wanted(cpu, memory int64) *group.Group {
	return &group.Group{Spec: group.Spec{Containers: []group.Container{{Requests: group.Resources{MilliCPU: cpu, Memory: memory}}}}}
}

func TestLevels(t *testing.T) {
	for _, base := range []int{cpuBase, memoryBase} {
		for l := range levels {
			if got := level(amount(l, base), base); got != l {
				t.Errorf("level(amount(%d)) = %d at base %d", l, got, base)
			}
			if l > 0 && level(amount(l, base)-1, base) != l-1 {
				t.Errorf("level(amount(%d)-1) = %d at base %d", l, level(amount(l, base)-1, base), base)
			}
		}
		if level(-1, base) != 0 || level(1<<62, base) != levels-1 {
			t.Errorf("levels of extremes = %d, %d", level(-1, base), level(1<<62, base))
		}
	}
}

func TestTake(t *testing.T) {
	half := func(v *View) { v.Assign(&group.Group{UID: "half", Host: "a", Spec: wanted(1000, gb).Spec}) }
	gvisor, zoned, gpu, storing := wanted(100, gb), wanted(100, gb), wanted(100, gb), wanted(100, gb)
	gvisor.Spec.Isolation, zoned.Zones, storing.Spec.EphemeralStorage = group.IsolationGVisor, []string{"2"}, 5*gb
	subnet := wanted(100, gb)
	subnet.Spec.Subnet = &group.Subnet{}
	gpu.Spec.Containers[0].Requests.GPUs, gpu.Spec.Containers[0].GPUSKU = 2, "v100"
	pooled := wanted(100, gb)
	pooled.Spec.Placement = &group.Placement{Pools: []string{"b"}}
	change := func(f func(*host.Host)) host.Host { return plainHost("a", f) }
	tests := []struct {
		name   string
		group  *group.Group
		hosts  []host.Host
		before func(*View)
		policy Policy
		want   string // host
		reason string // all of it
	}{
		{"nobody", wanted(100, gb), nil, nil, Policy{}, "", "no host is connected"},
		{"fits", wanted(2000, 4*gb), []host.Host{change(nil)}, nil, Policy{}, "a", ""},
		{"least loaded", wanted(100, gb), []host.Host{change(nil), plainHost("b", nil)}, half, Policy{}, "b", ""},
		{"fullest", wanted(100, gb), []host.Host{change(nil), plainHost("b", nil)}, half, Policy{Pack: true}, "a", ""},
		{"first of equals", wanted(100, gb), []host.Host{plainHost("b", nil), change(nil)}, nil, Policy{}, "a", ""},
		{"too much CPU", wanted(1500, gb), []host.Host{change(nil)}, half, Policy{}, "", "a: 1 of 2 CPU are free"},
		{"overcommit", wanted(15000, gb), []host.Host{change(nil)}, half, Policy{CPUOvercommit: 10}, "a", ""},
		{"too much memory", wanted(100, 4*gb), []host.Host{change(nil)}, half, Policy{}, "", "a: 3 of 4 GB memory are free"},
		{"cordoned", wanted(100, gb), []host.Host{change(func(h *host.Host) { h.Cordoned = true })}, nil, Policy{}, "", "a: it is cordoned"},
		{"lost", wanted(100, gb), []host.Host{change(func(h *host.Host) { h.State = host.Lost })}, nil, Policy{}, "", "a: it is lost"},
		{"isolation", gvisor, []host.Host{change(nil)}, nil, Policy{}, "", "a: it has no gvisor isolation"},
		{"older host", subnet, []host.Host{change(nil)}, nil, Policy{}, "", "a: its agent is of a release that knows no address spaces of virtual networks; upgrade it"},
		{"older and newer host", subnet, []host.Host{change(nil), plainHost("b", func(h *host.Host) { h.Spaces = true })}, nil, Policy{}, "b", ""},
		{"zone", zoned, []host.Host{change(func(h *host.Host) { h.Zone = "1" }), plainHost("b", func(h *host.Host) { h.Zone = "2" })}, nil, Policy{}, "b", ""},
		{"wrong zone", zoned, []host.Host{change(func(h *host.Host) { h.Zone = "1" })}, nil, Policy{}, "", "a: it stands in zone 1"},
		{"host without a zone", zoned, []host.Host{change(nil)}, nil, Policy{}, "a", ""},
		{"pool", pooled, []host.Host{change(func(h *host.Host) { h.Pool = "c" })}, nil, Policy{}, "", "a: it is in pool c"},
		{"disk full", wanted(100, gb), []host.Host{change(func(h *host.Host) { h.DiskFull = true })}, nil, Policy{}, "", "a: its disk is full"},
		{"storage", storing, []host.Host{change(func(h *host.Host) { h.Capacity.EphemeralStorage = 4 * gb })}, nil, Policy{}, "", "a: 4 of 4 GB storage are free"},
		{"more storage promised", storing, []host.Host{change(func(h *host.Host) { h.Capacity.EphemeralStorage = 4 * gb })}, nil, Policy{StorageOvercommit: 2}, "a", ""},
		{"storage that is not measured", storing, []host.Host{change(nil)}, nil, Policy{}, "a", ""},
		{"GPUs", gpu, []host.Host{change(nil), plainHost("b", func(h *host.Host) { h.Capacity.GPUs, h.GPUSKU = 4, "v100" })}, nil, Policy{}, "b", ""},
		{"GPUs of others", gpu, []host.Host{change(func(h *host.Host) { h.Capacity.GPUs, h.GPUSKU = 4, "a100" })}, nil, Policy{}, "", "a: it has other GPUs"},
		{"no GPU wasted", wanted(100, gb), []host.Host{change(func(h *host.Host) { h.Capacity.GPUs, h.GPUSKU = 4, "v100" }), plainHost("b", nil)}, func(v *View) {
			v.Assign(&group.Group{UID: "x", Host: "b", Spec: wanted(1000, gb).Spec})
		}, Policy{}, "b", ""},
		{"counts", wanted(100, 4*gb), []host.Host{change(nil), plainHost("b", func(h *host.Host) { h.Cordoned = true }), plainHost("c", func(h *host.Host) { h.Capacity.Memory = gb })}, half, Policy{}, "",
			"3 hosts: 2 lack memory, 1 is cordoned"},
	}
	for _, test := range tests {
		v := NewView(Policies{Default: test.policy})
		for _, h := range test.hosts {
			v.SetHost(h)
		}
		if test.before != nil {
			test.before(v)
		}
		d := v.Take(test.group)
		reason := ""
		if d.Host == "" {
			reason = d.Refusal.String()
		}
		if d.Host != test.want || reason != test.reason || d.Refusal.DiskFull() != (test.name == "disk full") {
			t.Errorf("%s: Take = %q, %q, want %q, %q", test.name, d.Host, reason, test.want, test.reason)
		}
	}
}

// manyHosts makes a fleet too large to compare all of it.
func manyHosts(v *View, n int, change func(int, *host.Host)) {
	for i := range n {
		v.SetHost(plainHost(fmt.Sprintf("h%03d", i), func(h *host.Host) {
			if change != nil {
				change(i, h)
			}
		}))
	}
}

func in(key string, values ...string) []group.Expression {
	return []group.Expression{{Key: key, Operator: group.In, Values: values}}
}

func labelled(uid, app string, p *group.Placement) *group.Group {
	g := named(uid, wanted(100, gb/8))
	g.Spec.Labels, g.Spec.Placement = map[string]string{"app": app}, p
	return g
}

func TestPreferencesOfLargeFleets(t *testing.T) {
	v := NewView(Policies{})
	manyHosts(v, 200, func(i int, h *host.Host) {
		h.Zone, h.Labels = fmt.Sprint(i%3), map[string]string{"disk": []string{"hdd", "ssd"}[min(i%50, 1)]}
		if i == 123 {
			h.Images = []string{"rare"}
		}
	})
	hdd := v.Take(labelled("a", "x", &group.Placement{Prefer: []group.Preference{{Weight: 1, Match: in("disk", "hdd")}}})).Host
	if !slices.Contains([]string{"h000", "h050", "h100", "h150"}, hdd) {
		t.Errorf("a host with a disk of a rare kind is preferred, got %s", hdd)
	}
	rare := named("b", wanted(100, gb))
	rare.Spec.Containers[0].Image = "rare"
	if got := v.Take(rare).Host; got != "h123" {
		t.Errorf("a group whose image is on h123 went to %s", got)
	}
	db := v.Take(labelled("db", "db", nil)).Host
	if got := v.Take(labelled("beside", "y", &group.Placement{Affinity: []group.Affinity{{Match: in("app", "db"), Topology: group.TopologyHost, Weight: 10}}})).Host; got != db {
		t.Errorf("a group that would rather be beside db on %s went to %s", db, got)
	}
	v.Take(labelled("shy", "shy", &group.Placement{AntiAffinity: []group.Affinity{{Match: in("app", "loud"), Topology: group.TopologyZone, Weight: 10}}}))
	shy := v.machines[v.byName[v.HostOf("shy")]].host.Zone
	for i := range 20 {
		v.Take(labelled(fmt.Sprint("loud", i), "loud", nil))
		if got := v.machines[v.byName[v.HostOf(fmt.Sprint("loud", i))]].host.Zone; got == shy {
			t.Errorf("a running group would rather have no loud one in zone %s, one came", shy)
		}
	}
	zones := map[string]int{}
	for i := range 30 {
		uid := fmt.Sprint("even", i)
		v.Take(labelled(uid, "even", &group.Placement{Spread: []group.Spread{{Match: in("app", "even"), Topology: group.TopologyZone, MaxSkew: 1, Anyway: true}}}))
		zones[v.machines[v.byName[v.HostOf(uid)]].host.Zone]++
	}
	if zones["0"] != 10 || zones["1"] != 10 || zones["2"] != 10 {
		t.Errorf("30 groups that would rather be even are spread %v", zones)
	}
}

// TestPreferencesThatCannotAllBeMet has more groups than hosts that would rather each have a host of its own.
func TestPreferencesThatCannotAllBeMet(t *testing.T) {
	v := NewView(Policies{Default: Policy{Pack: true}})
	manyHosts(v, 40, nil)
	at := map[string]int{}
	for i := range 80 {
		uid := fmt.Sprint("g", i)
		d := v.Take(labelled(uid, "web", &group.Placement{AntiAffinity: []group.Affinity{{Match: in("app", "web"), Topology: group.TopologyHost, Weight: 100}}}))
		if at[d.Host]++; d.Host == "" || i < 40 && at[d.Host] > 1 {
			t.Fatalf("group %d went to %q, where %d are", i, d.Host, at[d.Host])
		}
	}
}

func TestVictims(t *testing.T) {
	spot := func(uid, at string, cpu int64, age time.Duration) *group.Group {
		g := named(uid, wanted(cpu, gb))
		g.Host, g.Spec.Priority, g.Created = at, group.PrioritySpot, time.Unix(1e9, 0).Add(-age)
		return g
	}
	for _, test := range []struct {
		name    string
		running []*group.Group
		need    int64
		want    string
	}{
		{"the fewest", []*group.Group{spot("a1", "a", 1000, 0), spot("a2", "a", 1000, 0), spot("b1", "b", 2000, 0)}, 2000, "b b1"},
		{"the youngest", []*group.Group{spot("a1", "a", 2000, time.Hour), spot("b1", "b", 2000, time.Minute)}, 2000, "b b1"},
		{"the least that suffices", []*group.Group{spot("a1", "a", 1500, 0), spot("a2", "a", 500, 0), spot("b1", "b", 2000, 0)}, 400, "a a2"},
		{"not regular ones", []*group.Group{named("r", &group.Group{Host: "a", Spec: wanted(2000, gb).Spec}), spot("b1", "b", 1000, 0), spot("b2", "b", 1000, 0)}, 1500, "b b1 b2"},
		{"none that would not do", []*group.Group{spot("a1", "a", 2000, 0), spot("b1", "b", 2000, 0)}, 3000, ""},
	} {
		v := NewView(Policies{})
		v.SetHost(plainHost("a", nil))
		v.SetHost(plainHost("b", nil))
		for _, g := range test.running {
			v.Assign(g)
		}
		d := v.Take(named("new", wanted(test.need, gb)))
		slices.Sort(d.Victims)
		if got := strings.TrimSpace(d.Victim + " " + strings.Join(d.Victims, " ")); got != test.want || d.Host != "" {
			t.Errorf("%s: victims = %q, want %q", test.name, got, test.want)
		}
		if d := v.Take(spot("other", "", 2000, 0)); d.Victim != "" {
			t.Errorf("%s: a Spot group pushes out %v", test.name, d.Victims)
		}
	}
}

// TestOrderOfHosts says what the order in which hosts come decides: in small fleets nothing, in large ones not whether
// there is room.
func TestOrderOfHosts(t *testing.T) {
	for _, n := range []int{smallFleet, 100} {
		r := rand.New(rand.NewPCG(1, uint64(n)))
		order := r.Perm(n)
		one, other := NewView(Policies{}), NewView(Policies{})
		manyHosts(one, n, nil)
		for _, i := range order {
			other.SetHost(plainHost(fmt.Sprintf("h%03d", i), nil))
		}
		for i := range 40 * n {
			g := named(fmt.Sprint("g", i), wanted(int64(r.IntN(500)), int64(r.IntN(gb))))
			x, y := one.Take(g), other.Take(g)
			if n == smallFleet && x.Host != y.Host || (x.Host == "") != (y.Host == "") && i < 3*n {
				t.Fatalf("%d hosts, group %d: %q in one order, %q in another", n, i, x.Host, y.Host)
			}
		}
	}
}

func TestGrow(t *testing.T) {
	v := NewView(Policies{})
	v.SetHost(plainHost("a", nil))
	v.Take(named("x", wanted(1000, gb)))
	v.Take(named("y", wanted(500, gb)))
	larger := func(cpu, memory int64) (Refusal, bool) { return v.Grow(named("x", wanted(cpu, memory))) }
	if r, ok := larger(1600, gb); ok || r.String() != "a: 0.5 of 2 CPU are free" {
		t.Errorf("Grow beyond the host = %v, %t", r, ok)
	}
	if _, ok := larger(1500, gb/2); !ok || v.Used("a") != (group.Resources{MilliCPU: 2000, Memory: gb + gb/2}) {
		t.Errorf("Grow = %t, the host holds %+v", ok, v.Used("a"))
	}
	v.SetHost(plainHost("a", func(h *host.Host) { h.Capacity.MilliCPU = 100 }))
	if _, ok := larger(1500, gb); !ok {
		t.Error("a group on a host that has shrunk cannot have more memory")
	}
}
