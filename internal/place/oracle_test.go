package place

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// oracle is placement said plainly: lists, and a look at everything for every question.
type oracle struct {
	policies Policies
	hosts    map[string]host.Host
	groups   map[string]*group.Group // that hold room on Host
}

func (o *oracle) without(uids ...string) *oracle {
	out := &oracle{o.policies, o.hosts, maps.Clone(o.groups)}
	for _, uid := range uids {
		delete(out.groups, uid)
	}
	return out
}

func (o *oracle) free(name string) group.Resources {
	h := o.hosts[name]
	free := o.policies.of(h.Pool).capacity(h.Capacity)
	for _, g := range o.groups {
		if g.Host == name {
			free = free.Sub(g.Spec.Total())
		}
	}
	return free
}

// domain is where a host stands, "" for nowhere.
func domain(h host.Host, t group.Topology) string {
	switch t {
	case group.TopologyZone:
		return h.Zone
	case group.TopologyFaultDomain:
		if h.FaultDomain == "" {
			return ""
		}
		return h.Zone + "/" + h.FaultDomain
	}
	return h.Name
}

func (o *oracle) static(g *group.Group, h host.Host) bool {
	p, isolation := g.Spec.Where(), g.Spec.Isolation
	if isolation == "" {
		isolation = group.IsolationShared
	}
	return (len(p.Pools) == 0 || slices.Contains(p.Pools, h.Pool)) && slices.Contains(h.Isolation, isolation) && (g.Spec.Subnet == nil || h.Spaces) &&
		(len(g.Zones) == 0 || h.Zone == "" || slices.Contains(g.Zones, h.Zone)) && group.Match(p.Require, h.Labels) &&
		(g.Spec.GPUSKU() == "" || h.GPUSKU == g.Spec.GPUSKU() && h.Capacity.GPUs > 0)
}

func takesGroups(h host.Host) bool { return h.State == host.Ready && !h.Cordoned && !h.DiskFull }

// count is how many groups of the subscription match in a domain; in "" there is nobody.
func (o *oracle) count(g *group.Group, match []group.Expression, t group.Topology, where string) int {
	n := 0
	for _, other := range o.groups {
		if h, ok := o.hosts[other.Host]; ok && where != "" && other.Ref.Subscription == g.Ref.Subscription && domain(h, t) == where && group.Match(match, other.Spec.Labels) {
			n++
		}
	}
	return n
}

func (o *oracle) anywhere(g *group.Group, match []group.Expression) bool {
	for _, other := range o.groups {
		if other.Ref.Subscription == g.Ref.Subscription && group.Match(match, other.Spec.Labels) {
			return true
		}
	}
	return false
}

// feasible says whether a host takes a group. The group's own former place does not count as a neighbour, but as room.
func (o *oracle) feasible(g *group.Group, h host.Host) bool {
	if !takesGroups(h) || !o.static(g, h) || !g.Spec.Total().Within(o.free(h.Name)) {
		return false
	}
	others := o.without(g.UID)
	p := g.Spec.Where()
	for _, a := range p.Affinity {
		first := !others.anywhere(g, a.Match) && group.Match(a.Match, g.Spec.Labels)
		where := domain(h, a.Topology)
		if a.Weight == 0 && others.count(g, a.Match, a.Topology, where) == 0 && (!first || where == "") {
			return false
		}
	}
	for _, a := range p.AntiAffinity {
		if a.Weight == 0 && others.count(g, a.Match, a.Topology, domain(h, a.Topology)) > 0 {
			return false
		}
	}
	for _, s := range p.Spread {
		if !s.Anyway && !others.even(g, h, s) {
			return false
		}
	}
	return !others.forbidden(g, h)
}

func (o *oracle) even(g *group.Group, h host.Host, s group.Spread) bool {
	where := domain(h, s.Topology)
	low := -1
	for _, other := range o.hosts {
		if d := domain(other, s.Topology); d != "" && takesGroups(other) && o.static(g, other) {
			if n := o.count(g, s.Match, s.Topology, d); low < 0 || n < low {
				low = n
			}
		}
	}
	n := o.count(g, s.Match, s.Topology, where)
	if group.Match(s.Match, g.Spec.Labels) {
		n++
	}
	return where != "" && n-max(low, 0) <= s.MaxSkew
}

// forbidden says whether a group that runs has a required rule against a newcomer.
func (o *oracle) forbidden(g *group.Group, h host.Host) bool {
	for _, other := range o.groups {
		at, ok := o.hosts[other.Host]
		if !ok || other.Ref.Subscription != g.Ref.Subscription {
			continue
		}
		for _, a := range other.Spec.Where().AntiAffinity {
			if d := domain(h, a.Topology); a.Weight == 0 && group.Match(a.Match, g.Spec.Labels) && d != "" && d == domain(at, a.Topology) {
				return true
			}
		}
	}
	return false
}

// Random fleets and groups. Few values, so that rules meet.

func drawHost(t *rapid.T, name string) host.Host {
	h := host.Host{Name: name, Pool: rapid.SampledFrom([]string{"a", "a", "b", "c"}).Draw(t, "pool"), Zone: rapid.SampledFrom([]string{"", "1", "2", "3"}).Draw(t, "zone"),
		FaultDomain: rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "faultDomain"), Isolation: []group.Isolation{group.IsolationShared},
		Capacity: group.Resources{MilliCPU: rapid.Int64Range(1, 8).Draw(t, "cpu") * 1000, Memory: rapid.Int64Range(1, 8).Draw(t, "memory") * gb}}
	if rapid.IntRange(0, 3).Draw(t, "storage") == 0 {
		h.Capacity.EphemeralStorage = 10 * gb
	}
	if rapid.IntRange(0, 4).Draw(t, "gpus") == 0 {
		h.Capacity.GPUs, h.GPUSKU = rapid.Int64Range(1, 4).Draw(t, "gpu count"), rapid.SampledFrom([]string{"v100", "a100"}).Draw(t, "sku")
	}
	h.Spaces = rapid.IntRange(0, 3).Draw(t, "too old") > 0
	if rapid.IntRange(0, 2).Draw(t, "gvisor") == 0 {
		h.Isolation = append(h.Isolation, group.IsolationGVisor)
	}
	h.Labels = map[string]string{"disk": rapid.SampledFrom([]string{"ssd", "hdd"}).Draw(t, "disk")}
	if rapid.Bool().Draw(t, "named") {
		h.Labels["name"] = name
	}
	switch rapid.IntRange(0, 12).Draw(t, "state") {
	case 0:
		h.Cordoned = true
	case 1:
		h.DiskFull = true
	case 2:
		h.State = host.Lost
	case 3:
		h.State = host.NotReady
	}
	return h
}

func drawMatch(t *rapid.T) []group.Expression {
	app := rapid.SampledFrom([]string{"web", "db", "job"}).Draw(t, "app")
	switch rapid.IntRange(0, 4).Draw(t, "operator") {
	case 0:
		return []group.Expression{{Key: "app", Operator: group.NotIn, Values: []string{app}}}
	case 1:
		return []group.Expression{{Key: "tier", Operator: group.Exists}}
	case 2:
		return []group.Expression{{Key: "app", Operator: group.In, Values: []string{app, "db"}}, {Key: "tier", Operator: group.DoesNotExist}}
	}
	return []group.Expression{{Key: "app", Operator: group.In, Values: []string{app}}}
}

var allTopologies = []group.Topology{group.TopologyHost, group.TopologyFaultDomain, group.TopologyZone}

func drawTerms(t *rapid.T, what string) []group.Affinity {
	var out []group.Affinity
	for range rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(t, what) {
		out = append(out, group.Affinity{Match: drawMatch(t), Topology: rapid.SampledFrom(allTopologies).Draw(t, "topology"),
			Weight: rapid.SampledFrom([]int{0, 0, 5, 50}).Draw(t, "weight")})
	}
	return out
}

func drawGroup(t *rapid.T, uid string) *group.Group {
	g := wanted(rapid.SampledFrom([]int64{0, 1, 500, 1000, 1700, 4000}).Draw(t, "cpu"), rapid.SampledFrom([]int64{0, 1, gb / 2, gb, 3 * gb}).Draw(t, "memory"))
	g.UID, g.Ref = uid, group.Ref{Subscription: rapid.SampledFrom([]string{"s", "s", "S2"}).Draw(t, "subscription"), Name: uid}
	s := &g.Spec
	s.Labels = map[string]string{"app": rapid.SampledFrom([]string{"web", "db", "job"}).Draw(t, "own app")}
	if rapid.IntRange(0, 3).Draw(t, "tier") == 0 {
		s.Labels["tier"] = "front"
	}
	if rapid.IntRange(0, 4).Draw(t, "isolated") == 0 {
		s.Isolation = group.IsolationGVisor
	}
	if rapid.IntRange(0, 4).Draw(t, "in a subnet") == 0 {
		s.Subnet = &group.Subnet{}
	}
	if rapid.IntRange(0, 4).Draw(t, "zoned") == 0 {
		g.Zones = []string{rapid.SampledFrom([]string{"1", "2"}).Draw(t, "own zone")}
	}
	if rapid.IntRange(0, 5).Draw(t, "stores") == 0 {
		s.EphemeralStorage = 4 * gb
	}
	if rapid.IntRange(0, 5).Draw(t, "computes") == 0 {
		s.Containers[0].Requests.GPUs = rapid.Int64Range(1, 3).Draw(t, "own gpus")
		s.Containers[0].GPUSKU = rapid.SampledFrom([]string{"", "v100", "a100"}).Draw(t, "own sku")
	}
	if rapid.IntRange(0, 2).Draw(t, "spot") == 0 {
		s.Priority = group.PrioritySpot
	}
	if rapid.IntRange(0, 1).Draw(t, "placed") == 0 {
		return g
	}
	p := &group.Placement{Affinity: drawTerms(t, "affinity"), AntiAffinity: drawTerms(t, "anti-affinity")}
	if rapid.IntRange(0, 4).Draw(t, "pooled") == 0 {
		p.Pools = []string{"b", "c"}
	}
	switch rapid.IntRange(0, 8).Draw(t, "labelled") {
	case 0:
		p.Require = []group.Expression{{Key: "disk", Operator: group.In, Values: []string{"ssd"}}}
	case 1:
		p.Require = []group.Expression{{Key: "name", Operator: group.In, Values: []string{"h001", "h007"}}}
	case 2:
		p.Prefer = []group.Preference{{Weight: 10, Match: []group.Expression{{Key: "disk", Operator: group.NotIn, Values: []string{"ssd"}}}}}
	}
	if rapid.IntRange(0, 3).Draw(t, "spreads") == 0 {
		p.Spread = []group.Spread{{Match: drawMatch(t), Topology: rapid.SampledFrom(allTopologies).Draw(t, "spread topology"),
			MaxSkew: rapid.IntRange(1, 2).Draw(t, "skew"), Anyway: rapid.IntRange(0, 2).Draw(t, "anyway") == 0}}
	}
	s.Placement = p
	return g
}

// pair is a view and the oracle that watches it, and a second view that is told the same.
type pair struct {
	v, twin *View
	o       *oracle
	n       int
	uids    []string
	alike   bool
}

func (p *pair) both(f func(*View)) { f(p.v); f(p.twin) }

func (p *pair) setHost(t *rapid.T) {
	h := drawHost(t, fmt.Sprintf("h%03d", rapid.IntRange(0, 59).Draw(t, "host")))
	if p.alike {
		h.Capacity = group.Resources{MilliCPU: 4000, Memory: 4 * gb}
	}
	p.o.hosts[h.Name] = h
	p.both(func(v *View) { v.SetHost(h) })
}

func (p *pair) removeHost(t *rapid.T) {
	name := fmt.Sprintf("h%03d", rapid.IntRange(0, 59).Draw(t, "host"))
	delete(p.o.hosts, name)
	p.both(func(v *View) { v.RemoveHost(name) })
}

func (p *pair) release(t *rapid.T) {
	if len(p.uids) == 0 {
		return
	}
	i := rapid.IntRange(0, len(p.uids)-1).Draw(t, "which")
	delete(p.o.groups, p.uids[i])
	p.both(func(v *View) { v.Release(p.uids[i]) })
	p.uids = slices.Delete(p.uids, i, i+1)
}

func (p *pair) take(t *rapid.T) {
	uid := fmt.Sprintf("g%d", p.n)
	p.n++
	again := len(p.uids) > 0 && rapid.IntRange(0, 9).Draw(t, "again") == 0
	if again {
		uid = rapid.SampledFrom(p.uids).Draw(t, "which")
	}
	g := drawGroup(t, uid)
	if len(p.uids) > 0 && rapid.IntRange(0, 2).Draw(t, "replica") > 0 {
		copied := *p.o.groups[p.uids[len(p.uids)-1-rapid.IntRange(0, min(len(p.uids)-1, 3)).Draw(t, "of")]]
		copied.UID, copied.Host = uid, ""
		g = &copied
	}
	var possible []string
	for name, h := range p.o.hosts {
		if p.o.feasible(g, h) {
			possible = append(possible, name)
		}
	}
	for _, verdict := range p.v.Explain(g) {
		if verdict.Fits != slices.Contains(possible, verdict.Host) {
			t.Fatalf("Explain(%+v) says %+v of a host, of those that can: %v", g.Spec, verdict, possible)
		}
	}
	said := p.v.Place(g)
	d, e := p.v.Take(g), p.twin.Take(g)
	if d.Host != e.Host || d.Victim != e.Victim || !slices.Equal(d.Victims, e.Victims) || said.Host != d.Host {
		t.Fatalf("Take = %+v, the twin's %+v, Place = %+v", d, e, said)
	}
	if (d.Host != "") != (len(possible) > 0) || d.Host != "" && !slices.Contains(possible, d.Host) {
		t.Fatalf("Take(%s %+v %+v) = %+v, possible %v", uid, g.Spec, g.Spec.Placement, d, possible)
	}
	if d.Host == "" {
		p.checkVictims(t, g, d)
		return
	}
	placed := *g
	placed.Host = d.Host
	p.o.groups[uid] = &placed
	if !again {
		p.uids = append(p.uids, uid)
	}
}

// checkVictims tries every way to make room by ending Spot groups.
func (p *pair) checkVictims(t *rapid.T, g *group.Group, d Decision) {
	fewest := -1
	for name, h := range p.o.hosts {
		var spots []string
		for uid, other := range p.o.groups {
			if other.Host == name && other.Spec.Priority == group.PrioritySpot {
				spots = append(spots, uid)
			}
		}
		if len(spots) > 6 || g.Spec.Priority == group.PrioritySpot || p.o.groups[g.UID] != nil {
			return // too many to try, or a case of its own
		}
		for set := 1; set < 1<<len(spots); set++ {
			var gone []string
			for i, uid := range spots {
				if set>>i&1 == 1 {
					gone = append(gone, uid)
				}
			}
			if (fewest < 0 || len(gone) < fewest) && p.o.without(gone...).feasible(g, h) {
				fewest = len(gone)
			}
		}
	}
	if g.Spec.Priority == group.PrioritySpot {
		fewest = -1
	}
	if (fewest > 0) != (d.Victim != "") {
		// A victim may itself be what the newcomer's affinity needs: taking all away and giving back is then too coarse.
		if fewest > 0 && len(g.Spec.Where().Affinity)+len(g.Spec.Where().Spread) > 0 {
			return
		}
		t.Fatalf("Take(%+v) = %+v, but %d victims would do", g.Spec, d, fewest)
	}
	if d.Victim != "" && !p.o.without(d.Victims...).feasible(g, p.o.hosts[d.Victim]) {
		t.Fatalf("Take(%+v) = %+v, which is not enough", g.Spec, d)
	}
	if fewest == 1 && len(d.Victims) != 1 && len(g.Spec.Where().Affinity)+len(g.Spec.Where().AntiAffinity)+len(g.Spec.Where().Spread) == 0 && g.Spec.Containers[0].Requests.GPUs == 0 && g.Spec.EphemeralStorage == 0 {
		t.Logf("Take(%+v) = %+v, but one victim would do", g.Spec, d)
	}
}

// check looks at what must hold after every step.
func (p *pair) check(t *rapid.T) {
	for name := range p.o.hosts {
		h := p.o.hosts[name]
		used := p.o.policies.of(h.Pool).capacity(h.Capacity).Sub(p.o.free(name))
		if got := p.v.Used(name); got != used {
			t.Fatalf("Used(%s) = %+v, want %+v", name, got, used)
		}
	}
}

func TestViewAgreesWithOracle(t *testing.T) {
	for name, l := range map[string]limits{"small fleet": {fineSections, smallFleet, idleClasses, tries}, "large fleet": {fineSections, 0, 5, 1}, "hosts all different": {3, 0, 5, 1}} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				policies := Policies{Default: Policy{CPUOvercommit: 1}, Pools: map[string]Policy{"b": {CPUOvercommit: 2, Pack: true}, "c": {MemoryOvercommit: 1.5, Pack: true}}}
				p := &pair{v: NewView(policies), twin: NewView(policies), o: &oracle{policies, map[string]host.Host{}, map[string]*group.Group{}}}
				p.alike = rapid.Bool().Draw(t, "alike")
				p.both(func(v *View) { v.limits, v.sweepClasses, v.sweepSections = l, l.idle, 4 })
				for range rapid.SampledFrom([]int{0, 5, 80}).Draw(t, "hosts") {
					p.setHost(t)
				}
				t.Repeat(map[string]func(*rapid.T){"host": p.setHost, "remove": p.removeHost, "release": p.release, "take": p.take, "take more": p.take, "take yet more": p.take, "": p.check})
			})
		})
	}
}
