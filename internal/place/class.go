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
	key       string
	tenant    *tenant
	labels    map[string]string
	zones     []string
	isolation group.Isolation
	gpuSKU    string
	where     *group.Placement
	spot      bool

	own     [topologies][]term // affinity, anti-affinity and spread of its groups
	matches []*selector        // that find its groups
	posts   []post             // where the tenant lists it
	records []int32            // its groups that hold room
	serial  int64
	used    int64 // when last asked for, by View.asks

	layout   int64 // of the sections that plan and ideal know
	plan     []stage
	ideal    []stage // sections that every preference is content with
	allowed  bitset
	standing standing
	failed   failure
	worst    [topologies][]lowest // per spread term
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

func appendPlacement(key []byte, p *group.Placement) []byte {
	for _, pool := range p.Pools {
		key = appendText(key, pool)
	}
	key = appendConditions(append(key, '|'), p.Require)
	for i := range p.Prefer {
		key = strconv.AppendInt(key, int64(p.Prefer[i].Weight), 10)
		key = appendConditions(key, p.Prefer[i].Match)
	}
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
	c := &class{key: string(key), labels: s.Labels, zones: g.Zones, isolation: s.Isolation, gpuSKU: s.GPUSKU(),
		where: s.Where(), spot: s.Priority == group.PrioritySpot, serial: v.serial, used: v.asks}
	if c.isolation == "" {
		c.isolation = group.IsolationShared
	}
	c.tenant = v.tenantOf(g.Ref.Subscription)
	c.tenant.join(v, c)
	v.classes[c.key] = c
	return c
}

// idleClasses is how many classes without groups are remembered at least; more are forgotten, the longest unused first.
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
	}
	v.swept = v.asks
	v.sweepClasses = len(v.classes) + v.limits.idle
}

// fits says whether the hosts of a section may run the class's groups at all, as far as the section tells.
func (c *class) fits(v *View, s *section) bool {
	p := c.where
	switch {
	case len(p.Pools) > 0 && !slices.Contains(p.Pools, s.pool),
		!slices.Contains(s.isolation, c.isolation),
		len(c.zones) > 0 && s.zone != 0 && !slices.Contains(c.zones, v.zoneNames[s.zone]),
		c.gpuSKU != "" && s.gpuSKU != c.gpuSKU:
		return false
	}
	return s.coarse || group.Match(p.Require, s.labels)
}

// refresh works out the plan anew after sections have come.
func (c *class) refresh(v *View) {
	if c.layout == v.layout {
		return
	}
	c.layout = v.layout
	// Hosts without GPUs go first: the others are for those who need them.
	var all, best [4]bitset
	c.allowed = nil
	for id, s := range v.sections {
		if !c.fits(v, s) {
			continue
		}
		c.allowed.set(id)
		at := 0
		if s.gpuSKU != "" || s.gpus > 0 {
			at = 2
		}
		if !s.pack {
			at++
		}
		all[at].set(id)
		if s.coarse || c.content(s.labels) {
			best[at].set(id)
		}
	}
	c.plan, c.ideal = stages(all), nil
	if len(c.where.Prefer) > 0 {
		c.ideal = stages(best)
	} else {
		c.ideal = c.plan
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
func (c *class) content(labels map[string]string) bool {
	for i := range c.where.Prefer {
		if !group.Match(c.where.Prefer[i].Match, labels) {
			return false
		}
	}
	return true
}
