package place

import (
	"math"
	"math/bits"

	"spillway.dev/spillway/internal/group"
)

// How much is looked at where more would only be nicer: measured, a larger window packs no tighter.
const (
	smallFleet = 32 // open hosts up to which all are compared, and the order in which they came does not matter
	window     = 4  // hosts with room that are compared in one cell
	tries      = 16 // hosts that are looked at in one cell before the next cell's turn
	sample     = 32 // hosts with room whose preferences are weighed
	pointed    = 16 // hosts that are looked at because a preference points at them
	fewHosts   = 64 // hosts that are looked at one by one instead of a search
)

const nobody = int32(-1)

// ask is one search for a host. The view keeps one and uses it again, so that a search makes no garbage.
type ask struct {
	v      *View
	c      *class
	need   group.Resources
	images []*tally // hosts of those of the group's images that are somewhere
	hold   int32    // number of the waiting group that asks, 0 for none

	watch     [topologies]bool // there are rules about other groups there
	zones     []verdict        // by zone, for this search
	domains   []verdict
	low       [topologies][]int64 // of each spread rule: the emptiest domain's count
	cpuWeight float64             // one over what a host has on average
	memWeight float64

	dry       bool  // leave no traces: a later search must go as if this one had not been
	soft      bool  // preferences count as conditions
	tries     int   // in one cell; 0: no limit
	truncated bool  // the limit was met: not all was looked at
	only      int32 // zone, 0: all
	collect   int   // gather so many hosts in found instead of choosing one
	found     []int32
}

// verdict is what a search has found out about a domain.
type verdict uint8

const (
	permitted verdict = iota + 1
	refused
)

// prepare makes the view's ask ready for a group.
func (v *View) prepare(c *class, g *group.Group) *ask {
	a := &v.ask
	a.v, a.c, a.need, a.hold, a.dry = v, c, g.Spec.Total(), 0, false
	a.images = a.images[:0]
	if len(v.byImage) > 0 {
		for i := range g.Spec.Containers {
			if t := v.byImage[g.Spec.Containers[i].Image]; t != nil {
				a.images = append(a.images, t)
			}
		}
	}
	n := float64(max(v.open, 1))
	a.cpuWeight, a.memWeight = n/float64(max(v.cpu, 1)), n/float64(max(v.memory, 1))
	c.refresh(v)
	a.reset()
	return a
}

// reset forgets what was found out about domains, after what groups there are has changed.
func (a *ask) reset() {
	c := a.c
	a.soft, a.only, a.collect, a.truncated = false, 0, 0, false
	for at := range a.watch {
		a.watch[at] = len(c.own[at]) > 0
		a.low[at] = a.low[at][:0]
		for i := range c.own[at] {
			a.low[at] = append(a.low[at], a.floor(at, i))
		}
		for _, s := range c.matches {
			a.watch[at] = a.watch[at] || len(s.forbids[at].entries)+len(s.wishes[at].entries) > 0
		}
	}
	if a.watch[onZone] {
		a.zones = blank(a.zones, len(a.v.zoneNames))
	}
	if a.watch[onDomain] {
		a.domains = blank(a.domains, len(a.v.domainNames))
	}
}

func blank(list []verdict, n int) []verdict {
	if cap(list) < n {
		return make([]verdict, n, 2*n)
	}
	list = list[:n]
	clear(list)
	return list
}

// setSoft makes conditions of preferences, or preferences of them again.
func (a *ask) setSoft(on bool) {
	a.soft = on
	clear(a.zones)
	clear(a.domains)
}

// find gives the machine for a group, nobody when none has room. The order of what is tried: hosts that every
// preference is content with, the best of a sample, any.
func (a *ask) find() int32 {
	v, c := a.v, a.c
	if a.failedBefore() {
		return nobody
	}
	m := nobody
	switch {
	case a.few():
		m = a.best()
	case v.open <= v.limits.small:
		a.gather(c.plan, math.MaxInt, 0)
		m = a.best()
	default:
		if a.prefers() {
			a.setSoft(true)
			m = a.run(c.ideal, v.limits.tries)
			a.setSoft(false)
			if m == nobody {
				m = a.weigh()
			}
		}
		if m == nobody {
			a.truncated = false
			m = a.run(c.plan, v.limits.tries)
		}
		if m == nobody && a.truncated {
			m = a.run(c.plan, 0)
		}
	}
	if m == nobody {
		a.remember()
	}
	return m
}

// stamp is the counter that grows when a refusal of the class may be out of date: rules that want other groups near can
// be met by any change, the others only where there is more room.
func (a *ask) stamp() int64 {
	for at := range a.c.own {
		for _, t := range a.c.own[at] {
			if t.weight == 0 && t.kind != antiAffinity {
				return a.v.changes
			}
		}
	}
	return a.v.better
}

func (a *ask) failedBefore() bool {
	f := &a.c.failed
	return f.at != 0 && f.at == a.stamp() && f.need.Within(a.need) && a.hold == 0
}

func (a *ask) remember() {
	if a.hold == 0 && !a.dry {
		a.c.failed = failure{need: a.need, at: a.stamp()}
	}
}

// run searches the stages in order.
func (a *ask) run(plan []stage, tries int) int32 {
	a.tries = tries
	for i := range plan {
		m := nobody
		if a.collect > 0 && len(a.found) >= a.collect {
			break
		}
		if plan[i].pack {
			m = a.fullest(plan[i].sections)
		} else {
			m = a.emptiest(plan[i].sections)
		}
		if m != nobody {
			return a.nearImage(m, plan[i].sections)
		}
	}
	return nobody
}

// fullest finds the host that is left with the least. Rows and columns go from the request upwards; a row is left when
// nothing in it can be better than what is found.
func (a *ask) fullest(sections bitset) int32 {
	g := &a.v.grid
	row, col := level(a.need.MilliCPU, cpuBase), level(a.need.Memory, memoryBase)
	best, least := nobody, math.Inf(1)
	for rows := g.rows >> row << row; rows != 0; rows &= rows - 1 {
		i := bits.TrailingZeros64(rows)
		base := float64(max(amount(i, cpuBase)-a.need.MilliCPU, 0)) * a.cpuWeight
		if base >= least {
			break
		}
		for cols := g.cols[i] >> col << col; cols != 0; cols &= cols - 1 {
			j := bits.TrailingZeros64(cols)
			if base+float64(max(amount(j, memoryBase)-a.need.Memory, 0))*a.memWeight >= least {
				break
			}
			m := a.look(sections, cell(i<<6|j), true)
			if a.collect > 0 && len(a.found) >= a.collect {
				return nobody
			}
			if m != nobody {
				if left := a.left(m); left < least {
					best, least = m, left
				}
				break
			}
		}
	}
	return best
}

// emptiest finds the host with the largest share free, from the top of the grid downwards.
func (a *ask) emptiest(sections bitset) int32 {
	g := &a.v.grid
	row, col := level(a.need.MilliCPU, cpuBase), level(a.need.Memory, memoryBase)
	best, most := nobody, math.Inf(-1)
	for rows := g.rows >> row << row; rows != 0; {
		i := 63 - bits.LeadingZeros64(rows)
		rows &^= 1 << i
		bound := above(i, cpuBase) * a.cpuWeight
		if bound <= most {
			break
		}
		for cols := g.cols[i] >> col << col; cols != 0; {
			j := 63 - bits.LeadingZeros64(cols)
			cols &^= 1 << j
			if min(bound, above(j, memoryBase)*a.memWeight) <= most {
				break
			}
			m := a.look(sections, cell(i<<6|j), false)
			if a.collect > 0 && len(a.found) >= a.collect {
				return nobody
			}
			if m != nobody {
				h := &a.v.machines[m]
				if share := min(float64(h.free.MilliCPU)*a.cpuWeight, float64(h.free.Memory)*a.memWeight); share > most {
					best, most = m, share
				}
				break
			}
		}
	}
	return best
}

// above is what no amount of a level reaches.
func above(level, base int) float64 {
	if level == levels-1 {
		return math.Inf(1)
	}
	return float64(amount(level+1, base))
}

// look finds the best host in one cell.
func (a *ask) look(sections bitset, at cell, pack bool) int32 {
	v := a.v
	set := v.grid.cells[at]
	best, budget, room := nobody, a.tries, window
	for w := range min(len(set), len(sections)) {
		for word := set[w] & sections[w]; word != 0; word &= word - 1 {
			s := v.sections[w*64+bits.TrailingZeros64(word)]
			if !a.suits(s) {
				continue
			}
			b := s.at(at)
			if !a.need.Within(b.bound) {
				continue
			}
			best = a.scan(s, b, scanning{&budget, &room, best, pack})
			if room <= 0 || a.tries > 0 && budget <= 0 {
				a.truncated = a.truncated || room > 0
				return best
			}
		}
	}
	return best
}

// scanning is what a look through a cell has left to do, and what it has found.
type scanning struct {
	budget *int // hosts that may still be looked at
	room   *int // hosts that may still be found
	best   int32
	pack   bool
}

// scan looks at the hosts of a bucket, each in its turn.
func (a *ask) scan(s *section, b *bucket, l scanning) int32 {
	n := len(b.machines)
	at, short := int(b.turn)%n, 0
	for range n {
		if *l.room <= 0 || a.tries > 0 && *l.budget <= 0 {
			return l.best
		}
		*l.budget--
		m := b.machines[at]
		if at++; at == n {
			at = 0
		}
		if !a.need.Within(a.v.machines[m].free) {
			short++
			continue
		}
		if !a.takes(s, m) {
			continue
		}
		if a.collect > 0 {
			if a.found = append(a.found, m); len(a.found) >= a.collect {
				return nobody
			}
			continue
		}
		*l.room--
		if l.best == nobody || a.better(m, l.best, l.pack) {
			l.best = m
		}
	}
	if short == n && !a.dry { // all was looked at, and nothing was large enough: say so to the next search
		b.bound = a.v.machines[b.machines[0]].free
		for _, m := range b.machines[1:] {
			b.bound = b.bound.Max(a.v.machines[m].free)
		}
	}
	return l.best
}

// better compares two hosts of one cell: by images, then by what is left.
func (a *ask) better(m, than int32, pack bool) bool {
	if x, y := a.pictures(m), a.pictures(than); x != y {
		return x > y
	}
	if pack {
		return a.left(m) < a.left(than)
	}
	return a.v.machines[m].share() > a.v.machines[than].share()
}

// left is what a host would have left, in parts of an average host, CPU and memory together.
func (a *ask) left(m int32) float64 {
	free := &a.v.machines[m].free
	return float64(free.MilliCPU-a.need.MilliCPU)*a.cpuWeight + float64(free.Memory-a.need.Memory)*a.memWeight
}

// share is the part of a host that is free, by the scarcer of CPU and memory.
func (h *machine) share() float64 {
	if h.most.MilliCPU <= 0 || h.most.Memory <= 0 {
		return 0
	}
	return min(float64(h.free.MilliCPU)/float64(h.most.MilliCPU), float64(h.free.Memory)/float64(h.most.Memory))
}

// suits says whether what a section tells permits the group.
func (a *ask) suits(s *section) bool {
	return s.gpus >= a.need.GPUs && (a.only == 0 || a.only == s.zone) &&
		(!a.watch[onZone] || a.judge(a.zones, onZone, s.zone)) &&
		(!a.watch[onDomain] || s.coarse || a.judge(a.domains, onDomain, s.domain))
}

func (a *ask) judge(known []verdict, at int, id int32) bool {
	if known[id] == 0 {
		known[id] = refused
		if a.permits(at, id) {
			known[id] = permitted
		}
	}
	return known[id] == permitted
}

// takes says whether a host that has the room, of a section that suits, takes the group.
func (a *ask) takes(s *section, m int32) bool {
	h := &a.v.machines[m]
	if h.held != 0 && h.held != a.hold {
		return false
	}
	if s.coarse {
		if !group.Match(a.c.where.Require, h.host.Labels) || a.watch[onDomain] && !a.judge(a.domains, onDomain, h.domain) ||
			a.soft && !a.c.content(h.host.Labels) {
			return false
		}
	}
	return !a.watch[onHost] || a.permits(onHost, m+1)
}

// fits says whether a host, any one, takes the group.
func (a *ask) fits(m int32) bool {
	h := &a.v.machines[m]
	if !h.open || !a.need.Within(h.free) || !a.c.allowed.has(int(h.section)) {
		return false
	}
	s := a.v.sections[h.section]
	return a.suits(s) && a.takes(s, m)
}
