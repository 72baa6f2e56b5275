package place

import (
	"math"

	"spillway.dev/spillway/internal/group"
)

// Take finds a host for a group and notes that the group holds room there: g.Host is not read and not written. When the
// group holds room already, it counts where it is until it has another place, but not as its own neighbour.
func (v *View) Take(g *group.Group) Decision {
	c := v.classOf(g)
	if m := v.findFor(c, g, 0, false); m != nobody {
		return v.give(c, g, m)
	}
	return v.refuse(c, g)
}

// Place says what Take would do, and changes nothing.
func (v *View) Place(g *group.Group) Decision {
	c := v.classOf(g)
	if m := v.findFor(c, g, 0, true); m != nobody {
		return Decision{Host: v.machines[m].host.Name}
	}
	return v.refuse(c, g)
}

// findFor finds a host for a group; hold is its number when it waits, dry leaves no traces.
func (v *View) findFor(c *class, g *group.Group, hold int32, dry bool) int32 {
	i, again := v.byUID[g.UID]
	if !again {
		a := v.prepare(c, g)
		a.hold, a.dry = hold, dry
		return a.find()
	}
	v.count(&v.records[i], -1)
	a := v.prepare(c, g)
	a.hold, a.dry = hold, dry
	c.failed.at = 0 // what was refused before counted this group as its own neighbour
	m := a.find()
	c.failed.at = 0
	v.count(&v.records[i], 1)
	return m
}

func (v *View) give(c *class, g *group.Group, m int32) Decision {
	name, need := v.machines[m].host.Name, v.ask.need
	if _, again := v.byUID[g.UID]; again {
		v.Release(g.UID)
	} else {
		v.taken++
	}
	v.assign(g, c, m, need)
	return Decision{Host: name}
}

// refuse explains, and names Spot groups that could give way.
func (v *View) refuse(c *class, g *group.Group) Decision {
	var d Decision
	a, restore := v.askFor(c, g)
	defer restore()
	d.Refusal = a.refusal()
	if !c.spot {
		d.Victim, d.Victims = a.victims()
	}
	return d
}

// askFor prepares an ask in which the group, should it hold room, is not its own neighbour until restore is called.
func (v *View) askFor(c *class, g *group.Group) (a *ask, restore func()) {
	restore = func() {}
	if i, again := v.byUID[g.UID]; again {
		v.count(&v.records[i], -1)
		restore = func() { v.count(&v.records[i], 1) }
	}
	return v.prepare(c, g), restore
}

// TakeOn has a group take room on one host: where it holds it already, if its place there is real. It is false, and the
// group holds nothing, when the host does not take it.
func (v *View) TakeOn(name string, g *group.Group) bool {
	v.Release(g.UID)
	c := v.classOf(g)
	a := v.prepare(c, g)
	m, ok := v.byName[name]
	if !ok || !a.fits(m) {
		return false
	}
	v.give(c, g, m)
	return true
}

// Never says that no known host would take a group if it had nothing else and were in order.
func (v *View) Never(g *group.Group) bool {
	a := v.prepare(v.classOf(g), g)
	for m := range v.machines {
		if h := &v.machines[m]; h.known && a.need.Within(h.most) && a.mismatch(int32(m)) == Fits {
			return false
		}
	}
	return true
}

// Hosts is how many hosts are known.
func (v *View) Hosts() int { return v.known }

// Changes is a number that grows whenever anything changes.
func (v *View) Changes() int64 { return v.changes }

// Grow notes that a group, which holds room on its host, holds what it asks for now, when the host has what it asks for
// more. On a host that has not described itself nothing can be said against it. A group that holds no room gets none.
func (v *View) Grow(g *group.Group) (Refusal, bool) {
	i, ok := v.byUID[g.UID]
	if !ok {
		return Refusal{}, true
	}
	r := &v.records[i]
	h := &v.machines[r.machine]
	a := v.prepare(v.classOf(g), g)
	a.need = growth(g.Spec.Total(), r.need)
	if why := a.lacks(h); h.known && why != Fits {
		return Refusal{Hosts: 1, Counts: []Count{{why, 1}}, single: h.host.Name + ": " + a.sentence(r.machine, why)}, false
	}
	placed := *g
	placed.Host = h.host.Name
	v.Assign(&placed)
	return Refusal{}, true
}

// growth is what is asked for more; what is not more asks for nothing, even of a host that has less than nothing.
func growth(need, had group.Resources) group.Resources {
	more := func(need, had int64) int64 {
		if need <= had {
			return math.MinInt64
		}
		return need - had
	}
	return group.Resources{MilliCPU: more(need.MilliCPU, had.MilliCPU), Memory: more(need.Memory, had.Memory),
		EphemeralStorage: more(need.EphemeralStorage, had.EphemeralStorage), GPUs: more(need.GPUs, had.GPUs)}
}
