package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"spillway.dev/spillway/internal/converge"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/image"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/network"
	"spillway.dev/spillway/internal/runtime"
)

// act carries one step out and says whether the next step of the same plan still makes sense. Steps that take long go
// on in the background and post what came of them.
func (w *worker) act(ctx context.Context, s converge.Step) bool {
	if s.Action == converge.Claim {
		w.a.span.awaitBlock(ctx)
	}
	if s.Action == converge.Claim || s.Action == converge.Volumes || s.Action == converge.Start {
		// What these steps make must not be taken for a leak before it is known whose it is.
		w.a.sweeping.RLock()
		defer w.a.sweeping.RUnlock()
	}
	switch s.Action {
	case converge.Pull:
		w.pull(ctx, s.Container)
		return true
	case converge.Claim:
		return w.claim(ctx)
	case converge.Volumes:
		return w.volumes(ctx)
	case converge.Start:
		return w.start(ctx, s.Container)
	case converge.Stop:
		w.stop(ctx, s.Container)
		return true
	case converge.Kill:
		return w.signal(ctx, s.Container, sigKill)
	case converge.Clean:
		return w.clean(ctx, s.Container)
	case converge.Release:
		return w.release(ctx)
	case converge.Forget:
		return w.forget(ctx)
	}
	return false
}

// runtime is the technique for the group's isolation class.
func (w *worker) runtime() (runtime.Runtime, error) {
	class := w.g.Spec.Isolation
	if class == "" {
		class = group.IsolationShared
	}
	if rt, ok := w.a.runtimes[class]; ok {
		return rt, nil
	}
	return nil, fmt.Errorf("isolation %q is not available on this host: runsc is not installed (spillway doctor says how to get it)", class)
}

// pull makes a container's image available: from memory when it is here, else in the background.
func (w *worker) pull(ctx context.Context, name string) {
	spec, tenant := w.spec(name), w.g.Ref.Subscription
	img, here := w.a.cfg.Images.Lookup(spec.Image, tenant)
	switch {
	case here && spec.PullPolicy != group.PullAlways:
		w.m.ImageFound(name, img.Ref+"@"+img.Digest, false, time.Now())
		return
	case !here && spec.PullPolicy == group.PullNever:
		w.m.ImageForbidden(name, spec.Image, time.Now())
		return
	}
	w.m.PullStarted(name, spec.Image, time.Now())
	w.publish()
	ref, creds := spec.Image, w.g.Spec.Credentials
	progress := w.progress(name)
	w.a.wg.Go(func() {
		img, err := w.a.cfg.Images.Pull(ctx, image.Request{Ref: ref, Tenant: tenant, Credentials: creds, Progress: progress})
		w.post(func() {
			c := w.m.Container(name)
			if c == nil || w.spec(name) == nil || w.spec(name).Image != ref {
				return // the group has changed meanwhile
			}
			if err != nil {
				w.m.ImageMissed(name, ref, time.Now(), err)
				return
			}
			w.m.ImageFound(name, img.Ref+"@"+img.Digest, true, time.Now())
		})
	})
}

// progressEvery bounds how often the progress of a layer becomes an event.
const progressEvery = 250 * time.Millisecond

// progress turns the progress of layers into events of the container: one per layer, counted up as it goes.
func (w *worker) progress(name string) func(host.Progress) {
	last := map[string]time.Time{}
	return func(p host.Progress) {
		now := time.Now()
		ended := p.Phase == "done" || p.Phase == "exists"
		if p.Layer == "" || !ended && now.Sub(last[p.Layer]) < progressEvery {
			return
		}
		last[p.Layer] = now
		w.post(func() {
			w.m.Progress(name, p.Layer, fmt.Sprintf("%s %s %d/%d bytes", p.Layer, p.Phase, p.Done, p.Total), now)
			w.publish()
		})
	}
}

// claim takes a slot and puts its address into the group's network.
func (w *worker) claim(ctx context.Context) bool {
	rt, err := w.runtime()
	if err == nil {
		err = w.allowed()
	}
	if err != nil {
		w.m.Prepared(converge.Claim, time.Now(), err)
		return false
	}
	w.a.pool.starting.Add(1)
	defer w.a.pool.starting.Add(-1)
	var s *slot
	if err = w.a.enterSpace(ctx, w.g); err == nil {
		s, err = w.a.pool.take(ctx, rt, w.a.wishOf(w.g))
	}
	if errors.Is(err, keeper.ErrGone) {
		w.m.Postponed(time.Now().Add(keeperPause))
		return false
	}
	if err != nil {
		w.m.Prepared(converge.Claim, time.Now(), err)
		return false
	}
	// gofail: var claimTaken struct{}
	public, err := w.publicAddress()
	if err == nil && !s.host {
		err = w.a.join(ctx, s.id, w.a.membership(w.g, s.addr, public))
		w.a.span.await(ctx, w.g)
	}
	if err == nil {
		// gofail: var claimJoined struct{}
		err = w.writeFiles(s.addr)
	}
	if err != nil {
		w.a.pool.destroy(ctx, s)
		w.freePublic(public)
		w.m.Prepared(converge.Claim, time.Now(), err)
		return false
	}
	// gofail: var claimBeforeRecord struct{}
	slot := converge.Slot{ID: s.id, IP: s.addr.String(), Host: s.host}
	if public.IsValid() {
		slot.Public = public.String()
	}
	w.m.Claimed(slot, time.Now())
	return true
}

func (w *worker) publicAddress() (netip.Addr, error) {
	if w.a.cfg.Public == nil || w.g.Spec.IP == nil || !w.g.Spec.IP.Public {
		return netip.Addr{}, nil
	}
	return w.a.cfg.Public.Alloc(time.Now())
}

func (w *worker) freePublic(addr netip.Addr) {
	if addr.IsValid() && w.a.cfg.Public != nil {
		w.a.cfg.Public.Release(addr, time.Now())
	}
}

func (a *Agent) membership(g *group.Group, addr, public netip.Addr) network.Membership {
	m := network.Membership{Addr: addr, Network: a.networkOf(g), Public: public}
	if g.Spec.IP != nil {
		m.Ports = g.Spec.IP.Ports
	}
	return m
}

// join puts a slot's address into the group's network.
func (a *Agent) join(ctx context.Context, slotID string, m network.Membership) error {
	a.mu.Lock()
	a.members[slotID] = m
	a.mu.Unlock()
	a.joins.Add(1)
	return a.cfg.Network.Join(ctx, m)
}

// start begins a container's next run.
func (w *worker) start(ctx context.Context, name string) bool {
	w.a.pool.starting.Add(1)
	defer w.a.pool.starting.Add(-1)
	c, spec := w.m.Container(name), w.spec(name)
	label := runLabel{UID: w.m.UID, Epoch: w.m.Epoch, Name: name, Attempt: c.Attempt}
	lease, ok := w.leaseFor(name)
	if !ok {
		return false
	}
	img, ok := w.a.cfg.Images.Lookup(spec.Image, w.g.Ref.Subscription)
	if !ok {
		// Collected or removed since it was found: back to the pull.
		c.Phase, c.ImageReady = converge.Idle, false
		c.Attempt--
		return false
	}
	rt, err := w.runtime()
	if err == nil {
		err = w.allowed()
	}
	held := w.a.keeper.Load()
	var run *runtime.Run
	if err == nil {
		run, err = w.makeRun(label, spec, img)
	}
	if err == nil {
		run.Lease = lease
	}
	var oomBefore int64
	if err == nil && (c.Attempt > 1 || run.Guest != nil) {
		oomBefore = w.a.tree.OOMKills(run.Cgroup)
	}
	if err == nil && w.g.Spec.Isolation == group.IsolationGVisor && run.Guest == nil && w.networkTaken(label) {
		err = w.a.restoreNetwork(ctx, w.m.Slot)
	}
	// gofail: var startBeforeKeeper struct{}
	var started keeper.Container
	if err == nil {
		started, err = rt.Start(ctx, run)
	}
	if err != nil && !w.keeperLives(ctx, held) {
		err = errors.Join(err, keeper.ErrGone)
	}
	if err != nil {
		return w.startFailed(ctx, name, err)
	}
	// gofail: var startBeforeRecord struct{}
	w.m.Ran(spec, started.Started, oomBefore)
	w.log.Info("container started", "container", name, "run", label.id(), "pid", started.Pid)
	// gofail: var startAfterRecord struct{}
	w.afterStart(ctx, spec, label)
	return true
}

// startFailed records a program that could not be executed as a run that ended at once. A keeper that is gone is not
// the container's fault.
func (w *worker) startFailed(ctx context.Context, name string, err error) bool {
	if errors.Is(err, keeper.ErrGone) || ctx.Err() != nil {
		return false // whether the program runs is found out when the next keeper, or agent, adopts the group
	}
	code := startErrorCode
	if e, ok := errors.AsType[*keeper.Error](err); ok {
		if e.NotFound {
			// The slot is gone: another one is claimed.
			w.m.Slot, w.m.Container(name).Phase = nil, converge.Idle
			return false
		}
		if e.LeaseLost {
			w.leaseLost(name)
			return false
		}
		if e.ExitCode != 0 {
			code = e.ExitCode
		}
	}
	w.log.Warn("container not started", "container", name, "exitCode", code, "error", err)
	w.m.Ended(name, converge.End{At: time.Now().UTC(), Code: &code, Failure: err.Error()}, w.g.Spec.RestartPolicy)
	return true
}

// keeperLives says whether a keeper that was there when a start began still is. One that dies in between takes away what
// the start stands on, its descriptors of the slot's namespaces say, and the failure looks like the container's.
func (w *worker) keeperLives(ctx context.Context, k *keeper.Client) bool {
	_, err := k.Version(ctx)
	return !errors.Is(err, keeper.ErrGone)
}

// keeperPause is how long a step waits for a keeper that is being replaced.
const keeperPause = 100 * time.Millisecond

// startErrorCode is the exit code of a container that could not be started, as container engines give it.
const startErrorCode = 128

// stop runs the stop hook and sends the stop signal, in the background; the end of the grace period is planned.
func (w *worker) stop(ctx context.Context, name string) {
	if cancel := w.probes[name]; cancel != nil {
		cancel()
		delete(w.probes, name)
	}
	spec := w.spec(name)
	sig := sigTerm
	if spec != nil {
		sig = w.stopSignal(spec)
	}
	if spec == nil || spec.PreStop == nil {
		w.signal(ctx, name, sig)
		return
	}
	hook, label := *spec.PreStop, w.label(name)
	ctx, cancel := context.WithTimeout(ctx, w.g.Spec.Grace())
	target := w.target(label.id())
	w.a.wg.Go(func() {
		defer cancel()
		err := runHook(ctx, hook, target)
		w.post(func() {
			if err != nil {
				w.m.Event(time.Now(), name, group.Warning, "FailedPreStopHook", "Stop hook failed: "+err.Error())
			}
			if _, ok := w.current(label); ok {
				w.signal(context.WithoutCancel(ctx), name, sig)
			}
		})
	})
}

func (w *worker) label(name string) runLabel {
	return runLabel{UID: w.m.UID, Epoch: w.m.Epoch, Name: name, Attempt: w.m.Container(name).Attempt}
}

func (w *worker) signal(ctx context.Context, name string, number int) bool {
	// gofail: var stopBeforeSignal struct{}
	err := w.a.keeper.Load().Signal(ctx, w.label(name).id(), number)
	if e, ok := errors.AsType[*keeper.Error](err); ok && e.NotFound {
		// Nothing of it is left that could end: it has.
		w.m.Ended(name, converge.End{At: time.Now().UTC()}, w.g.Spec.RestartPolicy)
		return true
	}
	if err != nil {
		w.log.Error("signal container", "container", name, "signal", number, "error", err)
		c, again := w.m.Container(name), time.Now().Add(keeperPause)
		if c.Killed = false; c.KillAt.Before(again) {
			c.KillAt = again // not in a loop: the keeper may be gone
		}
		return false
	}
	return true
}

// clean removes what an ended run left, in the background: teardown never holds up a start.
func (w *worker) clean(ctx context.Context, name string) bool {
	rt, err := w.runtime()
	if err != nil {
		w.m.Cleaned(name, w.g.Spec.RestartPolicy, w.g.Desired)
		return true
	}
	label := w.label(name)
	w.save() // the keeper is about to forget how the run ended
	w.a.wg.Go(func() {
		// gofail: var cleanBefore struct{}
		err := rt.Clean(ctx, label.id(), w.a.path("runs", label.id()))
		if err != nil && ctx.Err() == nil {
			w.log.Error("clean up after container", "run", label.id(), "error", err)
			sleep(ctx, time.Second)
		}
		// gofail: var cleanAfter struct{}
		w.post(func() {
			if err != nil {
				w.m.CleanFailed(name)
				return
			}
			w.m.Cleaned(name, w.g.Spec.RestartPolicy, w.g.Desired)
		})
	})
	return true
}

// release gives up slot and volumes, in the background.
func (w *worker) release(ctx context.Context) bool {
	slot := w.m.Slot
	dir := w.a.path("volumes", w.m.UID)
	w.sources = nil
	w.a.wg.Go(func() {
		var err error
		if slot != nil {
			// gofail: var releaseBefore struct{}
			err = w.a.giveBack(ctx, slot)
		}
		// gofail: var releaseBeforeVolumes struct{}
		err = errors.Join(err, w.a.cfg.Volumes.Remove(ctx, dir))
		if err != nil {
			w.log.Error("release group's resources", "error", err)
		}
		// gofail: var releaseAfter struct{}
		w.post(func() {
			if err != nil {
				w.m.Failed(time.Now(), err)
				return
			}
			w.m.Released(time.Now().UTC())
		})
	})
	return true
}

// giveBack takes a group's slot apart.
func (a *Agent) giveBack(ctx context.Context, lost *converge.Slot) error {
	addr, err := netip.ParseAddr(lost.IP)
	if err != nil {
		return err
	}
	var index uint32
	if _, err := fmt.Sscanf(lost.ID, "s%d", &index); err != nil {
		return fmt.Errorf("slot id %q: %w", lost.ID, err)
	}
	if err := a.removeSlot(ctx, &slot{id: lost.ID, index: index, addr: addr, host: lost.Host}); err != nil {
		return err
	}
	if public, err := netip.ParseAddr(lost.Public); err == nil && a.cfg.Public != nil {
		a.cfg.Public.Release(public, time.Now())
	}
	return nil
}

// forget removes the last of a group: its files and logs, and volumes that were prepared when the memory did not live
// to say so.
func (w *worker) forget(ctx context.Context) bool {
	uid := w.m.UID
	// gofail: var forgetBefore struct{}
	err := errors.Join(w.a.cfg.Volumes.Remove(ctx, w.a.path("volumes", uid)), os.RemoveAll(w.a.files(uid)), os.RemoveAll(w.a.path("logs", uid)))
	if err != nil {
		w.m.Failed(time.Now(), err)
		return false
	}
	// gofail: var forgetAfter struct{}
	w.m.Forgotten()
	return true
}
