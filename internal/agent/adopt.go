package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"spillway.dev/spillway/internal/converge"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/network"
)

// adopt brings the group's memory in line with what the keeper holds: after our own start, and after the keeper's.
func (w *worker) adopt() {
	w.a.mu.Lock()
	slot, hasSlot := w.a.found.slots[w.m.UID]
	runs := w.a.found.runs[w.m.UID]
	spare := w.m.Slot != nil && w.a.found.ids[w.m.Slot.ID]
	delete(w.a.found.slots, w.m.UID)
	delete(w.a.found.runs, w.m.UID)
	w.a.mu.Unlock()
	if spare && !hasSlot {
		w.m.Slot = nil // claimed, but nothing was started in it: it went back to the pool
	}
	w.adoptSlot(slot, hasSlot)
	newest := map[string]keeper.Container{}
	for _, k := range runs {
		l, _ := readRunLabel(k.Label)
		c := w.m.Container(l.Name)
		if c == nil || l.Epoch != w.m.Epoch || l.Attempt < c.Attempt {
			w.discard(k)
			continue
		}
		if before, ok := newest[l.Name]; ok {
			if was, _ := readRunLabel(before.Label); was.Attempt > l.Attempt {
				w.discard(k)
				continue
			}
			w.discard(before)
		}
		newest[l.Name] = k
	}
	// gofail: var adoptMiddle struct{}
	for _, c := range w.m.Containers {
		k, ok := newest[c.Name]
		w.adoptContainer(c, k, ok)
	}
}

// adoptSlot finds the group's slot again, or forgets it when it went with a keeper: its link and cgroups are removed,
// and another slot is claimed.
func (w *worker) adoptSlot(f foundSlot, found bool) {
	if found {
		w.m.Slot = &converge.Slot{ID: f.id, IP: f.label.Addr, Public: f.label.Public, Host: f.label.Host}
		w.reserve()
		return
	}
	if w.m.Slot == nil {
		return
	}
	lost := w.m.Slot
	w.m.Slot = nil
	w.a.wg.Go(func() {
		if err := w.a.giveBack(context.WithoutCancel(w.a.ctx), lost); err != nil {
			w.log.Error("remove lost slot", "slot", lost.ID, "error", err)
		}
	})
}

// recall reads from the groups' memories which slots they had: a number or an address of one that is still to be taken
// apart must not be given to another meanwhile.
func (a *Agent) recall() {
	entries, _ := filepath.Glob(a.path("groups", "*.json"))
	for _, path := range entries {
		var m converge.Memory
		if body, err := os.ReadFile(path); err != nil || json.Unmarshal(body, &m) != nil || m.Slot == nil {
			continue
		}
		a.pool.sawIndex(slotIndex(m.Slot.ID))
		if m.Slot.Host {
			continue
		}
		if addr, err := netip.ParseAddr(m.Slot.IP); err == nil {
			_ = a.addrs.Reserve(addr)
		}
	}
}

// reserve marks the slot's addresses as taken.
func (w *worker) reserve() {
	w.a.pool.sawIndex(slotIndex(w.m.Slot.ID))
	if w.m.Slot.Host {
		return
	}
	if addr, err := netip.ParseAddr(w.m.Slot.IP); err == nil {
		_ = w.a.addrs.Reserve(addr)
	}
	if public, err := netip.ParseAddr(w.m.Slot.Public); err == nil && w.a.cfg.Public != nil {
		_ = w.a.cfg.Public.Reserve(public)
	}
}

// adoptContainer brings one container's memory in line with its newest run.
func (w *worker) adoptContainer(c *converge.Container, k keeper.Container, found bool) {
	spec := w.spec(c.Name)
	if spec == nil {
		return
	}
	if !found {
		switch c.Phase {
		case converge.Starting:
			// The start never reached the keeper.
			c.Phase = converge.Idle
			c.Attempt--
		case converge.Running, converge.Stopping:
			w.m.Ended(c.Name, converge.End{At: time.Now().UTC()}, w.g.Spec.RestartPolicy)
		}
		return
	}
	l, _ := readRunLabel(k.Label)
	if c.Attempt < l.Attempt || c.Phase == converge.Starting || c.Phase == converge.Idle {
		c.Attempt = l.Attempt
		c.ImageReady = true
		w.m.Ran(spec, k.Started, 0)
	}
	if k.Exited {
		w.exited(l, k)
		return
	}
	switch c.Phase {
	case converge.Running:
		w.guard(c.Name)
		w.settle(spec)
		w.afterStart(w.a.ctx, spec, l)
	case converge.Stopping:
		w.stop(w.a.ctx, c.Name) // nobody knows whether it was told
	}
}

// discard removes a run that nobody wants any more.
func (w *worker) discard(k keeper.Container) {
	w.a.wg.Go(func() {
		if err := w.a.removeRun(context.WithoutCancel(w.a.ctx), k); err != nil {
			w.log.Error("remove old run", "run", k.ID, "error", err)
		}
	})
}

// removeRun kills and removes a run of no group.
func (a *Agent) removeRun(ctx context.Context, k keeper.Container) error {
	client := a.keeper.Load()
	if err := client.Signal(ctx, k.ID, sigKill); err != nil {
		return err
	}
	for deadline := time.Now().Add(workerPatience); ; {
		// Every runtime's Clean forgets, unmounts and removes; the parked one does no more than any.
		class := group.IsolationShared
		if k.OCI != nil && a.runtimes[group.IsolationGVisor] != nil && k.OCI.Runtime == a.cfg.GVisor {
			class = group.IsolationGVisor
		}
		err := a.runtimes[class].Clean(ctx, k.ID, a.path("runs", k.ID))
		if err == nil || time.Now().After(deadline) {
			return err
		}
		sleep(ctx, 20*time.Millisecond)
	}
}

// sweep removes what belongs to no group: runs, slots, links, volumes, files. It runs when the control plane has said
// which groups there are, and when a keeper has been replaced. It fails when the keeper dies meanwhile: the next one holds
// other things.
func (a *Agent) sweep(uids map[string]bool) error {
	ctx := context.WithoutCancel(a.ctx)
	a.mu.Lock()
	inv := a.found
	var orphans []keeper.Container
	var slots []foundSlot
	for uid, runs := range inv.runs {
		if !uids[uid] {
			orphans = append(orphans, runs...)
			delete(inv.runs, uid)
		}
	}
	for uid, s := range inv.slots {
		if !uids[uid] {
			slots = append(slots, s)
			delete(inv.slots, uid)
		}
	}
	spare := inv.spare
	a.found.spare = nil
	a.mu.Unlock()
	for _, k := range orphans {
		if err := a.removeRun(ctx, k); err != nil {
			a.cfg.Log.Error("remove orphan", "run", k.ID, "error", err)
		}
	}
	for _, s := range append(slots, spare...) {
		a.pool.sawIndex(s.label.Index)
	}
	for _, s := range slots {
		if err := a.removeSlot(ctx, s.slot()); err != nil {
			a.cfg.Log.Error("remove orphan slot", "slot", s.id, "error", err)
		}
	}
	for _, s := range spare {
		a.pool.adoptSpare(ctx, s)
	}
	err := a.sweepHost(ctx, uids)
	if errors.Is(err, keeper.ErrGone) {
		return err
	}
	if err != nil {
		a.cfg.Log.Error("sweep", "error", err)
	}
	a.pool.resume()
	return nil
}

// sweepHost compares what is on the machine with what the groups hold.
func (a *Agent) sweepHost(ctx context.Context, uids map[string]bool) error {
	a.sweeping.Lock()
	defer a.sweeping.Unlock()
	uids = a.withWorkers(uids) // those that have come while this waited
	keep, slots, runs, err := a.holdings(ctx)
	if err != nil {
		// What is held is not known: nothing may count as left over.
		return fmt.Errorf("list what the keeper holds: %w", err)
	}
	report, err := a.cfg.Network.Sync(ctx, keep)
	if report.Links+report.Elements+report.Restored > 0 {
		a.cfg.Log.Info("network swept", "links", report.Links, "elements", report.Elements, "restored", report.Restored)
	}
	// gofail: var sweepMiddle struct{}
	cgroups, listErr := a.tree.List()
	all := []error{err, listErr}
	for _, name := range cgroups {
		if !slots[name] {
			all = append(all, a.tree.Kill(name), a.tree.Remove(name))
		}
	}
	all = append(all, a.cfg.Volumes.Sync(ctx, a.path("volumes"), uids))
	for _, dir := range []string{a.files(), a.path("logs")} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if e.IsDir() && !uids[e.Name()] {
				all = append(all, os.RemoveAll(filepath.Join(dir, e.Name())))
			}
		}
	}
	memories, _ := os.ReadDir(a.path("groups"))
	for _, e := range memories {
		if uid := strings.TrimSuffix(strings.TrimSuffix(e.Name(), ".new"), ".json"); !uids[uid] {
			all = append(all, os.Remove(a.path("groups", e.Name())))
		}
	}
	entries, _ := os.ReadDir(a.path("runs"))
	for _, e := range entries {
		if !runs[e.Name()] {
			all = append(all, unmountRun(a.path("runs", e.Name())), os.RemoveAll(a.path("runs", e.Name())))
		}
	}
	return errors.Join(all...)
}

// withWorkers adds the groups that have a worker: what they hold they remove themselves.
func (a *Agent) withWorkers(uids map[string]bool) map[string]bool {
	all := maps.Clone(uids)
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid := range a.workers {
		all[uid] = true
	}
	return all
}

// holdings are the slots that groups and pool hold now, and the keeper's runs.
func (a *Agent) holdings(ctx context.Context) (keep []network.Keep, slots, runs map[string]bool, err error) {
	slots, runs = map[string]bool{}, map[string]bool{}
	known, containers, err := a.keeper.Load().List(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	for _, c := range containers {
		runs[c.ID] = true
	}
	inv := newInventory(known, nil)
	for _, s := range inv.slots {
		inv.spare = append(inv.spare, s)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range inv.spare {
		slots[s.id] = true
		if s.label.Host {
			continue
		}
		addr, err := netip.ParseAddr(s.label.Addr)
		if err != nil {
			continue
		}
		k := network.Keep{Slot: network.Slot{Index: s.label.Index, Addr: addr}}
		if m, ok := a.members[s.id]; ok {
			k.Membership = &m
		}
		keep = append(keep, k)
	}
	return keep, slots, runs, nil
}
