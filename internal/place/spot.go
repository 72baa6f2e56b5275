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

// evict finds the Spot groups of one host that have to leave: all of them are taken away, then as many as possible come
// back, the small ones first, of equals the older; then each victim is exchanged for a smaller one that suffices.
func (a *ask) evict(m int32) (eviction, bool) {
	v := a.v
	h := &v.machines[m]
	free := h.free
	var spots []int32
	for _, r := range h.records {
		if v.records[r].class.spot {
			spots = append(spots, r)
			free = free.Add(v.records[r].need)
		}
	}
	if !a.need.Within(free) {
		return eviction{}, false
	}
	slices.SortFunc(spots, func(x, y int32) int {
		p, q := &v.records[x], &v.records[y]
		return cmp.Or(cmp.Compare(a.size(p), a.size(q)), cmp.Compare(p.created, q.created), cmp.Compare(p.uid, q.uid))
	})
	for _, r := range spots {
		v.count(&v.records[r], -1)
	}
	out := slices.Clone(spots)
	if a.afterwards(m, free) {
		for _, r := range spots {
			out = a.spare(m, &free, out, r)
		}
		for i := range out {
			a.exchange(m, &free, out, i, spots)
		}
	} else {
		out = nil
	}
	for _, r := range spots {
		if out == nil || slices.Contains(out, r) {
			v.count(&v.records[r], 1)
		}
	}
	a.reset()
	if out == nil {
		return eviction{}, false
	}
	e := eviction{host: h.host.Name, groups: out, oldest: v.records[out[0]].created}
	for _, r := range out {
		e.oldest, e.weight = min(e.oldest, v.records[r].created), e.weight+a.size(&v.records[r])
	}
	return e, true
}

// spare keeps a group, when there is room for it beside the newcomer.
func (a *ask) spare(m int32, free *group.Resources, out []int32, r int32) []int32 {
	kept := &a.v.records[r]
	a.v.count(kept, 1)
	less := free.Sub(kept.need)
	if a.afterwards(m, less) {
		*free = less
		return slices.DeleteFunc(out, func(o int32) bool { return o == r })
	}
	a.v.count(kept, -1)
	return out
}

// exchange puts the smallest kept group in the place of a victim, where that is enough.
func (a *ask) exchange(m int32, free *group.Resources, out []int32, i int, spots []int32) {
	v := a.v
	victim := &v.records[out[i]]
	for _, r := range spots {
		kept := &v.records[r]
		if slices.Contains(out, r) || a.size(kept) >= a.size(victim) {
			continue
		}
		v.count(kept, -1)
		v.count(victim, 1)
		if next := free.Add(kept.need).Sub(victim.need); a.afterwards(m, next) {
			*free, out[i] = next, r
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
