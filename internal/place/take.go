package place

import "spillway.dev/spillway/internal/group"

// Take finds a host for a group and notes that the group holds room there: g.Host is not read and not written. When the
// group holds room already, it counts where it is until it has another place, but not as its own neighbour.
func (v *View) Take(g *group.Group) Decision {
	c := v.classOf(g)
	m := v.findFor(c, g, 0)
	if m != nobody {
		return v.give(c, g, m)
	}
	return v.refuse(c, g)
}

// Place says what Take would do, and changes nothing.
func (v *View) Place(g *group.Group) Decision {
	c := v.classOf(g)
	if m := v.findFor(c, g, 0); m != nobody {
		return Decision{Host: v.machines[m].host.Name}
	}
	return v.refuse(c, g)
}

// findFor finds a host for a group; hold is its number when it waits.
func (v *View) findFor(c *class, g *group.Group, hold int32) int32 {
	i, again := v.byUID[g.UID]
	if !again {
		a := v.prepare(c, g)
		a.hold = hold
		return a.find()
	}
	v.count(&v.records[i], -1)
	a := v.prepare(c, g)
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
	if i, again := v.byUID[g.UID]; again {
		v.count(&v.records[i], -1)
		defer v.count(&v.records[i], 1)
	}
	a := v.prepare(c, g)
	d.Refusal = a.refusal()
	if !c.spot {
		d.Victim, d.Victims = a.victims()
	}
	return d
}
