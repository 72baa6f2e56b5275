package fleet

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/service"
)

// wire is a connection between a server and a host, in order each way, as package hostlink keeps it.
type wire struct {
	host.Link // nil: nobody asks these hosts for streams or images
	s         *server
	n         *node
	gone      atomic.Bool
	urgent    atomic.Bool // the host has something to say of itself

	born             time.Time
	downward, upward chan func()
	ended            chan struct{}

	mu       sync.Mutex // guards what follows
	heard    time.Time
	desc     host.Host
	statuses map[string]group.Status
	clearing host.Clearing
}

var _ host.Link = (*wire)(nil)

// held is how often a message that cannot get through is tried again.
const held = 20 * time.Millisecond

func newWire(s *server, n *node) *wire {
	c := &wire{s: s, n: n, downward: make(chan func(), 4096), upward: make(chan func(), 4096), ended: make(chan struct{}), born: time.Now(), heard: time.Now(), statuses: map[string]group.Status{}}
	c.desc = c.describe()
	return c
}

// open tells the server of the connection, and carries messages.
func (c *wire) open() {
	f := c.s.f
	f.wg.Go(func() {
		c.carry(c.downward, func() bool { return c.n.cutDown.Load() || c.n.stopped.Load() || c.s.held.Load() })
	})
	f.wg.Go(func() { c.carry(c.upward, func() bool { return c.n.cutUp.Load() || c.s.held.Load() }) })
	f.wg.Go(c.listen)
	c.up(func() {
		c.s.ctrl.Connect(c)
		_ = c.s.ctrl.Remember(context.Background(), c.Describe())
	})
}

// carry delivers messages one after the other while the connection is there.
func (c *wire) carry(queue chan func(), blocked func() bool) {
	for {
		var message func()
		select {
		case <-c.ended:
			return
		case message = <-queue:
		}
		time.Sleep(c.s.f.delay())
		for blocked() {
			select {
			case <-c.ended:
				return
			case <-time.After(held):
			}
		}
		if c.gone.Load() || c.s.dead.Load() {
			return
		}
		message()
	}
}

// listen ends a connection over which the server has heard nothing.
func (c *wire) listen() {
	tick := time.NewTicker(beat / 2)
	defer tick.Stop()
	for {
		select {
		case <-c.ended:
			return
		case <-tick.C:
		}
		c.mu.Lock()
		silent := time.Since(c.heard)
		c.mu.Unlock()
		if c.s.dead.Load() || silent > missed*beat {
			c.close(errors.New("nothing was heard"))
		}
	}
}

func (c *wire) close(why error) {
	if c.gone.Swap(true) {
		return
	}
	close(c.ended)
	c.mu.Lock()
	heard := c.heard
	c.mu.Unlock()
	c.s.ctrl.Disconnect(c, heard, why)
}

func (c *wire) up(message func()) {
	select {
	case c.upward <- message:
	case <-c.ended:
	}
}

func (c *wire) down(message func()) {
	select {
	case c.downward <- message:
	case <-c.ended:
	}
}

// describe is what the host says of itself.
func (c *wire) describe() host.Host {
	h := c.n.machine().Describe()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clearing.Describe(h)
}

// hear is a beat at the server, which answers with a lease.
func (c *wire) hear(sent time.Time) {
	d := c.describe()
	c.mu.Lock()
	c.heard, c.desc = time.Now(), d
	told := c.clearing.Told()
	c.mu.Unlock()
	c.s.ctrl.Heard(c.n.name)
	if c.s.f.term.Load() != c.s.term || !told {
		c.down(func() { c.n.grant(time.Time{}) })
		return
	}
	c.down(func() { c.n.grant(sent) })
}

// know keeps what the host has said of a group.
func (c *wire) know(st group.Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.statuses[st.UID] = st
	if c.clearing.Follow(&st) {
		c.urgent.Store(true)
	}
}

// Describe implements host.Link.
func (c *wire) Describe() host.Host {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.desc
}

// Status implements host.Link.
func (c *wire) Status(uid string) (group.Status, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s, ok := c.statuses[uid]
	return s, ok
}

// Assign implements host.Link.
func (c *wire) Assign(g *group.Group) { c.down(func() { c.n.machine().Assign(g) }) }

// Retain implements host.Link.
func (c *wire) Retain(uids map[string]bool) {
	c.down(func() {
		h := c.n.machine()
		c.mu.Lock()
		if c.clearing.Retain(uids, slices.Values(h.Statuses())) {
			c.urgent.Store(true)
		}
		c.mu.Unlock()
		h.Retain(uids)
	})
}

// Serve implements host.Link.
func (c *wire) Serve(u service.Update) { c.down(func() { c.n.machine().Serve(u) }) }

// Span implements host.Link.
func (c *wire) Span(o host.Overlay) {
	c.down(func() {
		c.n.machine().Span(o)
		c.urgent.Store(true)
	})
}

// Name implements host.Link.
func (c *wire) Name(u host.Names) { c.down(func() { c.n.machine().Name(u) }) }
