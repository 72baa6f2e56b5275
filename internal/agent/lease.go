package agent

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"spillway.dev/spillway/internal/keeper"
)

// On a host of a fleet fenced groups run under the host's lease only. The keeper is the watchdog (its fence.go); here
// leases are handed on, starts without one are put off, and what the keeper should have killed is killed once more: it
// may be stopped, or about to be replaced.

// leases are what the servers have granted this host.
type leases struct {
	until atomic.Int64 // the newest end, by keeper.Boottime
	bell  chan struct{}
}

func newLeases() *leases { return &leases{bell: make(chan struct{}, 1)} }

func (l *leases) end() time.Duration { return time.Duration(l.until.Load()) }

// Leased hears until when, by keeper.Boottime, the host's groups are its own. It does not block, and is called by one
// goroutine.
func (a *Agent) Leased(until time.Duration) {
	if until <= a.leases.end() {
		return
	}
	a.leases.until.Store(int64(until))
	select {
	case a.leases.bell <- struct{}{}:
	default:
	}
}

const (
	// leasePause is how long a start that has no lease waits until it is tried again.
	leasePause = 200 * time.Millisecond
	// leaseCallTime is how long the keeper may take to hear of a lease; a newer one follows soon.
	leaseCallTime = time.Second
	// keeperGrace is how long after the end of a lease the keeper's own kill may take until ours follows.
	keeperGrace = 200 * time.Millisecond
	// leaseLook is how often the end of the lease is looked for: timers stand still while the machine sleeps.
	leaseLook = 100 * time.Millisecond
)

// passLeases hands leases on to the keeper.
func (a *Agent) passLeases(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.leases.bell:
		}
		call, cancel := context.WithTimeout(ctx, leaseCallTime)
		if err := a.keeper.Load().Lease(call, a.leases.end()); err != nil && ctx.Err() == nil {
			a.cfg.Log.Warn("hand the lease on to the keeper", "error", err)
		}
		cancel()
	}
}

// watchLease kills the fenced groups when a lease has ended, once for each end.
func (a *Agent) watchLease(ctx context.Context) {
	var killed time.Duration // end of the lease after which that was done
	for sleep(ctx, leaseLook); ctx.Err() == nil; sleep(ctx, leaseLook) {
		until := a.leases.end()
		if until == killed || keeper.Boottime() < until+keeperGrace {
			continue
		}
		killed = until
		for _, path := range a.fencedCgroups() {
			if err := a.tree.Kill(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				a.cfg.Log.Error("kill a fenced container", "cgroup", path, "error", err)
			}
		}
	}
}

func (a *Agent) fencedCgroups() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []string
	for _, paths := range a.fenced {
		out = slices.AppendSeq(out, maps.Keys(paths))
	}
	return out
}

// fenced says whether the group runs under the host's lease.
func (w *worker) fenced() bool { return w.a.cfg.Leased && w.g.Spec.Fenced() }

// leaseFor gives the lease under which a run begins, 0 for a group that needs none. Without one the start is put off.
func (w *worker) leaseFor(name string) (until time.Duration, ok bool) {
	if !w.fenced() {
		return 0, true
	}
	if keeper.Boottime() >= w.lease {
		w.leaseLost(name)
		return 0, false
	}
	w.guard(name)
	return w.lease, true
}

// guard notes which cgroup ends with the lease: a fenced container's own. What the slot has beside, the first process of a
// namespace that they share, say, is needed by the next run.
func (w *worker) guard(name string) {
	if !w.fenced() || w.m.Slot == nil {
		return
	}
	w.a.mu.Lock()
	defer w.a.mu.Unlock()
	if w.a.fenced[w.m.UID] == nil {
		w.a.fenced[w.m.UID] = map[string]bool{}
	}
	w.a.fenced[w.m.UID][cgroupOf(w.m.Slot.ID, w.position(name), &w.g.Spec)] = true
}

// leaseLost puts a start off until the host has a lease.
func (w *worker) leaseLost(name string) {
	w.m.Held(name, "LeaseLost: the host has no contact with a server, and the group is fenced", time.Now().Add(leasePause))
}
