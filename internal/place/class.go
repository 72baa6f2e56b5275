package place

import (
	"cmp"
	"slices"
	"strconv"

	"spillway.dev/spillway/internal/group"
)

// Topologies as small numbers.
const (
	onHost = iota
	onDomain
	onZone
	topologies
)

func topologyOf(t group.Topology) int {
	switch t {
	case group.TopologyZone:
		return onZone
	case group.TopologyFaultDomain:
		return onDomain
	}
	return onHost
}

// class is the groups that are alike in everything but size and images: replicas of one specification. What the rules
// say about sections is worked out once for all of them.
type class struct {
	*rule
	key    string
	tenant *tenant
	labels map[string]string
	where  *group.Placement
	spot   bool

	own     [topologies][]term // affinity, anti-affinity and spread of its groups
	matches []*selector        // that find its groups
	posts   []post             // where the tenant lists it
	records []int32            // its groups that hold room
	serial  int64
	used    int64 // when last asked for, by View.asks

	failed failure
	worst  [topologies][]lowest // per spread term
}

// rule is what classes ask of hosts, whatever their labels are and their groups say of others: many classes have one.
type rule struct {
	rulers    int // classes
	ruleKey   string
	zones     []string
	isolation group.Isolation
	gpuSKU    string
	subnet    bool // the groups have addresses of virtual networks
	pools     []string
	require   []group.Expression
	prefer    []group.Preference

	layout   int64 // of the sections that plan and ideal know
	plan     []stage
	ideal    []stage // sections that every preference is content with
	allowed  bitset
	standing standing
}

// stage is sections that are tried together.
type stage struct {
	sections bitset
	pack     bool
}

type termKind uint8

const (
	affinity termKind = iota
	antiAffinity
	spread
)

// term is one rule of a class about other groups.
type term struct {
	kind   termKind
	sel    *selector
	weight int64 // 0: required
	skew   int64
	self   bool // the class itself is found by it
}

// failure remembers the smallest request that fitted nowhere, for as long as nothing got better.
type failure struct {
	need group.Resources
	at   int64 // View.better or View.changes; 0: never
	hold int32
}

// key writes what tells a class from others into the view's buffer.
func (v *View) classKey(g *group.Group) []byte {
	s := &g.Spec
	key := appendText(v.key[:0], g.Ref.Subscription)
	if s.Isolation != "" && s.Isolation != group.IsolationShared {
		key = appendText(key, string(s.Isolation))
	}
	key = append(key, '|')
	if s.Subnet != nil {
		key = append(key, 'n')
	}
	if s.Priority == group.PrioritySpot {
		key = append(key, 's')
	}
	key = append(key, '|')
	for _, z := range g.Zones {
		key = appendText(key, z)
	}
	key = append(key, '|')
	key = appendText(key, s.GPUSKU())
	v.names = v.names[:0]
	for k := range s.Labels {
		v.names = append(v.names, k)
	}
	slices.Sort(v.names)
	for _, k := range v.names {
		key = appendText(key, k)
		key = appendText(key, s.Labels[k])
	}
	key = append(key, '|')
	if p := s.Placement; p != nil {
		key = appendPlacement(key, p)
	}
	v.key = key
	return key
}

func appendHosts(key []byte, p *group.Placement) []byte {
	for _, pool := range p.Pools {
		key = appendText(key, pool)
	}
	key = appendConditions(append(key, '|'), p.Require)
	for i := range p.Prefer {
		key = strconv.AppendInt(key, int64(p.Prefer[i].Weight), 10)
		key = appendConditions(key, p.Prefer[i].Match)
	}
	return key
}

func appendPlacement(key []byte, p *group.Placement) []byte {
	key = appendHosts(key, p)
	for _, list := range [][]group.Affinity{p.Affinity, p.AntiAffinity} {
		key = append(key, '|')
		for i := range list {
			key = strconv.AppendInt(key, int64(list[i].Weight), 10)
			key = appendConditions(append(key, list[i].Topology...), list[i].Match)
		}
	}
	key = append(key, '|')
	for i := range p.Spread {
		t := &p.Spread[i]
		key = strconv.AppendInt(key, int64(t.MaxSkew), 10)
		key = strconv.AppendBool(append(key, t.Topology...), t.Anyway)
		key = appendConditions(key, t.Match)
	}
	return key
}

func appendConditions(key []byte, list []group.Expression) []byte {
	key = append(key, '(')
	for i := range list {
		key = append(appendText(key, list[i].Key), list[i].Operator...)
		for _, value := range list[i].Values {
			key = appendText(key, value)
		}
	}
	return append(key, ')')
}

// classOf finds the class of a group, or makes it.
func (v *View) classOf(g *group.Group) *class {
	v.asks++
	key := v.classKey(g)
	if c := v.classes[string(key)]; c != nil {
		c.used = v.asks
		return c
	}
	if len(v.classes) >= v.sweepClasses {
		v.sweepIdle()
	}
	v.serial++
	s := &g.Spec
	c := &class{key: string(key), labels: s.Labels, where: s.Where(), spot: s.Priority == group.PrioritySpot, serial: v.serial, used: v.asks}
	c.rule = v.ruleOf(g)
	c.rulers++
	c.tenant = v.tenantOf(g.Ref.Subscription)
	c.tenant.join(v, c)
	v.classes[c.key] = c
	return c
}

// ruleOf finds what a group asks of hosts, or makes it.
func (v *View) ruleOf(g *group.Group) *rule {
	s, p := &g.Spec, g.Spec.Where()
	isolation := s.Isolation
	if isolation == "" {
		isolation = group.IsolationShared
	}
	key := append(appendText(v.key[:0], string(isolation)), '|')
	if s.Subnet != nil {
		key = append(key, 'n')
	}
	for _, z := range g.Zones {
		key = appendText(key, z)
	}
	key = appendHosts(append(appendText(append(key, '|'), s.GPUSKU()), '|'), p)
	v.key = key
	r := v.rules[string(key)]
	if r == nil {
		r = &rule{ruleKey: string(key), zones: g.Zones, isolation: isolation, gpuSKU: s.GPUSKU(), subnet: s.Subnet != nil, pools: p.Pools, require: p.Require, prefer: p.Prefer}
		v.rules[r.ruleKey] = r
	}
	return r
}

// idleClasses is how many classes without groups are remembered at least, or half as many as there are; those that were
// not asked for since the last time are forgotten.
const idleClasses = 4096

func (v *View) sweepIdle() {
	var idle []*class
	for _, c := range v.classes {
		if len(c.records) == 0 && c.used <= v.swept {
			idle = append(idle, c)
		}
	}
	slices.SortFunc(idle, func(a, b *class) int { return cmp.Compare(a.serial, b.serial) }) // maps have no order, answers must have one
	for _, c := range idle {
		c.tenant.leave(v, c)
		delete(v.classes, c.key)
		if c.rulers--; c.rulers == 0 {
			delete(v.rules, c.ruleKey)
		}
	}
	v.swept = v.asks - 1                                                   // the class that is being asked for now is not idle
	v.sweepClasses = len(v.classes) + max(v.limits.idle, len(v.classes)/2) // the walk is paid by the classes that came
}

// fits says whether the hosts of a section may run such groups at all, as far as the section tells.
func (r *rule) fits(v *View, s *section) bool {
	switch {
	case len(r.pools) > 0 && !slices.Contains(r.pools, s.pool),
		!slices.Contains(s.isolation, r.isolation),
		r.subnet && !s.spaces,
		len(r.zones) > 0 && s.zone != 0 && !slices.Contains(r.zones, v.zoneNames[s.zone]),
		r.gpuSKU != "" && s.gpuSKU != r.gpuSKU:
		return false
	}
	return s.coarse || group.Match(r.require, s.labels)
}

// refresh works out the plan anew after sections have come.
func (r *rule) refresh(v *View) {
	if r.layout == v.layout {
		return
	}
	r.layout = v.layout
	// Hosts without GPUs go first: the others are for those who need them.
	var all, best [4]bitset
	r.allowed = nil
	for id, s := range v.sections {
		if !r.fits(v, s) {
			continue
		}
		r.allowed.set(id)
		at := 0
		if s.gpuSKU != "" || s.gpus > 0 {
			at = 2
		}
		if !s.pack {
			at++
		}
		all[at].set(id)
		if s.coarse || r.content(s.labels) {
			best[at].set(id)
		}
	}
	r.plan, r.ideal = stages(all), nil
	if len(r.prefer) > 0 {
		r.ideal = stages(best)
	} else {
		r.ideal = r.plan
	}
}

func stages(sets [4]bitset) []stage {
	var out []stage
	for i, set := range sets {
		if !set.empty() {
			out = append(out, stage{set, i%2 == 0})
		}
	}
	return out
}

// content says whether labels of a host meet every preference.
func (r *rule) content(labels map[string]string) bool {
	for i := range r.prefer {
		if !group.Match(r.prefer[i].Match, labels) {
			return false
		}
	}
	return true
}
