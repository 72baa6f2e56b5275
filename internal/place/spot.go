package place

import (
	"cmp"
	"slices"

	"spillway.dev/spillway/internal/group"
)

// victims finds the host on which the fewest Spot groups have to leave for a regular group to have room; of equals the
// one whose victims are younger, then smaller, then the first by name. It looks at every host that has Spot groups.
func (a *ask) victims() (name string, uids []string) {
	var best eviction
	for _, spot := range a.v.spots.entries {
		m := spot.id - 1
		if h := &a.v.machines[m]; !h.open || !a.c.allowed.has(int(h.section)) {
			continue
		}
		if e, ok := a.evict(m); ok && (best.groups == nil || e.compare(&best) < 0) {
			best = e
		}
	}
	for _, r := range best.groups {
		uids = append(uids, a.v.records[r].uid)
	}
	return best.host, uids
}

// eviction is a host with the groups that would leave it.
type eviction struct {
	host   string
	groups []int32
	oldest int64 // the creation of the oldest of them
	weight float64
}

func (e *eviction) compare(o *eviction) int {
	return cmp.Or(len(e.groups)-len(o.groups), cmp.Compare(o.oldest, e.oldest), cmp.Compare(e.weight, o.weight), cmp.Compare(e.host, o.host))
}

// clearing is the making of room on one host: what would be free, who would leave.
type clearing struct {
	m     int32
	free  group.Resources
	spots []int32 // all Spot groups of the host, small ones first, of equals the older
	out   []int32 // those that would leave
}

// evict finds the Spot groups of one host that have to leave: all of them are taken away, then as many as possible come
// back, the small ones first; then each victim is exchanged for a smaller one that suffices.
func (a *ask) evict(m int32) (eviction, bool) {
	v := a.v
	h := &v.machines[m]
	c := clearing{m: m, free: h.free}
	for _, r := range h.records {
		if v.records[r].class.spot {
			c.spots = append(c.spots, r)
			c.free = c.free.Add(v.records[r].need)
		}
	}
	if !a.need.Within(c.free) {
		return eviction{}, false
	}
	slices.SortFunc(c.spots, func(x, y int32) int {
		p, q := &v.records[x], &v.records[y]
		return cmp.Or(cmp.Compare(a.size(p), a.size(q)), cmp.Compare(p.created, q.created), cmp.Compare(p.uid, q.uid))
	})
	for _, r := range c.spots {
		v.count(&v.records[r], -1)
	}
	if a.afterwards(m, c.free) {
		c.out = slices.Clone(c.spots)
		for _, r := range c.spots {
			a.spare(&c, r)
		}
		for i := range c.out {
			a.exchange(&c, i)
		}
	}
	for _, r := range c.spots {
		if c.out == nil || slices.Contains(c.out, r) {
			v.count(&v.records[r], 1)
		}
	}
	a.reset()
	if len(c.out) == 0 {
		return eviction{}, false
	}
	e := eviction{host: h.host.Name, groups: c.out, oldest: v.records[c.out[0]].created}
	for _, r := range c.out {
		e.oldest, e.weight = min(e.oldest, v.records[r].created), e.weight+a.size(&v.records[r])
	}
	return e, true
}

// spare keeps a group, when there is room for it beside the newcomer.
func (a *ask) spare(c *clearing, r int32) {
	kept := &a.v.records[r]
	a.v.count(kept, 1)
	less := c.free.Sub(kept.need)
	if !a.afterwards(c.m, less) {
		a.v.count(kept, -1)
		return
	}
	c.free = less
	c.out = slices.DeleteFunc(c.out, func(o int32) bool { return o == r })
}

// exchange puts the smallest kept group in the place of a victim, where that is enough.
func (a *ask) exchange(c *clearing, i int) {
	v := a.v
	victim := &v.records[c.out[i]]
	for _, r := range c.spots {
		kept := &v.records[r]
		if slices.Contains(c.out, r) || a.size(kept) >= a.size(victim) {
			continue
		}
		v.count(kept, -1)
		v.count(victim, 1)
		if next := c.free.Add(kept.need).Sub(victim.need); a.afterwards(c.m, next) {
			c.free, c.out[i] = next, r
			return
		}
		v.count(victim, -1)
		v.count(kept, 1)
	}
}

// afterwards says whether a host would take the group with so much free and the neighbours that are counted now.
func (a *ask) afterwards(m int32, free group.Resources) bool {
	if !a.need.Within(free) {
		return false
	}
	a.reset()
	h := &a.v.machines[m]
	return (h.held == 0 || h.held == a.hold) && a.cannot(m) == Fits && a.neighbours(m) == Fits
}

// size is a group's part of an average host.
func (a *ask) size(r *record) float64 {
	return max(float64(r.need.MilliCPU)*a.cpuWeight, float64(r.need.Memory)*a.memWeight, float64(r.need.GPUs)/group.MaxGPUs)
}

// Eviction is a regular group that waited, and the Spot groups that have to leave a host for it.
type Eviction struct {
	Group   *group.Group
	Host    string
	Victims []string
}

// Evict finds Spot groups that give way to waiting groups which have been tried and fit nowhere, for at most limit of
// those. Such a group waits no longer: it holds its room on the host, which has less than nothing to give until the
// others are gone, so that nobody comes in between. TakeOn makes the place real.
func (q *Queue) Evict(limit int) (out []Eviction) {
	for i := 0; q.pushing > 0 && i < len(q.waiting) && limit > 0; i++ {
		w := q.waiting[i]
		if w == nil || w.paused || !w.pushes {
			continue
		}
		limit--
		q.push(w, false)
		a, restore := q.v.askFor(q.v.classOf(w.group), w.group)
		a.hold = w.number
		e := Eviction{Group: w.group}
		e.Host, e.Victims = a.victims()
		restore()
		if len(e.Victims) == 0 {
			continue
		}
		q.leave(w)
		there := *w.group
		there.Host = e.Host
		q.v.Assign(&there)
		out = append(out, e)
	}
	return out
}
