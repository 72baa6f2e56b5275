// Package fleet is a whole control plane in one process, in simulated time: servers of which one leads, hosts without
// containers, and links between them that can be cut, delayed and paused. What is done to it comes from a seed.
//
// The controllers are those of the platform; store, elections and links are stand-ins that keep the same promises: commits
// of a former leader are refused, a host listens to no older term, a link is in order. It runs in a bubble of testing/synctest
// and must never be wired into the platform. Start at New, then check.go.
package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/place"
	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/store/mem"
)

// Times of the simulation.
const (
	beat   = 500 * time.Millisecond
	missed = 3
	lease  = missed * beat
	// killTime is how long a host may need, at the end of its lease, until nothing of its fenced groups runs.
	killTime = 1800 * time.Millisecond
)

// Names that all groups of the simulation have in common.
const (
	subscription  = "sub"
	resourceGroup = "rg"
)

var cidr = netip.MustParsePrefix("10.200.0.0/20")

// Fleet is the simulated fleet.
type Fleet struct {
	log     *slog.Logger
	records *mem.Store
	term    atomic.Int64 // of the election

	mu     sync.Mutex // guards what follows
	rng    *rand.Rand // of delays
	leader *server
	all    []*server
	hosts  []*node
	notes  []string
	wg     sync.WaitGroup
}

// server is one that leads or has led.
type server struct {
	f      *Fleet
	term   int64
	ctrl   *controller.Controller
	cancel context.CancelFunc
	held   atomic.Bool // stopped for a while: nothing comes out of it, and nothing reaches it
	dead   atomic.Bool
}

// New makes a fleet of so many hosts; Close ends it.
func New(seed uint64, hosts int) (*Fleet, error) {
	f := &Fleet{log: slog.New(slog.DiscardHandler), records: mem.New(), rng: rand.New(rand.NewPCG(seed, 1))}
	if err := f.Elect(); err != nil {
		return nil, err
	}
	if _, _, err := f.leader.ctrl.PutResourceGroup(context.Background(), controller.ResourceGroup{Subscription: subscription, Name: resourceGroup, Location: "local"}); err != nil {
		return nil, err
	}
	for i := range hosts {
		n := newNode(f, fmt.Sprintf("h%d", i+1), netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}))
		f.hosts = append(f.hosts, n)
		if err := n.join(f.leader.ctrl); err != nil {
			return nil, err
		}
		f.wg.Go(n.run)
	}
	return f, nil
}

// Elect has another server lead. The one before goes on, and can write nothing.
func (f *Fleet) Elect() error {
	s := &server{f: f, term: f.term.Add(1)}
	ctrl, err := controller.New(context.Background(), controller.Config{Store: &fenced{f.records, s}, Location: "local", Log: f.log, Network: cidr,
		Policy: place.Policy{CPUOvercommit: 1, MemoryOvercommit: 1}, LostAfter: lease})
	if err != nil {
		return err
	}
	s.ctrl = ctrl
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	f.wg.Go(func() { _ = ctrl.Run(ctx) })
	f.mu.Lock()
	f.leader = s
	f.all = append(f.all, s)
	f.mu.Unlock()
	return nil
}

// Kill ends the server that leads.
func (f *Fleet) Kill() {
	s := f.lead()
	s.dead.Store(true)
	s.cancel()
}

// Hold stops the server that leads, until Release.
func (f *Fleet) Hold() *server {
	s := f.lead()
	s.held.Store(true)
	return s
}

// lead is the server that leads, or led last.
func (f *Fleet) lead() *server {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leader
}

// Close ends everything.
func (f *Fleet) Close() {
	for _, s := range f.all {
		s.dead.Store(true)
		s.cancel()
	}
	for _, n := range f.hosts {
		n.end()
	}
	f.wg.Wait()
}

// delay is how long a message is on its way.
func (f *Fleet) delay() time.Duration { return f.upTo(20 * time.Millisecond) }

// upTo is some time below a bound.
func (f *Fleet) upTo(most time.Duration) time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	return time.Duration(f.rng.IntN(int(most)))
}

// note keeps what has happened, for a failure.
func (f *Fleet) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.notes = append(f.notes, time.Now().Format("04:05.000 ")+fmt.Sprintf(format, args...))
}

// Notes are what has happened.
func (f *Fleet) Notes() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.notes
}

// fenced is a server's store: it can write while nobody has been elected after it.
type fenced struct {
	store.Store
	s *server
}

// Commit implements store.Store.
func (f *fenced) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if f.s.dead.Load() || f.s.f.term.Load() != f.s.term {
		return 0, store.ErrFenced
	}
	return f.Store.Commit(ctx, ops...)
}
