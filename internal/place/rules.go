package place

import "spillway.dev/spillway/internal/group"

// permits says whether the rules about other groups allow the group in a domain; 0 is none.
func (a *ask) permits(at int, id int32) bool {
	for _, s := range a.c.matches {
		if s.forbids[at].of(id) > 0 {
			return false
		}
		if a.soft && len(s.wishes[at].entries) > 0 && s.wishes[at].of(id) < 0 {
			return false
		}
	}
	for i := range a.c.own[at] {
		t := &a.c.own[at][i]
		if (t.weight == 0 || a.soft) && !a.meets(t, at, id, a.low[at][i]) {
			return false
		}
	}
	return true
}

// meets says whether a domain meets one rule. low is the count of the emptiest domain, of a spread.
func (a *ask) meets(t *term, at int, id int32, low int64) bool {
	n := t.sel.matched[at].of(id)
	switch t.kind {
	case antiAffinity: // where there is no domain, nobody is in it
		return n == 0
	case affinity:
		switch {
		case n > 0:
			return true
		case t.weight > 0: // a wish that nobody can fulfil counts for nothing
			return t.sel.total == 0
		}
		return id != 0 && t.sel.total == 0 && t.self // the first of its own kind
	}
	if t.self {
		n++
	}
	return id != 0 && n-low <= t.skew
}

// lowest is the emptiest domain of a spread, with what has to stay as it is for that to hold.
type lowest struct {
	id            int32
	n             int64
	stands, drops int64
	layout        int64
}

// floor is the count of the emptiest domain of a spread rule, of those in which a host stands that may take the group.
func (a *ask) floor(at, i int) int64 {
	t := &a.c.own[at][i]
	if t.kind != spread {
		return 0
	}
	counts := &t.sel.matched[at]
	ids := a.standing(at)
	if len(counts.entries) < len(ids) {
		return 0
	}
	if len(ids) == 0 {
		return 0
	}
	low := &a.c.worst[at][i]
	if low.stands == a.v.stands && low.layout == a.v.layout && low.drops == counts.drops && low.id != 0 && counts.of(low.id) == low.n {
		return low.n
	}
	*low = lowest{id: ids[0], n: counts.of(ids[0]), stands: a.v.stands, layout: a.v.layout, drops: counts.drops}
	for _, id := range ids[1:] {
		if n := counts.of(id); n < low.n {
			low.id, low.n = id, n
		}
	}
	return low.n
}

// standing is the domains in which open hosts of a class stand, worked out anew when hosts have come or gone.
type standing [topologies]struct {
	stands, layout int64
	ids            []int32
}

func (a *ask) standing(at int) []int32 {
	v, c := a.v, a.c
	known := &c.standing[at]
	if known.stands == v.stands+1 && known.layout == v.layout {
		return known.ids
	}
	known.stands, known.layout, known.ids = v.stands+1, v.layout, known.ids[:0]
	var seen bitset
	add := func(id int32) {
		if id != 0 && !seen.has(int(id)) {
			seen.set(int(id))
			known.ids = append(known.ids, id)
		}
	}
	one := at == onHost // look at each host
	for id, s := range v.sections {
		if !c.allowed.has(id) || s.machines == 0 {
			continue
		}
		switch {
		case at == onZone && !s.coarse:
			add(s.zone)
		case at == onDomain && !s.coarse:
			add(s.domain)
		default:
			one = true
		}
	}
	if one {
		for m := range v.machines {
			h := &v.machines[m]
			if h.open && c.allowed.has(int(h.section)) && group.Match(c.where.Require, h.host.Labels) {
				add(h.place(int32(m), at))
			}
		}
	}
	return known.ids
}
