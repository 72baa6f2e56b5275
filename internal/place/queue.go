package place

import (
	"math"

	"spillway.dev/spillway/internal/group"
)

// Bounds of waiting.
const (
	overtakes  = 16   // groups that may be given room while another waits, before a host is kept for that one
	keptPart   = 20   // at most one host in so many is kept, and one in a small fleet
	retryLooks = 4096 // waiting groups that one call looks at
	eachHost   = 64   // hosts that got better, up to which each is compared with a waiting group
)

// Queue is the groups that fit nowhere now, oldest first.
//
// A group is tried again when a host that could take it has got more room, or, when it has rules about other groups,
// when anything has changed. Older groups are tried first, and younger ones may go while an older one does not fit, but
// not for ever: a group that has seen `overtakes` others given room gets a host kept for it, the one of those it may
// ever run on that lacks the least. A kept host takes nobody else, so it empties until the group fits; the oldest
// groups come first, and few hosts are kept at a time. The group goes wherever it fits first.
type Queue struct {
	v       *View
	waiting []*waiter // in order; nil where one has left
	byUID   map[string]*waiter
	next    int     // where this round goes on
	round   []int32 // machines that had got better when it began
	at      int64   // View.changes when it began
	numbers int32
	kept    int
}

type waiter struct {
	group   *group.Group
	class   *class
	number  int32 // tells it from other waiting groups
	index   int
	taken   int64 // View.taken when it began to wait, to be given room or a kept host
	changes int64 // View.changes when it was last tried
	kept    int32 // the machine that is kept for it
}

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

// Wait adds a group that fitted nowhere. One that waits already keeps its place and may have another specification.
func (q *Queue) Wait(g *group.Group) {
	if w := q.byUID[g.UID]; w != nil {
		w.group, w.changes = g, 0
		return
	}
	q.numbers++
	w := &waiter{group: g, number: q.numbers, index: len(q.waiting), taken: q.v.taken, changes: q.v.changes, kept: nobody}
	q.waiting = append(q.waiting, w)
	q.byUID[g.UID] = w
}

// Leave forgets a group that no longer wants room.
func (q *Queue) Leave(uid string) {
	w := q.byUID[uid]
	if w == nil {
		return
	}
	q.let(w)
	q.waiting[w.index] = nil
	delete(q.byUID, uid)
	if len(q.waiting) > 2*len(q.byUID)+eachHost {
		q.compact()
	}
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
	a := q.v.prepare(q.v.classOf(w.group), w.group)
	a.hold = w.number
	return a.refusal(), true
}

// Retry tries waiting groups that what has happened could help, oldest first, and gives room to those that fit, at most
// limit of them tried. It is to be called again while more is true, and after each change of the view. A round goes
// through all that wait, over as many calls as it takes, before it begins again with the oldest: nobody is left out.
func (q *Queue) Retry(limit int) (placed []Placed, more bool) {
	if q.next == 0 && !q.begin() {
		return nil, false
	}
	for looks := 0; q.next < len(q.waiting) && looks < retryLooks && limit > 0; looks++ {
		w := q.waiting[q.next]
		q.next++
		if w == nil || !q.helped(w) {
			continue
		}
		limit--
		w.changes = q.v.changes
		if m := q.v.findFor(w.class, w.group, w.number, false); m != nobody {
			index := w.index
			d := q.v.give(w.class, w.group, m)
			placed = append(placed, Placed{w.group, d.Host})
			q.let(w)
			q.waiting[index] = nil
			delete(q.byUID, w.group.UID)
		}
	}
	if q.next < len(q.waiting) {
		return placed, true
	}
	q.next, q.round = 0, q.round[:0]
	q.compact()
	return placed, len(q.byUID) > 0 && (q.at != q.v.changes || len(q.v.improved) > 0)
}

// begin opens a round, when anything has happened since the last.
func (q *Queue) begin() bool {
	if len(q.byUID) == 0 || q.at == q.v.changes && len(q.v.improved) == 0 {
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

// helped says whether what has happened could let a group in.
func (q *Queue) helped(w *waiter) bool {
	w.class = q.v.classOf(w.group)
	w.class.refresh(q.v)
	for at := range w.class.own {
		if len(w.class.own[at]) > 0 {
			return w.changes != q.v.changes
		}
	}
	if len(w.class.matches) > 0 {
		return w.changes != q.v.changes
	}
	if len(q.round) > eachHost {
		return true
	}
	need := w.group.Spec.Total()
	for _, m := range q.round {
		if h := &q.v.machines[m]; h.open && need.Within(h.free) && w.class.allowed.has(int(h.section)) {
			return true
		}
	}
	return w.kept != nobody && need.Within(q.v.machines[w.kept].free)
}

// keep gives hosts to the oldest groups that have been overtaken often enough.
func (q *Queue) keep() {
	most := max(q.v.open/keptPart, 1)
	for _, w := range q.waiting {
		if w == nil {
			continue
		}
		if h := w.kept; h != nobody && (!q.v.machines[h].open || q.v.machines[h].held != w.number) {
			q.let(w)
		}
	}
	for _, w := range q.waiting {
		if q.kept >= most {
			return
		}
		if w == nil || w.kept != nobody || q.v.taken-w.taken < overtakes {
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
