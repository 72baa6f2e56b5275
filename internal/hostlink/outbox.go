package hostlink

import (
	"slices"
	"sync"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/service"
)

// outbox is what a host has not been told yet, in order. Wishes replace older ones of the same thing, so that a host
// that reads slowly costs no more memory than its groups do, and nobody waits for it.
type outbox struct {
	mu     sync.Mutex // guards what follows
	queue  []*down
	groups map[string]*down // by uid: the message that assigns the group
	serve  *service.Update  // in the queue already
	span   *host.Overlay    // in the queue already
	names  *host.Names      // in the queue already
	bell   chan struct{}
}

func newOutbox() *outbox {
	return &outbox{groups: map[string]*down{}, bell: make(chan struct{}, 1)}
}

// ring wakes the sender, with the lock held.
func (o *outbox) ring() {
	select {
	case o.bell <- struct{}{}:
	default:
	}
}

func (o *outbox) put(d *down) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.queue = append(o.queue, d)
	if d.Retain != nil {
		clear(o.groups) // a group that is assigned afterwards is not to be taken away by it
	}
	o.ring()
}

// assign adds a group, or replaces the older record of it that nobody has read yet.
func (o *outbox) assign(g *group.Group) {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.ring()
	if d := o.groups[g.UID]; d != nil {
		i := slices.IndexFunc(d.Assign, func(x *group.Group) bool { return x.UID == g.UID })
		if g.Generation >= d.Assign[i].Generation {
			d.Assign[i] = g
		}
		return
	}
	last := len(o.queue) - 1
	if last < 0 || o.queue[last].Assign == nil || len(o.queue[last].Assign) >= maxBatch {
		o.queue = append(o.queue, &down{})
		last++
	}
	o.queue[last].Assign = append(o.queue[last].Assign, g)
	o.groups[g.UID] = o.queue[last]
}

// addServe adds service addresses, or joins them with those that nobody has read yet.
func (o *outbox) addServe(u service.Update) {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.ring()
	if o.serve == nil || u.Full {
		if o.serve != nil {
			*o.serve = u
			return
		}
		o.serve = &u
		o.queue = append(o.queue, &down{Serve: o.serve})
		return
	}
	type changes = host.Changes[service.Route]
	joined := changes{Set: o.serve.Set, Gone: o.serve.Gone}.Join(changes{Set: u.Set, Gone: u.Gone}, func(r service.Route) string { return r.UID })
	o.serve.Set, o.serve.Gone = joined.Set, joined.Gone
}

// addSpan adds a change of the network over all hosts, or joins it with those that nobody has read yet.
func (o *outbox) addSpan(u host.Overlay) {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.ring()
	if o.span != nil {
		o.span.Join(u)
		return
	}
	o.span = &u
	o.queue = append(o.queue, &down{Span: o.span})
}

// mostNames bounds the names in one message.
const mostNames = 4000

// addNames adds names, or joins them with those that nobody has read yet.
func (o *outbox) addNames(u host.Names) {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer o.ring()
	if o.names != nil && (u.Full || len(o.names.Set)+len(u.Set) <= mostNames) {
		o.names.Join(u)
		return
	}
	o.names = &u
	o.queue = append(o.queue, &down{Name: o.names})
}

// take gives all that is to be sent now.
func (o *outbox) take() []*down {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.queue
	o.queue, o.serve, o.span, o.names = nil, nil, nil, nil
	clear(o.groups)
	return out
}
