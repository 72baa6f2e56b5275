package place

import (
	"cmp"
	"math"
	"slices"

	"spillway.dev/spillway/internal/group"
)

// Bounds of waiting.
const (
	overtakes  = 16   // groups that may be given room while another waits, before a host is kept for that one
	keptPart   = 20   // at most one host in so many is kept, and one in a small fleet
	retryLooks = 4096 // waiting groups that one call looks at
	eachHost   = 64   // hosts that got better, up to which each is compared with a waiting group
)

// Queue is the groups that fit nowhere now, in order: urgent ones, regular ones, Spot; of each the oldest creation first.
//
// A group is tried again when a host that could take it has got more room, or, when it has rules about other groups,
// when anything has changed. Older groups are tried first, and younger ones may go while an older one does not fit, but
// not for ever: a group that has seen `overtakes` others given room gets a host kept for it, the one of those it may
// ever run on that lacks the least. A kept host takes nobody else, so it empties until the group fits; the oldest
// groups come first, and few hosts are kept at a time. The group goes wherever it fits first. No host is kept for a Spot
// group while others wait.
type Queue struct {
	v       *View
	waiting []*waiter // in order; nil where one has left
	byUID   map[string]*waiter
	next    int     // where this round goes on
	round   []int32 // machines that had got better when it began
	at      int64   // View.changes when it began
	numbers int32
	kept    int
	untried int // groups that have to be tried whatever has changed
	pushing int // groups for which Spot groups could give way
	cursor  int // where Look goes on
}

type waiter struct {
	group   *group.Group
	class   *class
	number  int32 // tells it from other waiting groups
	index   int
	urgent  bool
	paused  bool
	untried bool
	pushes  bool
	ruled   bool            // when it was last looked at, there were rules between it and other groups
	need    group.Resources // of group
	taken   int64           // View.taken when it began to wait, to be given room or a kept host
	changes int64           // View.changes when it was last tried
	kept    int32           // the machine that is kept for it
}

// before says whether a waiting group comes before another.
func (w *waiter) before(o *waiter) bool {
	return cmp.Or(cmp.Compare(w.rank(), o.rank()), w.group.Created.Compare(o.group.Created), cmp.Compare(w.number, o.number)) < 0
}

func (w *waiter) rank() int {
	switch {
	case w.urgent:
		return 0
	case w.group.Spec.Priority != group.PrioritySpot:
		return 1
	}
	return lastRank
}

const lastRank = 2 // of Spot groups

// Placed is a waiting group that was given room.
type Placed struct {
	Group *group.Group
	Host  string
}

// NewQueue makes the queue of a view. A view has one at most.
func NewQueue(v *View) *Queue {
	q := &Queue{v: v, byUID: map[string]*waiter{}}
	v.queue = q
	return q
}

// Len is how many groups wait.
func (q *Queue) Len() int { return len(q.byUID) }

// Wait adds a group that fitted nowhere; urgent ones come first. One that waits already keeps its age, and is tried again
// when it has another generation, or was paused.
func (q *Queue) Wait(g *group.Group, urgent bool) {
	w := q.byUID[g.UID]
	if w == nil {
		q.numbers++
		w = &waiter{number: q.numbers, group: g, need: g.Spec.Total(), urgent: urgent, taken: q.v.taken, changes: q.v.changes, kept: nobody}
		q.byUID[g.UID] = w
		q.insert(w)
		q.try(w)
		return
	}
	old := *w
	w.group, w.need, w.urgent, w.paused = g, g.Spec.Total(), urgent, false
	if w.rank() != old.rank() {
		q.waiting[w.index] = nil
		q.insert(w)
	}
	if old.paused || old.group.Generation != g.Generation {
		w.changes = 0
		q.try(w)
	}
}

// insert puts a group in its place, looked for from the end: most are younger than all others.
func (q *Queue) insert(w *waiter) {
	at := len(q.waiting)
	for at > 0 && (q.waiting[at-1] == nil || w.before(q.waiting[at-1])) {
		at--
	}
	q.waiting = slices.Insert(q.waiting, at, w)
	for i := at; i < len(q.waiting); i++ {
		if o := q.waiting[i]; o != nil {
			o.index = i
		}
	}
	if at < q.next {
		q.next++
	}
}

// Pause keeps a waiting group from being given room, as somebody else is at it, until Wait or Leave.
func (q *Queue) Pause(uid string) {
	if w := q.byUID[uid]; w != nil {
		w.paused = true
		q.tried(w)
	}
}

// Waits says whether a group waits.
func (q *Queue) Waits(uid string) bool { return q.byUID[uid] != nil }

// try has a group tried in the next round, tried notes that it was.
func (q *Queue) try(w *waiter) {
	if !w.untried {
		w.untried = true
		q.untried++
	}
}

func (q *Queue) tried(w *waiter) {
	if w.untried {
		w.untried = false
		q.untried--
	}
	q.push(w, false)
}

func (q *Queue) push(w *waiter, on bool) {
	if w.pushes != on {
		q.pushing += map[bool]int{true: 1, false: -1}[on]
		w.pushes = on
	}
}

// Leave forgets a group that no longer wants room.
func (q *Queue) Leave(uid string) {
	w := q.byUID[uid]
	if w == nil {
		return
	}
	q.leave(w)
	if len(q.waiting) > 2*len(q.byUID)+eachHost {
		q.compact()
	}
}

func (q *Queue) leave(w *waiter) {
	q.let(w)
	q.tried(w)
	q.waiting[w.index] = nil
	delete(q.byUID, w.group.UID)
}

// compact closes the gaps.
func (q *Queue) compact() {
	kept, next := q.waiting[:0], q.next
	for i, w := range q.waiting {
		if i == q.next {
			next = len(kept)
		}
		if w != nil {
			w.index = len(kept)
			kept = append(kept, w)
		}
	}
	q.next = min(next, len(kept))
	clear(q.waiting[len(kept):])
	q.waiting = kept
}

// Why says why a waiting group still waits; false when it does not.
func (q *Queue) Why(uid string) (Refusal, bool) {
	w := q.byUID[uid]
	if w == nil {
		return Refusal{}, false
	}
	a, restore := q.v.askFor(q.v.classOf(w.group), w.group)
	defer restore()
	a.hold = w.number
	return a.refusal(), true
}

// Look gives the next n waiting groups, of all in turn.
func (q *Queue) Look(n int) (uids []string) {
	for range min(len(q.waiting), retryLooks) {
		if len(uids) >= min(n, len(q.byUID)) {
			break
		}
		if q.cursor >= len(q.waiting) {
			q.cursor = 0
		}
		if w := q.waiting[q.cursor]; w != nil {
			uids = append(uids, w.group.UID)
		}
		q.cursor++
	}
	return uids
}

// Retry tries waiting groups that what has happened could help, oldest first, and gives room to those that fit, at most
// limit of them tried, and to at most urgent of the urgent ones: further ones are tried in the next round. It is to be
// called again while more is true, and after each change of the view. A round goes through all that wait, over as many
// calls as it takes, before it begins again with the oldest: nobody is left out.
func (q *Queue) Retry(limit, urgent int) (placed []Placed, more bool) {
	if q.next == 0 && !q.begin() {
		return nil, false
	}
	for looks := 0; q.next < len(q.waiting) && looks < retryLooks && limit > 0; looks++ {
		w := q.waiting[q.next]
		q.next++
		if w == nil || w.paused || !q.helped(w) {
			continue
		}
		if w.urgent && urgent <= 0 {
			q.try(w)
			continue
		}
		limit--
		w.changes = q.v.changes
		q.tried(w)
		if m := q.v.findFor(w.class, w.group, w.number, false); m != nobody {
			d := q.v.give(w.class, w.group, m)
			placed = append(placed, Placed{w.group, d.Host})
			if w.urgent {
				urgent--
			}
			q.leave(w)
			continue
		}
		q.push(w, !w.class.spot)
	}
	if q.next < len(q.waiting) {
		return placed, true
	}
	q.next, q.round = 0, q.round[:0]
	q.compact()
	return placed, q.news()
}

// news says whether anything has happened since this round began that could let a group in.
func (q *Queue) news() bool {
	return len(q.byUID) > 0 && (q.at != q.v.changes || len(q.v.improved) > 0 || q.untried > 0)
}

// begin opens a round, when anything has happened since the last.
func (q *Queue) begin() bool {
	if !q.news() {
		q.forget()
		return false
	}
	q.at = q.v.changes
	q.round = append(q.round[:0], q.v.improved...)
	q.forget()
	q.keep()
	return true
}

func (q *Queue) forget() {
	for _, m := range q.v.improved {
		q.v.machines[m].fresh = false
	}
	q.v.improved = q.v.improved[:0]
}

// helped says whether what has happened could let a group in. Most are not helped by most changes, so that numbers are
// compared first. Rules that have come since the group was last looked at can only forbid more.
func (q *Queue) helped(w *waiter) bool {
	if w.untried {
		w.class = nil
	}
	few := len(q.round) <= eachHost
	if w.class != nil && few && !w.ruled && !q.roomFor(w, nil) {
		return false
	}
	w.class = q.v.classOf(w.group)
	w.class.refresh(q.v)
	w.ruled = len(w.class.matches) > 0
	for at := range w.class.own {
		w.ruled = w.ruled || len(w.class.own[at]) > 0
	}
	switch {
	case w.untried || !few:
		return true
	case w.ruled:
		return w.changes != q.v.changes
	}
	return q.roomFor(w, w.class)
}

// roomFor says whether a host that has got better has the room for a group; of those that its class allows, when that is
// given and up to date.
func (q *Queue) roomFor(w *waiter, c *class) bool {
	spot := w.rank() == lastRank
	for _, m := range q.round {
		h := &q.v.machines[m]
		if !h.open || c != nil && !c.allowed.has(int(h.section)) {
			continue
		}
		if w.need.Within(h.free) || !spot && w.need.Within(h.free.Add(h.spot)) {
			return true
		}
	}
	return w.kept != nobody && w.need.Within(q.v.machines[w.kept].free)
}

// keep gives hosts to the oldest groups that have been overtaken often enough.
func (q *Queue) keep() {
	most := max(q.v.open/keptPart, 1)
	others := false // a group that is not Spot waits
	for _, w := range q.waiting {
		if w == nil {
			continue
		}
		spot := w.rank() == lastRank
		others = others || !spot
		if h := w.kept; h != nobody && (spot && others || !q.v.machines[h].open || q.v.machines[h].held != w.number) {
			q.let(w)
		}
	}
	for _, w := range q.waiting {
		if q.kept >= most {
			return
		}
		if w == nil || w.kept != nobody || q.v.taken-w.taken < overtakes || w.rank() == lastRank && others {
			continue
		}
		w.taken = q.v.taken // when no host can ever do, ask again later
		if m := q.nearest(w); m != nobody {
			q.v.machines[m].held, w.kept = w.number, m
			q.kept++
			q.round = append(q.round, m)
		}
	}
}

// nearest is the host that lacks the least of what a group needs, among those that could take it if they were empty.
func (q *Queue) nearest(w *waiter) int32 {
	v := q.v
	a := v.prepare(v.classOf(w.group), w.group)
	best, most := nobody, math.Inf(-1)
	for i := range v.machines {
		m := int32(i)
		h := &v.machines[m]
		if !h.open || h.held != 0 || !a.need.Within(h.most) || a.cannot(m) != Fits {
			continue
		}
		lack := min(float64(h.free.MilliCPU-a.need.MilliCPU)*a.cpuWeight, float64(h.free.Memory-a.need.Memory)*a.memWeight, 0)
		if best == nobody || lack > most || lack == most && h.host.Name < v.machines[best].host.Name {
			best, most = m, lack
		}
	}
	return best
}

// let gives up the host that was kept for a group.
func (q *Queue) let(w *waiter) {
	if w.kept == nobody {
		return
	}
	if h := &q.v.machines[w.kept]; h.held == w.number {
		h.held = 0
		q.v.changes++
		if h.open {
			q.v.improve(w.kept)
		}
	}
	w.kept = nobody
	q.kept--
}
