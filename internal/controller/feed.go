package controller

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

// Types of events.
const (
	Added    = "ADDED"
	Modified = "MODIFIED"
	Deleted  = "DELETED"
)

// feedSize is how many events the platform keeps for watchers that lag or come back. A watcher that falls further
// behind has to read the current state again.
const feedSize = 16384

// Event is a change of one group or service address, as the API shows it.
type Event[V named] struct {
	Type string
	View V
	Seq  int64
}

// named is what a feed tells of.
type named interface{ Ref() group.Ref }

// Filter chooses groups. Empty fields mean all; case does not matter.
type Filter struct {
	Subscription  string
	ResourceGroup string
	Name          string
}

// Match says whether a group is chosen.
func (f Filter) Match(ref group.Ref) bool {
	return fits(f.Subscription, ref.Subscription) && fits(f.ResourceGroup, ref.ResourceGroup) && fits(f.Name, ref.Name)
}

func fits(want, got string) bool { return want == "" || strings.EqualFold(want, got) }

// feed is the newest events in order. Every change, of a record or a status, has one sequence number; it counts from
// the start of this process, whose random name is part of every revision, so that a revision of an earlier process
// is recognised and refused instead of misread.
type feed[V named] struct {
	name string

	mu   sync.Mutex // guards the rest; taken after the controller's lock
	ring []Event[V]
	next int64 // sequence number of the next event
	wake chan struct{}
}

func newFeed[V named](name string) *feed[V] { return &feed[V]{name: name, next: 1} }

// publish adds an event, with the controller's lock held so that snapshots fit the sequence.
func (f *feed[V]) publish(kind string, view V) {
	if f == nil { // loading
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	event := Event[V]{Type: kind, View: view, Seq: f.next}
	if len(f.ring) < feedSize {
		f.ring = append(f.ring, event)
	} else {
		f.ring[(f.next-1)%feedSize] = event
	}
	f.next++
	if f.wake != nil {
		close(f.wake)
		f.wake = nil
	}
}

// Watcher reads events from one point on.
type Watcher[V named] struct {
	feed   *feed[V]
	filter Filter
	next   int64
}

// Watch opens a watcher of groups: with a revision it goes on after it, else it starts now and gives the current state.
// Errors: gone, when the revision is too old or of another life of the platform.
func (c *Controller) Watch(filter Filter, revision string) (*Watcher[arm.View], []arm.View, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return watch(c.feed, filter, revision, c.views)
}

// watch opens a watcher, with the controller's lock held so that the current state fits the sequence.
func watch[V named](f *feed[V], filter Filter, revision string, state func(Filter) []V) (*Watcher[V], []V, error) {
	if revision != "" {
		seq, err := f.parse(revision)
		if err != nil {
			return nil, nil, err
		}
		return &Watcher[V]{feed: f, filter: filter, next: seq + 1}, nil, nil
	}
	views := state(filter)
	f.mu.Lock()
	defer f.mu.Unlock()
	return &Watcher[V]{feed: f, filter: filter, next: f.next}, views, nil
}

func (f *feed[V]) parse(revision string) (int64, error) {
	name, number, _ := strings.Cut(revision, "-")
	seq, err := strconv.ParseInt(number, 10, 64)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil || name != f.name || seq < f.oldest()-1 || seq >= f.next {
		return 0, f.tooOld(revision)
	}
	return seq, nil
}

func (f *feed[V]) oldest() int64 { return f.next - int64(len(f.ring)) }

func (f *feed[V]) tooOld(revision string) error {
	if len(revision) > 64 {
		revision = revision[:64]
	}
	return fault.New(fault.Gone, "RevisionTooOld", "The revision '%s' is no longer kept. Watch again without a revision to get the current state first.", revision)
}

// Revision is where a later watch can go on from: all events up to it have been read.
func (w *Watcher[V]) Revision() string { return w.RevisionOf(w.next - 1) }

// RevisionOf is the revision of one event.
func (w *Watcher[V]) RevisionOf(seq int64) string { return fmt.Sprintf("%s-%d", w.feed.name, seq) }

// Next waits for events. Errors: gone, when the watcher fell too far behind; ctx's.
func (w *Watcher[V]) Next(ctx context.Context) ([]Event[V], error) {
	for {
		events, wake, err := w.poll()
		if err != nil || len(events) > 0 {
			return events, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-wake:
		}
	}
}

// poll takes what is there, or a channel that tells when there is more.
func (w *Watcher[V]) poll() ([]Event[V], <-chan struct{}, error) {
	f := w.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	if w.next < f.oldest() {
		return nil, nil, f.tooOld(w.Revision())
	}
	var out []Event[V]
	for ; w.next < f.next; w.next++ {
		if e := f.ring[(w.next-1)%feedSize]; w.filter.Match(e.View.Ref()) {
			out = append(out, e)
		}
	}
	if len(out) > 0 {
		return out, nil, nil
	}
	if f.wake == nil {
		f.wake = make(chan struct{})
	}
	return nil, f.wake, nil
}

// Await waits until a group is as wanted. done is called with the current state first, then at each change; deleted
// tells that the group is no more.
func (c *Controller) Await(ctx context.Context, ref group.Ref, done func(v arm.View, deleted bool) bool) error {
	w, views, err := c.Watch(Filter(ref), "")
	if err != nil {
		return err
	}
	if len(views) == 0 {
		return nil
	}
	if done(views[0], false) {
		return nil
	}
	for {
		events, err := w.Next(ctx)
		if err != nil {
			return err
		}
		for _, e := range events {
			if done(e.View, e.Type == Deleted) || e.Type == Deleted {
				return nil
			}
		}
	}
}
