package place

import (
	"cmp"
	"math"
	"strings"

	"spillway.dev/spillway/internal/group"
)

// What preferences without a weight of their own are worth.
const (
	skewWeight  = 10 // for each group that a domain has more than the emptiest
	imageWeight = 5  // for each image that is there
)

// prefers says whether any preference is in play.
func (a *ask) prefers() bool {
	if len(a.c.where.Prefer) > 0 {
		return true
	}
	for at := range a.watch {
		if !a.watch[at] {
			continue
		}
		for i := range a.c.own[at] {
			if a.c.own[at][i].weight > 0 {
				return true
			}
		}
		for _, s := range a.c.matches {
			if len(s.wishes[at].entries) > 0 {
				return true
			}
		}
	}
	return false
}

// score is what preferences make of a host.
func (a *ask) score(m int32) int64 {
	h, c := &a.v.machines[m], a.c
	sum := int64(0)
	for i := range c.where.Prefer {
		if p := &c.where.Prefer[i]; group.Match(p.Match, h.host.Labels) {
			sum += int64(p.Weight)
		}
	}
	for at := range a.watch {
		if !a.watch[at] {
			continue
		}
		id := h.place(m, at)
		for _, s := range c.matches {
			sum += s.wishes[at].of(id)
		}
		for i := range c.own[at] {
			t := &c.own[at][i]
			if t.weight == 0 {
				continue
			}
			n := t.sel.matched[at].of(id)
			switch t.kind {
			case affinity:
				sum += t.weight * min(n, 1)
			case antiAffinity:
				sum -= t.weight * n
			case spread:
				sum -= skewWeight * (n - a.low[at][i])
			}
		}
	}
	return sum + imageWeight*int64(a.pictures(m))
}

// pictures counts the group's images that are on a host.
func (a *ask) pictures(m int32) int {
	n := 0
	for _, t := range a.images {
		if t.of(m+1) > 0 {
			n++
		}
	}
	return n
}

// nearImage gives a host that has the group's images and is as good as the one that was found.
func (a *ask) nearImage(m int32, sections bitset) int32 {
	if len(a.images) == 0 || a.collect > 0 || a.pictures(m) == len(a.images) {
		return m
	}
	at := a.v.machines[m].cell
	for _, t := range a.images {
		for i := 0; i < min(len(t.entries), pointed); i++ {
			o := t.entries[i].id - 1
			if h := &a.v.machines[o]; h.open && h.cell == at && sections.has(int(h.section)) && a.pictures(o) > a.pictures(m) && a.fits(o) {
				m = o
			}
		}
	}
	return m
}

// gather collects hosts with room, each cell's first ones, in the order of a search.
func (a *ask) gather(plan []stage, most, tries int) {
	a.collect = most
	a.run(plan, tries)
	a.collect = 0
}

// few collects the hosts that a rule leaves, when it leaves few: those with a certain label, or with certain groups.
func (a *ask) few() bool {
	a.found = a.found[:0]
	var least *tally
	for i := range a.c.own[onHost] {
		t := &a.c.own[onHost][i]
		if t.kind != affinity || t.weight > 0 || t.sel.total == 0 && t.self {
			continue
		}
		if own := &t.sel.matched[onHost]; least == nil || len(own.entries) < len(least.entries) {
			least = own
		}
	}
	if least != nil {
		a.pick(least, fewHosts)
		return true
	}
	if a.v.fine < a.v.limits.fine { // sections know all labels
		return false
	}
	for i := range a.c.where.Require {
		if a.labelled(&a.c.where.Require[i]) {
			return true
		}
	}
	return false
}

// labelled collects the hosts that meet a condition on a label, when few do.
func (a *ask) labelled(e *group.Expression) bool {
	if e.Operator != group.In {
		return false
	}
	n := 0
	for _, value := range e.Values {
		if t := a.v.byLabel[pairOf(e.Key, value)]; t != nil {
			n += len(t.entries)
		}
	}
	if n > fewHosts {
		return false
	}
	for _, value := range e.Values {
		if t := a.v.byLabel[pairOf(e.Key, value)]; t != nil {
			a.pick(t, math.MaxInt)
		}
	}
	return true
}

// pick collects hosts of a tally, at most so many that take the group.
func (a *ask) pick(t *tally, most int) {
	for _, e := range t.entries {
		if m := e.id - 1; a.fits(m) {
			if a.found = append(a.found, m); len(a.found) >= most {
				return
			}
		}
	}
}

// weigh takes a sample of hosts with room and gives the one that preferences like best: some of every zone, those that
// preferences point at, and those that a search without preferences would find first.
func (a *ask) weigh() int32 {
	a.found = a.found[:0]
	c := a.c
	for _, s := range c.matches {
		a.point(&s.wishes[onHost])
	}
	for i := range c.own[onHost] {
		if t := &c.own[onHost][i]; t.kind == affinity {
			a.point(&t.sel.matched[onHost])
		}
	}
	a.gather(c.ideal, len(a.found)+sample/4, tries)
	if a.watch[onZone] {
		zones := a.v.zoneNames
		for z := 1; z < len(zones) && z <= sample; z++ {
			a.only = int32(z)
			a.gather(c.plan, len(a.found)+sample/4, tries)
		}
		a.only = 0
	}
	a.gather(c.plan, len(a.found)+sample, tries)
	return a.best()
}

// point collects hosts that are counted in a tally of hosts.
func (a *ask) point(t *tally) {
	for i := 0; i < min(len(t.entries), pointed); i++ {
		if e := t.entries[i]; e.n > 0 && a.fits(e.id-1) {
			a.found = append(a.found, e.id-1)
		}
	}
}

// best is the host that is preferred among those that were found; of equals the one that the pool's policy likes, then
// the first by name.
func (a *ask) best() int32 {
	best := nobody
	for _, m := range a.found {
		if best == nobody || a.compare(m, best) < 0 {
			best = m
		}
	}
	return best
}

func (a *ask) compare(x, y int32) int {
	v := a.v
	if d := cmp.Compare(a.score(y), a.score(x)); d != 0 {
		return d
	}
	i, j := a.stageOf(x), a.stageOf(y)
	if i != j {
		return i - j
	}
	d := cmp.Compare(v.machines[y].share(), v.machines[x].share())
	if a.c.plan[i].pack {
		d = cmp.Compare(a.left(x), a.left(y))
	}
	if d != 0 {
		return d
	}
	return strings.Compare(v.machines[x].host.Name, v.machines[y].host.Name)
}

func (a *ask) stageOf(m int32) int {
	for i := range a.c.plan {
		if a.c.plan[i].sections.has(int(a.v.machines[m].section)) {
			return i
		}
	}
	return 0
}
