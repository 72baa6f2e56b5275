package fleet

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/sim"
)

// node is a host with its agent. The agent can be stopped, its link cut each way; what runs on the host goes on.
type node struct {
	f        *Fleet
	name     string
	underlay netip.Addr
	done     chan struct{}

	stopped, cutUp, cutDown atomic.Bool // the agent; from host to servers; from servers to host

	mu     sync.Mutex // guards what follows
	host   *sim.Host
	term   int64 // highest seen
	lease  time.Time
	kill   time.Time // when nothing of a fenced group is left, after the end of the lease
	conn   *wire
	answer time.Time // of the server, last
}

func newNode(f *Fleet, name string, underlay netip.Addr) *node {
	n := &node{f: f, name: name, underlay: underlay, done: make(chan struct{})}
	n.boot()
	return n
}

// boot makes the machine anew: nothing of before runs.
func (n *node) boot() {
	h := sim.NewHost(n.name, nil, n.report)
	h.Change(func(d *host.Host) {
		d.Underlay = n.underlay
		d.Capacity = group.Resources{MilliCPU: 4000, Memory: 16 << 30}
	})
	h.Lease(false)
	h.Slow(n.f.upTo(600 * time.Millisecond))
	n.mu.Lock()
	old := n.host
	n.host, n.lease, n.kill = h, time.Time{}, time.Time{}
	n.mu.Unlock()
	if old != nil {
		old.Close()
	}
}

// join takes the host into the fleet.
func (n *node) join(ctrl *controller.Controller) error {
	_, secret, err := ctrl.CreateToken(context.Background(), controller.JoinToken{}, 0)
	if err != nil {
		return err
	}
	_, err = ctrl.Join(context.Background(), controller.Joining{Token: secret, Name: n.name, Sign: func(string) ([]byte, string, error) { return []byte("certificate"), "1", nil }})
	return err
}

// run is the agent's loop: it connects, says that it is there, and watches its lease.
func (n *node) run() {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var said time.Time
	for {
		select {
		case <-n.done:
			return
		case <-tick.C:
		}
		now := time.Now()
		n.watchLease(now)
		if n.stopped.Load() {
			continue
		}
		n.mu.Lock()
		c, silent := n.conn, now.Sub(n.answer)
		n.mu.Unlock()
		switch {
		case c == nil || c.gone.Load():
			n.connect()
			said = time.Time{}
		case silent > missed*beat:
			c.close(errors.New("no answer"))
		case now.Sub(said) >= beat || c.urgent.Swap(false):
			said = now
			c.up(func() { c.hear(now) })
		}
	}
}

// watchLease ends fenced groups without a lease: the keeper does this, whatever becomes of the agent. It takes some time.
func (n *node) watchLease(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case now.Before(n.lease):
		n.kill = n.lease.Add(n.f.upTo(killTime))
		n.host.Lease(true)
	case !now.Before(n.kill):
		n.host.Lease(false)
	}
}

// connect opens a link to the server that leads.
func (n *node) connect() {
	s := n.f.lead()
	c := newWire(s, n)
	n.mu.Lock()
	refuse := s.dead.Load() || s.held.Load() || n.cutUp.Load() || n.cutDown.Load() || s.term < n.term
	if refuse {
		n.mu.Unlock()
		return
	}
	n.term, n.conn, n.answer = s.term, c, time.Now()
	h := n.host
	n.mu.Unlock()
	for _, st := range h.Statuses() {
		c.know(st)
	}
	c.open()
}

// report is what the host says of a group.
func (n *node) report(st group.Status) {
	n.mu.Lock()
	c := n.conn
	n.mu.Unlock()
	if c == nil || c.gone.Load() {
		return
	}
	c.up(func() {
		c.know(st)
		c.s.ctrl.Report(n.name, st)
	})
}

// grant renews the lease from when the beat was sent.
func (n *node) grant(sent time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.answer = time.Now()
	if until := sent.Add(lease); until.After(n.lease) {
		n.lease = until
	}
}

// machine is the host as it is now.
func (n *node) machine() *sim.Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.host
}

// apart says whether the agent cannot hear the servers, or they not it.
func (n *node) apart() bool { return n.stopped.Load() || n.cutUp.Load() || n.cutDown.Load() }

func (n *node) end() {
	close(n.done)
	n.mu.Lock()
	c, h := n.conn, n.host
	n.mu.Unlock()
	if c != nil {
		c.close(errors.New("the end"))
	}
	h.Close()
}
