package place

import (
	"cmp"
	"slices"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// View is the fleet as placement knows it: hosts, what groups hold of them, and what groups say of one another. Every
// change costs what has changed, not what there is. It is not safe for concurrent use.
type View struct {
	policies Policies
	limits   limits
	machines []machine
	free     []int32 // machines that are no more
	byName   map[string]int32
	byLabel  map[string]*tally // hosts by label and value
	byImage  map[string]*tally // hosts by image
	spots    tally             // hosts by their Spot groups
	known    int               // machines that have described themselves
	open     int
	cpu      int64 // of open machines, for weights
	memory   int64
	grid     grid

	sections      []*section
	sectionIDs    map[string]int32
	freeSections  []int32
	fine          int
	sweepSections int

	zones       map[string]int32
	zoneNames   []string
	domains     map[string]int32
	domainNames []string

	records     []record
	freeRecords []int32
	byUID       map[string]int32

	tenants      map[string]*tenant
	classes      map[string]*class
	rules        map[string]*rule
	sweepClasses int
	swept        int64

	// Counters of what has happened. better and changes tell when a refusal may be out of date.
	serial  int64 // of classes: a larger one is younger
	asks    int64
	layout  int64 // sections have come or gone
	stands  int64 // open hosts have come, gone or moved
	better  int64 // somewhere is more room than before, or fewer groups that forbid others
	changes int64 // anything has changed
	taken   int64 // groups that were given room

	queue    *Queue  // told of machines that got better
	improved []int32 // since the queue last looked

	key   []byte // buffers
	names []string
	ask   ask
}

// limits are the constants that tests make small.
type limits struct {
	fine, small, idle, tries int
}

// machine is a host, or the name of one that has not described itself and has groups all the same.
type machine struct {
	free    group.Resources // under its pool's policy; below zero when the host has shrunk, or a group waits there for Spot groups to go
	section int32           // of an open machine
	cell    cell
	pos     int32 // in its bucket
	zone    int32
	domain  int32
	held    int32 // number of the waiting group that it is kept for, 0 for none
	open    bool  // takes groups: it stands in the grid
	known   bool
	fresh   bool // among View.improved

	most    group.Resources // capacity under the policy; what is not free of it is held by groups
	spot    group.Resources // what Spot groups hold
	records []int32
	host    *host.Host // cold: searches look only at what is above
}

// place is where a machine stands in a topology, 0 for nowhere.
func (h *machine) place(m int32, topology int) int32 {
	switch topology {
	case onZone:
		return h.zone
	case onDomain:
		return h.domain
	}
	return m + 1
}

// record is a group that holds room.
type record struct {
	uid     string
	class   *class
	machine int32
	onHost  int32 // place in machine.records
	inClass int32 // place in class.records
	need    group.Resources
	created int64 // nanoseconds of the group's creation, as its record tells
}

// NewView makes the view of a fleet without hosts.
func NewView(policies Policies) *View {
	return &View{policies: policies, limits: limits{fineSections, smallFleet, idleClasses, tries}, byName: map[string]int32{}, byLabel: map[string]*tally{}, byImage: map[string]*tally{},
		sectionIDs: map[string]int32{}, zones: map[string]int32{"": 0}, zoneNames: []string{""},
		domains: map[string]int32{"": 0}, domainNames: []string{""}, byUID: map[string]int32{}, tenants: map[string]*tenant{},
		classes: map[string]*class{}, rules: map[string]*rule{}, sweepSections: minSweep, sweepClasses: idleClasses, better: 1, changes: 1}
}

// SetHost adds a host, or takes over what has changed of it. h must not be changed afterwards.
func (v *View) SetHost(h host.Host) {
	m := v.machineOf(h.Name)
	old := &v.machines[m]
	if old.known && sameTraits(old.host, &h) {
		old.host = &h
		return
	}
	v.unlist(m)
	moves := old.zone != v.number(h.Zone) || old.domain != v.domainOf(&h)
	if moves {
		v.recount(m, -1)
	}
	if !old.known {
		v.known++
	}
	used := old.most.Sub(old.free)
	old.known, old.host = true, &h
	old.zone, old.domain = v.number(h.Zone), v.domainOf(&h)
	old.most = v.policies.of(h.Pool).capacity(h.Capacity)
	old.free = old.most.Sub(used)
	if moves {
		v.recount(m, 1)
	}
	v.list(m)
}

// RemoveHost forgets a host. What its groups hold is remembered until they are released, should it come back.
func (v *View) RemoveHost(name string) {
	m, ok := v.byName[name]
	if !ok || !v.machines[m].known {
		return
	}
	v.unlist(m)
	v.recount(m, -1)
	h := &v.machines[m]
	h.known, h.host, h.zone, h.domain = false, &host.Host{Name: name}, 0, 0
	h.most, h.free = group.Resources{}, h.free.Sub(h.most)
	v.recount(m, 1)
	v.known--
	v.forget(m)
}

// forget frees the number of a machine that nobody needs any more.
func (v *View) forget(m int32) {
	h := &v.machines[m]
	if h.known || len(h.records) > 0 {
		return
	}
	delete(v.byName, h.host.Name)
	fresh := h.fresh
	*h = machine{fresh: fresh}
	v.free = append(v.free, m)
}

func (v *View) machineOf(name string) int32 {
	if m, ok := v.byName[name]; ok {
		return m
	}
	m := int32(len(v.machines))
	if n := len(v.free); n > 0 {
		m = v.free[n-1]
		v.free = v.free[:n-1]
	} else {
		v.machines = append(v.machines, machine{})
	}
	v.machines[m].host = &host.Host{Name: name}
	v.byName[name] = m
	return m
}

func (v *View) number(zone string) int32 {
	n, ok := v.zones[zone]
	if !ok {
		n = int32(len(v.zoneNames))
		v.zones[zone] = n
		v.zoneNames = append(v.zoneNames, zone)
	}
	return n
}

// domainOf numbers a fault domain: those of two zones are two, whatever they are called.
func (v *View) domainOf(h *host.Host) int32 {
	if h.FaultDomain == "" {
		return 0
	}
	name := h.Zone + "/" + h.FaultDomain
	n, ok := v.domains[name]
	if !ok {
		n = int32(len(v.domainNames))
		v.domains[name] = n
		v.domainNames = append(v.domainNames, name)
	}
	return n
}

// list puts a described machine where searches find it.
func (v *View) list(m int32) {
	h := &v.machines[m]
	for k, value := range h.host.Labels {
		addTo(v.byLabel, pairOf(k, value), m+1, 1)
	}
	for _, image := range h.host.Images {
		addTo(v.byImage, image, m+1, 1)
	}
	v.changes++
	if h.open = h.host.State == host.Ready && !h.host.Cordoned && !h.host.DiskFull; !h.open {
		return
	}
	v.open++
	v.stands++
	v.cpu, v.memory = v.cpu+h.most.MilliCPU, v.memory+h.most.Memory
	h.section = v.sectionOf(h)
	v.addToGrid(m)
	v.improve(m)
}

func (v *View) unlist(m int32) {
	h := &v.machines[m]
	if !h.known {
		return
	}
	for k, value := range h.host.Labels {
		addTo(v.byLabel, pairOf(k, value), m+1, -1)
	}
	for _, image := range h.host.Images {
		addTo(v.byImage, image, m+1, -1)
	}
	v.changes++
	if !h.open {
		return
	}
	v.removeFromGrid(m)
	v.open--
	v.stands++
	v.cpu, v.memory = v.cpu-h.most.MilliCPU, v.memory-h.most.Memory
	h.open = false
}

func addTo(index map[string]*tally, key string, id int32, n int64) {
	t := index[key]
	if t == nil {
		t = &tally{}
		index[key] = t
	}
	if t.add(id, n); len(t.entries) == 0 {
		delete(index, key)
	}
}

// recount takes the groups of a machine out of the counts by domain, or puts them in again. A group that leaves a domain
// may make room there for one that must not be beside it.
func (v *View) recount(m int32, n int64) {
	v.better++
	for _, r := range v.machines[m].records {
		v.count(&v.records[r], n)
	}
}

// improve notes that a machine has more to give than before.
func (v *View) improve(m int32) {
	v.better++
	if h := &v.machines[m]; v.queue != nil && !h.fresh {
		h.fresh = true
		v.improved = append(v.improved, m)
	}
}

// Assign notes that a group holds room on g.Host, which need not be known, and no longer anywhere else.
func (v *View) Assign(g *group.Group) {
	c, need := v.classOf(g), g.Spec.Total()
	m := v.machineOf(g.Host)
	if i, ok := v.byUID[g.UID]; ok {
		if r := &v.records[i]; r.class == c && r.machine == m && r.need == need {
			return
		}
		v.Release(g.UID)
		m = v.machineOf(g.Host) // it may have been forgotten
	} else {
		v.taken++
	}
	v.assign(g, c, m, need)
}

func (v *View) assign(g *group.Group, c *class, m int32, need group.Resources) {
	i := int32(len(v.records))
	if n := len(v.freeRecords); n > 0 {
		i = v.freeRecords[n-1]
		v.freeRecords = v.freeRecords[:n-1]
	} else {
		v.records = append(v.records, record{})
	}
	v.changes++
	h := &v.machines[m]
	v.records[i] = record{uid: g.UID, class: c, machine: m, onHost: int32(len(h.records)), inClass: int32(len(c.records)), need: need, created: g.Created.UnixNano()}
	h.records = append(h.records, i)
	c.records = append(c.records, i)
	v.byUID[g.UID] = i
	if c.spot {
		v.spots.add(m+1, 1)
		h.spot = h.spot.Add(need)
	}
	v.count(&v.records[i], 1)
	h.free = h.free.Sub(need)
	v.moved(m)
}

// Release notes that a group holds nothing any more.
func (v *View) Release(uid string) {
	i, ok := v.byUID[uid]
	if !ok {
		return
	}
	r := &v.records[i]
	v.count(r, -1)
	h, c, m := &v.machines[r.machine], r.class, r.machine
	h.free = h.free.Add(r.need)
	h.records = v.cut(h.records, r.onHost, func(r *record, at int32) { r.onHost = at })
	c.records = v.cut(c.records, r.inClass, func(r *record, at int32) { r.inClass = at })
	if c.spot {
		v.spots.add(m+1, -1)
		h.spot = h.spot.Sub(r.need)
	}
	delete(v.byUID, uid)
	*r = record{}
	v.freeRecords = append(v.freeRecords, i)
	v.changes++
	v.better++ // also when the host is closed: there may be room elsewhere for one that must not be beside the group
	v.moved(m)
	if h.open {
		v.improve(m)
	}
	v.forget(m)
}

// cut takes one record out of a list; the last one takes its place and hears of it.
func (v *View) cut(list []int32, at int32, tell func(*record, int32)) []int32 {
	last := len(list) - 1
	list[at] = list[last]
	tell(&v.records[list[at]], at)
	return list[:last]
}

// Used is what groups hold of a host.
func (v *View) Used(name string) group.Resources {
	if m, ok := v.byName[name]; ok {
		return v.machines[m].most.Sub(v.machines[m].free)
	}
	return group.Resources{}
}

// HostOf is the host that a group holds room on, "" when it holds none.
func (v *View) HostOf(uid string) string {
	if i, ok := v.byUID[uid]; ok {
		return v.machines[v.records[i].machine].host.Name
	}
	return ""
}

// ordered is the known machines by name.
func (v *View) ordered() []int32 {
	out := make([]int32, 0, v.known)
	for m := range v.machines {
		if v.machines[m].known {
			out = append(out, int32(m))
		}
	}
	slices.SortFunc(out, func(a, b int32) int { return cmp.Compare(v.machines[a].host.Name, v.machines[b].host.Name) })
	return out
}
