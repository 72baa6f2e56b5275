// Package agent is the host's loop: what the control plane wants of this machine, what is there, and the steps
// between. Every group has a worker that plans with package converge and carries the steps out; slots are parked in
// advance by a pool; the keeper is started when it is not there and adopted when it is.
//
// It decides nothing about placement and remembers nothing that it could not find again on the machine or be told
// again: kill it at any moment, start it, and it goes on. Start at Open, then worker.go.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/dns"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/image"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/network"
	"spillway.dev/spillway/internal/runtime"
	"spillway.dev/spillway/internal/volume"
)

// Config is one host's agent.
type Config struct {
	Name     string // of the host
	Zone     string
	DataDir  string // durable: images, logs, volumes, memory of groups
	RunDir   string // emptied by a reboot: keeper's socket and records
	Instance string // four hex digits: names cgroups, links and tables of this platform
	Version  string

	// Runtime is "parked", or the path of an OCI runtime for the whole platform.
	Runtime string
	// GVisor is the path of runsc, "" when it is not installed.
	GVisor string
	// Leased: the host is of a fleet, and its groups are its own only while a server says so.
	Leased bool
	// PoolSize is how many slots are parked in advance; 0 = DefaultPoolSize.
	PoolSize int

	Location string
	Images   *image.Store
	Network  *network.Network
	Public   *network.Pool // nil: no public addresses
	Volumes  *volume.Manager
	Allow    group.Allowance // what of this machine groups may have
	Names    *dns.Table
	Report   func(group.Status)
	// Blocks says that this machine is one of several: its groups' addresses come from blocks that it is given, at first from
	// Held.
	Blocks bool
	Held   []netip.Prefix
	// Apart are parts of the groups' range that virtual networks have from an earlier version: no other group gets an address
	// of them from this host, when it is the only one.
	Apart []netip.Prefix
	// Underlay is where other hosts reach this one, when the servers cannot find it out.
	Underlay netip.Addr
	// Changed is called when what the host says of itself is news that should not wait; nil: nobody wants to know.
	Changed func()
	Log     *slog.Logger
	Getenv  func(string) string
}

// DefaultPoolSize is how many slots wait: enough for the starts that come within the time of a refill, and at about a
// megabyte each, cheap.
const DefaultPoolSize = 8

// Agent runs the groups of one host. It implements host.Link.
type Agent struct {
	cfg      Config
	tree     *cgroup.Tree
	addrs    *network.Pool
	pool     *pool
	reclaim  *reclaimer
	networks *networks
	routes   *routes
	span     *span
	spaces   spaces
	leases   *leases
	runtimes map[group.Isolation]runtime.Runtime
	keeper   atomic.Pointer[keeper.Client]
	resolv   string // shared resolv.conf
	describe host.Host
	diskFull atomic.Bool
	joins    atomic.Int64
	wg       sync.WaitGroup // workers
	// sweeping is held for reading while something is made for a slot or group, for writing while leaks are looked for.
	sweeping sync.RWMutex

	naming sync.Mutex      // guards named, stale and homes
	named  map[string]bool // uids of groups elsewhere that have names here
	stale  map[string]bool // those of which the parts of a full message that have come say nothing
	homes  map[string]home // by uid: where addresses of virtual networks are

	mu       sync.Mutex // guards what follows
	workers  map[string]*worker
	statuses map[string]group.Status
	members  map[string]network.Membership // by slot
	fenced   map[string]map[string]bool    // cgroups of fenced groups' containers, by uid
	retained bool                          // the control plane has named all groups
	found    inventory                     // what the keeper had when we connected, until workers take it over
	ctx      context.Context
}

var _ host.Link = (*Agent)(nil)

// Open prepares the host: directories, cgroups, the keeper. Groups are adopted when they are assigned.
func Open(ctx context.Context, cfg Config) (*Agent, error) {
	a := &Agent{cfg: cfg, workers: map[string]*worker{}, statuses: map[string]group.Status{},
		members: map[string]network.Membership{}, named: map[string]bool{}, homes: map[string]home{}, fenced: map[string]map[string]bool{}, leases: newLeases(), ctx: ctx}
	if cfg.PoolSize == 0 {
		a.cfg.PoolSize = DefaultPoolSize
	}
	for _, dir := range []string{"groups", "runs", "volumes", "logs"} {
		if err := os.MkdirAll(a.path(dir), 0o700); err != nil {
			return nil, err
		}
	}
	var err error
	if a.networks, err = openNetworks(a.path("networks.json"), cfg.Instance); err != nil {
		return nil, err
	}
	if err := a.networks.forget(cfg.Network.Networks()); err != nil {
		return nil, fmt.Errorf("write network numbers: %w", err)
	}
	if err := runDirectory(cfg.RunDir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(a.files(), 0o700); err != nil {
		return nil, err
	}
	if a.tree, err = cgroup.Open("spillway-" + cfg.Instance); err != nil {
		return nil, err
	}
	if err := shareMount(a.path("volumes")); err != nil {
		return nil, err
	}
	a.pool, a.reclaim, a.routes, a.span = newPool(a), newReclaimer(a), newRoutes(a), newSpan(a)
	if err := a.openAddresses(); err != nil {
		return nil, err
	}
	a.makeRuntimes()
	if err := a.writeResolv(); err != nil {
		return nil, err
	}
	a.recall()
	if err := a.recallNames(); err != nil {
		cfg.Log.Warn("names are not known until the servers tell them", "error", err)
	}
	if err := a.connect(ctx); err != nil {
		return nil, err
	}
	a.describe = a.measureHost()
	return a, nil
}

func (a *Agent) path(parts ...string) string {
	return filepath.Join(append([]string{a.cfg.DataDir, "agent"}, parts...)...)
}

func (a *Agent) makeRuntimes() {
	current := func() runtime.Keeper { return a.keeper.Load() }
	shared := runtime.NewParked(current, a.tree)
	if a.cfg.Runtime != "" && a.cfg.Runtime != "parked" {
		shared = runtime.NewOCI(runtime.OCIConfig{Path: a.cfg.Runtime, Root: filepath.Join(a.cfg.RunDir, "oci")}, current, a.tree)
	}
	a.runtimes = map[group.Isolation]runtime.Runtime{group.IsolationShared: shared}
	if a.cfg.GVisor != "" {
		a.runtimes[group.IsolationGVisor] = runtime.NewOCI(runtime.OCIConfig{Path: a.cfg.GVisor, GVisor: true,
			Args: []string{"--platform=systrap", "--network=sandbox", "--overlay2=none"}, Root: filepath.Join(a.cfg.RunDir, "runsc")}, current, a.tree)
	}
}

// Run keeps the pool full, the keeper alive and the disk measured, until ctx ends. Containers go on then.
func (a *Agent) Run(ctx context.Context) error {
	var g errgroup.Group
	g.Go(func() error { a.pool.run(ctx); return nil })
	g.Go(func() error { a.keepKeeper(ctx); return nil })
	g.Go(func() error { a.reclaim.run(ctx); return nil })
	g.Go(func() error { a.watchDisk(ctx); return nil })
	g.Go(func() error { a.routes.run(ctx); return nil })
	g.Go(func() error { a.span.run(ctx); return nil })
	g.Go(func() error { a.span.followRoutes(ctx); return nil })
	g.Go(func() error { a.rememberNames(ctx); return nil })
	g.Go(func() error { a.passLeases(ctx); return nil })
	g.Go(func() error { a.watchLease(ctx); return nil })
	err := g.Wait()
	a.wg.Wait()
	if k := a.keeper.Load(); k != nil {
		k.Close()
	}
	return err
}

// Assign implements host.Link.
func (a *Agent) Assign(g *group.Group) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w, ok := a.workers[g.UID]
	if !ok {
		w = a.newWorker(g)
		a.workers[g.UID] = w
		if f, ok := a.found.slots[g.UID]; ok && !f.label.Host {
			a.members[f.id] = a.foundMembership(f, g)
		}
		a.wg.Go(func() { w.run(a.ctx) })
		return
	}
	w.assign(g)
	if g.Space != nil {
		a.span.nudge() // the address space may be another now
	}
}

// Retain implements host.Link: groups that the control plane does not know any more are taken away.
func (a *Agent) Retain(uids map[string]bool) {
	a.mu.Lock()
	a.retained = true
	a.settleGroups(uids)
	var drop []*worker
	for uid, w := range a.workers {
		if !uids[uid] {
			drop = append(drop, w)
		}
	}
	a.mu.Unlock()
	for _, w := range drop {
		w.abandon()
	}
	for a.sweep(uids) != nil && a.ctx.Err() == nil {
		sleep(a.ctx, keeperPause) // a new keeper is on its way
	}
	a.span.nudge()
}

// Status implements host.Link.
func (a *Agent) Status(uid string) (group.Status, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	s, ok := a.statuses[uid]
	return s, ok
}

func (a *Agent) report(s group.Status) {
	a.mu.Lock()
	a.statuses[s.UID] = s
	a.mu.Unlock()
	if a.cfg.Report != nil {
		a.cfg.Report(s)
	}
}

// forgetWorker ends the books of a group that is gone. One that has been assigned again meanwhile begins anew.
func (a *Agent) forgetWorker(w *worker) {
	a.mu.Lock()
	defer a.mu.Unlock()
	uid := w.m.UID
	delete(a.workers, uid)
	delete(a.statuses, uid)
	delete(a.fenced, uid)
	a.span.nudge()
	_ = os.Remove(a.path("groups", uid+".json"))
	w.mu.Lock()
	next := w.next
	w.mu.Unlock()
	if next != w.g && next.Desired != group.Delete && a.ctx.Err() == nil {
		fresh := a.newWorker(next)
		a.workers[uid] = fresh
		a.wg.Go(func() { fresh.run(a.ctx) })
	}
}

func (a *Agent) worker(uid string) (*worker, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	w, ok := a.workers[uid]
	return w, ok
}

// onExit hands a container's end to its group.
func (a *Agent) onExit(c keeper.Container) {
	id, err := readRunLabel(c.Label)
	if err != nil {
		a.cfg.Log.Error("exit of an unknown container", "container", c.ID, "error", err)
		return
	}
	if w, ok := a.worker(id.UID); ok {
		w.post(func() { w.exited(id, c) })
	}
}

// connect dials the keeper, starting it when nobody answers, and reads what it holds.
func (a *Agent) connect(ctx context.Context) error {
	k, err := keeper.Dial(a.cfg.RunDir, a.onExit)
	if err != nil {
		ended, err := a.startKeeper()
		if err != nil {
			return fmt.Errorf("start keeper: %w", err)
		}
		if k, err = a.dialNew(ctx, ended); err != nil {
			return err
		}
	}
	if k, err = a.upgradeKeeper(ctx, k); err != nil {
		return err
	}
	slots, containers, err := k.List(ctx)
	if err != nil {
		return errors.Join(err, k.Close())
	}
	a.mu.Lock()
	a.found = newInventory(slots, containers)
	a.mu.Unlock()
	a.keeper.Store(k)
	return nil
}

const keeperPatience = 30 * time.Second // one that has ended is noticed at once; a busy machine takes its time

// dialNew dials a keeper that is about to be there, unless it has ended.
func (a *Agent) dialNew(ctx context.Context, ended <-chan struct{}) (*keeper.Client, error) {
	deadline := time.Now().Add(keeperPatience)
	for {
		k, err := keeper.Dial(a.cfg.RunDir, a.onExit)
		if err == nil {
			return k, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("keeper did not answer within %s, see %s: %w", keeperPatience, a.keeperLog(), err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-ended:
			return nil, fmt.Errorf("the new keeper has ended, see %s: %w", a.keeperLog(), err)
		case <-time.After(time.Millisecond):
		}
	}
}

// keepKeeper replaces a keeper that dies and tells every worker what the new one found. It tries until it has one:
// without it nothing can be started or stopped.
func (a *Agent) keepKeeper(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.keeper.Load().Gone():
		}
		if ctx.Err() != nil {
			return
		}
		a.cfg.Log.Warn("keeper is gone, starting a new one")
		a.pool.drop()
		if err := a.connect(ctx); err != nil {
			if ctx.Err() == nil {
				a.cfg.Log.Error("replace keeper", "error", err)
			}
			sleep(ctx, keeperPause)
			continue
		}
		a.mu.Lock()
		retained, uids := a.retained, make(map[string]bool, len(a.workers))
		workers := make([]*worker, 0, len(a.workers))
		for uid, w := range a.workers {
			workers = append(workers, w)
			uids[uid] = true
		}
		a.mu.Unlock()
		for _, w := range workers {
			w.post(w.adopt)
		}
		// What was being made or taken apart when the keeper died belongs to nobody now.
		if !retained {
			a.pool.resume()
		} else if err := a.sweep(uids); err != nil {
			a.cfg.Log.Warn("sweep after the keeper's death", "error", err) // it has died again: replace it, and sweep anew
		}
	}
}
