package place

import (
	"slices"
	"strings"

	"spillway.dev/spillway/internal/group"
)

// tally counts by number. Its entries are in an order that depends on what was counted, never on chance.
type tally struct {
	at      map[int32]int32
	entries []entry
	drops   int64 // how often a count went down
}

type entry struct {
	id int32
	n  int64
}

func (t *tally) of(id int32) int64 {
	if len(t.entries) == 0 {
		return 0
	}
	if i, ok := t.at[id]; ok {
		return t.entries[i].n
	}
	return 0
}

func (t *tally) add(id int32, n int64) {
	if n < 0 {
		t.drops++
	}
	i, ok := t.at[id]
	if !ok {
		if t.at == nil {
			t.at = map[int32]int32{}
		}
		t.at[id] = int32(len(t.entries))
		t.entries = append(t.entries, entry{id, n})
		return
	}
	t.entries[i].n += n
	if t.entries[i].n != 0 {
		return
	}
	last := len(t.entries) - 1
	t.entries[i] = t.entries[last]
	t.at[t.entries[i].id] = i
	t.entries = t.entries[:last]
	delete(t.at, id)
}

// selector is one set of conditions on groups of a subscription, with what is known of the groups that it finds and of
// those that have it in a rule, by domain of each topology.
type selector struct {
	match   []group.Expression
	key     string
	uses    int // terms of classes
	total   int64
	matched [topologies]tally // groups that it finds
	forbids [topologies]tally // groups that must not be in one domain with those
	wishes  [topologies]tally // weights of the groups that would rather be, or rather not
	index   int               // in its tenant's list of loose ones
}

// tenant is what a subscription's groups say of one another.
type tenant struct {
	name      string
	classes   int
	selectors map[string]*selector
	byPair    map[string][]*selector // by a label and value that a group must have to be found
	loose     []*selector            // the others
	all       list
	labelled  map[string]*list // classes by label and value
}

// list is classes in an order without chance.
type list struct{ classes []*class }

// post is the place of a class in a list.
type post struct {
	in *list
	at int
}

func pairOf(key, value string) string { return key + "\x00" + value }

func (v *View) tenantOf(subscription string) *tenant {
	name := strings.ToLower(subscription)
	t := v.tenants[name]
	if t == nil {
		t = &tenant{name: name, selectors: map[string]*selector{}, byPair: map[string][]*selector{}, labelled: map[string]*list{}}
		v.tenants[name] = t
	}
	return t
}

// join makes a class known: to the selectors that find it, and it knows those of its own terms.
func (t *tenant) join(v *View, c *class) {
	t.classes++
	c.enter(&t.all)
	for k, value := range c.labels {
		pair := pairOf(k, value)
		l := t.labelled[pair]
		if l == nil {
			l = &list{}
			t.labelled[pair] = l
		}
		c.enter(l)
		for _, s := range t.byPair[pair] {
			c.found(s)
		}
	}
	for _, s := range t.loose {
		c.found(s)
	}
	p := c.where
	for i := range p.Affinity {
		t.term(v, c, &p.Affinity[i], affinity)
	}
	for i := range p.AntiAffinity {
		t.term(v, c, &p.AntiAffinity[i], antiAffinity)
	}
	for i := range p.Spread {
		r := &p.Spread[i]
		at := topologyOf(r.Topology)
		made := term{kind: spread, sel: t.selector(v, r.Match), skew: int64(max(r.MaxSkew, 1)), self: group.Match(r.Match, c.labels)}
		if r.Anyway {
			made.weight = 1
		}
		c.own[at] = append(c.own[at], made)
	}
	for at := range c.own {
		c.worst[at] = make([]lowest, len(c.own[at]))
	}
}

func (t *tenant) term(v *View, c *class, a *group.Affinity, kind termKind) {
	at := topologyOf(a.Topology)
	c.own[at] = append(c.own[at], term{kind: kind, sel: t.selector(v, a.Match), weight: int64(a.Weight), self: group.Match(a.Match, c.labels)})
}

func (c *class) found(s *selector) {
	if group.Match(s.match, c.labels) {
		c.matches = append(c.matches, s)
	}
}

func (c *class) enter(l *list) {
	c.posts = append(c.posts, post{l, len(l.classes)})
	l.classes = append(l.classes, c)
}

func (t *tenant) leave(v *View, c *class) {
	t.classes--
	for _, p := range c.posts {
		last := len(p.in.classes) - 1
		moved := p.in.classes[last]
		p.in.classes[p.at] = moved
		p.in.classes = p.in.classes[:last]
		for i := range moved.posts {
			if moved.posts[i].in == p.in {
				moved.posts[i].at = p.at
			}
		}
	}
	for k, value := range c.labels {
		if pair := pairOf(k, value); len(t.labelled[pair].classes) == 0 {
			delete(t.labelled, pair)
		}
	}
	for at := range c.own {
		for _, r := range c.own[at] {
			t.drop(r.sel)
		}
	}
	if t.classes == 0 {
		delete(v.tenants, t.name)
	}
}

// selector finds the selector of some conditions, or makes it and counts the groups that it finds.
func (t *tenant) selector(v *View, match []group.Expression) *selector {
	key := group.Canonical(match)
	s := t.selectors[key]
	if s != nil {
		s.uses++
		return s
	}
	s = &selector{match: match, key: key, uses: 1}
	t.selectors[key] = s
	var lists []*list
	if e := anchor(match); e == nil {
		s.index = len(t.loose)
		t.loose = append(t.loose, s)
		lists = []*list{&t.all}
	} else {
		for _, value := range distinct(e.Values) {
			pair := pairOf(e.Key, value)
			t.byPair[pair] = append(t.byPair[pair], s)
			if l := t.labelled[pair]; l != nil {
				lists = append(lists, l)
			}
		}
	}
	for _, l := range lists {
		for _, c := range l.classes {
			if before := len(c.matches); !slices.Contains(c.matches, s) {
				if c.found(s); len(c.matches) > before {
					for _, r := range c.records {
						s.count(&v.machines[v.records[r].machine], v.records[r].machine, 1)
					}
				}
			}
		}
	}
	return s
}

// anchor is a condition that only groups with certain labels meet, nil when there is none.
func anchor(match []group.Expression) *group.Expression {
	for i := range match {
		if match[i].Operator == group.In {
			return &match[i]
		}
	}
	return nil
}

func distinct(values []string) []string {
	values = slices.Clone(values)
	slices.Sort(values)
	return slices.Compact(values)
}

// drop lets go of a selector; with its last use it is forgotten.
func (t *tenant) drop(s *selector) {
	if s.uses--; s.uses > 0 {
		return
	}
	delete(t.selectors, s.key)
	lists := []*list{&t.all}
	if e := anchor(s.match); e == nil {
		last := len(t.loose) - 1
		t.loose[s.index] = t.loose[last]
		t.loose[s.index].index = s.index
		t.loose = t.loose[:last]
	} else {
		lists = lists[:0]
		for _, value := range distinct(e.Values) {
			pair := pairOf(e.Key, value)
			t.byPair[pair] = slices.DeleteFunc(t.byPair[pair], func(o *selector) bool { return o == s })
			if len(t.byPair[pair]) == 0 {
				delete(t.byPair, pair)
			}
			if l := t.labelled[pair]; l != nil {
				lists = append(lists, l)
			}
		}
	}
	for _, l := range lists {
		for _, c := range l.classes {
			c.matches = slices.DeleteFunc(c.matches, func(o *selector) bool { return o == s })
		}
	}
}

func (s *selector) count(h *machine, m int32, n int64) {
	s.total += n
	for at := range topologies {
		if id := h.place(m, at); id != 0 {
			s.matched[at].add(id, n)
		}
	}
}

// count adds a group's presence to what is known of other groups' rules, or takes it away.
func (v *View) count(r *record, n int64) {
	c, h := r.class, &v.machines[r.machine]
	for _, s := range c.matches {
		s.count(h, r.machine, n)
	}
	for at := range c.own {
		if len(c.own[at]) == 0 {
			continue
		}
		id := h.place(r.machine, at)
		if id == 0 {
			continue
		}
		for _, t := range c.own[at] {
			switch {
			case t.kind == antiAffinity && t.weight == 0:
				t.sel.forbids[at].add(id, n)
			case t.kind == antiAffinity:
				t.sel.wishes[at].add(id, -n*t.weight)
			case t.kind == affinity && t.weight > 0:
				t.sel.wishes[at].add(id, n*t.weight)
			}
		}
	}
}
