package agent

import (
	"context"
	"errors"
	"time"

	"spillway.dev/spillway/internal/network"
)

// reclaimer takes slots apart, many at a time: the kernel waits once for a batch of links and walks its table of
// connections once for a batch of addresses.
type reclaimer struct {
	a     *Agent
	queue chan reclaimed
}

type reclaimed struct {
	*slot
	done chan error
}

const (
	reclaimBatch  = 256                   // slots taken apart together
	reclaimGather = 20 * time.Millisecond // how long the first of a batch waits for others
)

func newReclaimer(a *Agent) *reclaimer {
	return &reclaimer{a: a, queue: make(chan reclaimed, reclaimBatch)}
}

// run works until ctx ends; what is queued then is found again by the sweep of the next agent.
func (r *reclaimer) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case first := <-r.queue:
			r.take(ctx, r.gather(ctx, first))
		}
	}
}

func (r *reclaimer) gather(ctx context.Context, first reclaimed) []reclaimed {
	batch := []reclaimed{first}
	timer := time.NewTimer(reclaimGather)
	defer timer.Stop()
	for len(batch) < reclaimBatch {
		select {
		case next := <-r.queue:
			batch = append(batch, next)
		case <-timer.C:
			return batch
		case <-ctx.Done():
			return batch
		}
	}
	return batch
}

func (r *reclaimer) take(ctx context.Context, batch []reclaimed) {
	ctx = context.WithoutCancel(ctx)
	var slots []network.Slot
	for _, s := range batch {
		if s.host {
			continue // addresses and connections are the machine's own
		}
		slots = append(slots, network.Slot{Index: s.index, Addr: s.addr})
	}
	n := r.a.cfg.Network
	err := errors.Join(n.LeaveSlots(ctx, slots...), n.Detach(ctx, slots...))
	// gofail: var slotDetached struct{}
	for _, s := range batch {
		if !s.host {
			r.a.addrs.Release(s.addr, time.Now())
		}
		r.a.mu.Lock()
		delete(r.a.members, s.id)
		r.a.mu.Unlock()
		s.done <- errors.Join(err, r.a.tree.Remove(s.id))
	}
}

// removeSlot removes everything of a slot. It is idempotent.
func (a *Agent) removeSlot(ctx context.Context, gone *slot) error {
	if err := a.keeper.Load().Unpark(ctx, gone.id); err != nil {
		return err
	}
	// gofail: var slotUnparked struct{}
	s := reclaimed{gone, make(chan error, 1)}
	select {
	case a.reclaim.queue <- s:
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
	select {
	case err := <-s.done:
		return err
	case <-a.ctx.Done():
		return a.ctx.Err()
	}
}
