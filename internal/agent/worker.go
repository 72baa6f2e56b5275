package agent

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"spillway.dev/spillway/internal/converge"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/volume"
	"spillway.dev/spillway/internal/wholefile"
)

// worker looks after one group: one goroutine that plans, acts and reports. Everything of the group's memory is
// touched by that goroutine only; others post functions to it.
type worker struct {
	a   *Agent
	log *slog.Logger

	mu    sync.Mutex // guards inbox and next
	inbox []func()
	next  *group.Group // newest assignment
	wake  chan struct{}
	lease time.Duration // the host's, as it was before the newest wishes were read: what is decided now is decided under it

	g       *group.Group
	m       *converge.Memory
	sources map[string]volume.Source // prepared volumes
	probes  map[string]context.CancelFunc
	cancel  context.CancelFunc
	started time.Time // when the worker began: bounds the time that its first step may blame on it
	saved   []byte    // newest memory on disk
	dirty   bool      // the memory may be newer
	done    bool
}

func (a *Agent) newWorker(g *group.Group) *worker {
	return &worker{a: a, next: g, wake: make(chan struct{}, 1), probes: map[string]context.CancelFunc{},
		log: a.cfg.Log.With("group", g.Ref.Name, "uid", g.UID)}
}

// assign replaces what is wanted; an older generation than the one known is ignored.
func (w *worker) assign(g *group.Group) {
	w.mu.Lock()
	if w.next == nil || g.Generation >= w.next.Generation {
		w.next = g
	}
	w.mu.Unlock()
	w.nudge()
}

// post runs f in the worker's goroutine.
func (w *worker) post(f func()) {
	w.mu.Lock()
	w.inbox = append(w.inbox, f)
	w.mu.Unlock()
	w.nudge()
}

func (w *worker) nudge() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// abandon takes the group away: the control plane does not want it here any more. A newer assignment brings it back.
func (w *worker) abandon() {
	w.mu.Lock()
	gone := *w.next
	gone.Desired = group.Delete
	w.next = &gone
	w.mu.Unlock()
	w.nudge()
}

// run is the worker's loop.
func (w *worker) run(ctx context.Context) {
	ctx, w.cancel = context.WithCancel(ctx)
	defer w.cancel()
	w.takeAssignment()
	w.load()
	w.adopt()
	for {
		wake := w.converge(ctx)
		if w.done {
			return
		}
		var timer <-chan time.Time
		if !wake.IsZero() {
			timer = time.After(time.Until(wake))
		}
		var later <-chan time.Time
		if w.dirty {
			later = time.After(saveDelay)
		}
		select {
		case <-ctx.Done():
			w.save()
			return
		case <-w.wake:
		case <-timer:
		case <-later:
			w.save()
		}
		w.takeAssignment()
		w.takeInbox()
	}
}

func (w *worker) takeAssignment() {
	w.lease = w.a.leases.end()
	w.mu.Lock()
	next := w.next
	w.mu.Unlock()
	if next == nil || next == w.g || w.g != nil && next.Generation < w.g.Generation {
		return
	}
	old := w.g
	w.g = next
	if w.m != nil {
		w.m.Generation = next.Generation
		if old != nil && old.Epoch == next.Epoch {
			w.updateVolumes()
			w.follow(old)
		}
	}
}

func (w *worker) takeInbox() {
	w.mu.Lock()
	inbox := w.inbox
	w.inbox = nil
	w.mu.Unlock()
	for _, f := range inbox {
		f()
	}
}

// converge plans and acts until there is nothing to do now, then reports and says when to look again.
func (w *worker) converge(ctx context.Context) time.Time {
	for ctx.Err() == nil {
		if converge.NeedsReset(w.g, w.m) {
			if err := w.endGuest(ctx); err != nil {
				return time.Now().Add(keeperPause) // the keeper is being replaced
			}
			w.m.Reset(w.g)
		}
		steps, wake := converge.Plan(w.g, w.m, time.Now())
		if len(steps) == 0 {
			w.publish()
			return wake
		}
		for _, s := range steps {
			w.m.Begin(s, time.Now(), w.g.Spec.Grace())
			if !w.act(ctx, s) {
				break // what follows is planned again
			}
		}
		w.takeAssignment()
		w.takeInbox()
	}
	return time.Time{}
}

// publish reports the status and writes the memory down.
func (w *worker) publish() {
	status := converge.Status(w.g, w.m)
	w.a.report(status)
	w.names(status)
	if w.m.Gone {
		w.done = true
		// gofail: var goneBeforeForget struct{}
		w.a.forgetWorker(w)
		return
	}
	w.dirty = true
}

// saveDelay is how long changes of the memory are gathered before it is written down.
const saveDelay = 200 * time.Millisecond

// names tells the DNS where the group is: only a group that is ready has names.
func (w *worker) names(s group.Status) {
	addr, err := netip.ParseAddr(s.IP)
	if err != nil || w.g.Spec.HostNetwork { // the machine's address is nobody's
		w.a.cfg.Names.Remove(w.m.UID)
		return
	}
	if !s.Ready() {
		w.a.setAsker(w.g, addr)
		return
	}
	seen, err := netip.ParseAddr(s.PublicIP)
	if err != nil {
		seen = addr
	}
	w.a.setNames(w.g, addr, seen)
}

// save writes the memory down, not synced: it only has to outlive this process. What a crash of the machine loses is
// told again by the control plane and the keeper. It is called now and then, and always before the keeper forgets a
// run: that a container has run and ended must be known in one place at least.
func (w *worker) save() {
	w.dirty = false
	body, err := json.Marshal(w.m)
	if err != nil || string(body) == string(w.saved) {
		return
	}
	// gofail: var saveBefore struct{}
	if wholefile.Write(w.a.path("groups", w.m.UID+".json"), body) == nil {
		w.saved = body
	}
}

func (w *worker) load() {
	w.m = &converge.Memory{UID: w.g.UID}
	if body, err := os.ReadFile(w.a.path("groups", w.g.UID+".json")); err == nil {
		var m converge.Memory
		if err := json.Unmarshal(body, &m); err != nil || m.UID != w.g.UID {
			w.log.Error("unreadable memory of group", "error", err)
		} else {
			w.m = &m
		}
	}
	w.m.Generation = w.g.Generation
	if len(w.m.Containers) == 0 {
		w.m.Reset(w.g)
	}
	w.m.Follow(w.g)
	if _, err := os.Lstat(w.a.path("volumes", w.m.UID)); err == nil && w.g.Desired != group.Run {
		w.m.Volumes = true // prepared when the memory did not live to say so: they are to be released
	}
}

// spec finds a container's part of the group's spec.
func (w *worker) spec(name string) *group.Container {
	for _, list := range [][]group.Container{w.g.Spec.Containers, w.g.Spec.InitContainers, w.g.Spec.Ephemeral} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// position is a container's number in the group: it names its cgroup.
func (w *worker) position(name string) int {
	for i, c := range w.m.Containers {
		if c.Name == name {
			return i
		}
	}
	return 0
}

// current says whether a run is the newest one of its container.
func (w *worker) current(l runLabel) (*converge.Container, bool) {
	c := w.m.Container(l.Name)
	return c, c != nil && l.Epoch == w.m.Epoch && l.Attempt == c.Attempt
}

// exited takes over the end of a run.
func (w *worker) exited(l runLabel, k keeper.Container) {
	c, ok := w.current(l)
	if !ok || c.Phase == converge.Exited || c.Phase == converge.Idle || c.Phase == converge.Done {
		return
	}
	if stop := w.probes[l.Name]; stop != nil {
		stop()
		delete(w.probes, l.Name)
	}
	end := converge.End{At: k.Finished, Code: k.ExitCode, Signal: k.Signal, Message: w.message(l, k), LeaseLost: k.LeaseLost}
	if w.m.Slot != nil {
		end.OOMs = w.a.tree.OOMKills(cgroupOf(w.m.Slot.ID, w.position(l.Name), &w.g.Spec))
	}
	w.m.Ended(l.Name, end, w.g.Spec.RestartPolicy)
	w.log.Info("container ended", "container", l.Name, "detail", c.Current.Detail, "signal", k.Signal)
}
