package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"spillway.dev/spillway/internal/converge"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/network"
	"spillway.dev/spillway/internal/runtime"
)

// slot is a sandbox that is ready to take a group.
type slot struct {
	id    string
	index uint32
	addr  netip.Addr
	host  bool // in the machine's own network: it has no link, and addr is the machine's
	own   bool // made for one group, see wish
}

// wish is what a group wants of its slot that parked ones do not have.
type wish struct {
	shareProcesses, hostNetwork, hostIPC bool

	hostAddress string     // with hostNetwork
	addr        netip.Addr // of its subnet; invalid: any of this host
	network     uint32     // of addr, when that is outside the groups' range
}

func (a *Agent) wishOf(g *group.Group) wish {
	s, number := &g.Spec, uint32(0)
	if a.isOutside(g.Address) {
		number = a.networkOf(g)
	}
	return wish{addr: g.Address, network: number, shareProcesses: ownInit(s), hostNetwork: s.HostNetwork, hostIPC: s.HostIPC, hostAddress: s.HostAddress}
}

func (s *slot) cgroup() string { return s.id }

// cgroupOf is the cgroup of the n-th of a group's containers. One container alone is in the group's own cgroup, where
// its init has waited: a second level would cost every group a tenth of a megabyte of kernel memory and say nothing
// new.
func cgroupOf(slotID string, n int, spec *group.Spec) string {
	if nested(spec) {
		return slotID + "/" + strconv.Itoa(n)
	}
	return slotID
}

// nested says whether a group's containers have cgroups below the group's. What shares a guest kernel has the cgroup
// of that: the host's kernel does not know its containers.
func nested(s *group.Spec) bool {
	// In the machine's process namespace a container's processes are known by their cgroup alone.
	return !guested(s) && (ownInit(s) || s.HostPID || len(s.Containers)+len(s.InitContainers) > 1)
}

// ownInit says whether a group's shared process namespace has a first process of ours.
func ownInit(s *group.Spec) bool { return s.ShareProcesses && s.Isolation != group.IsolationGVisor }

// pauseCgroup is where the first process of a shared process namespace is.
func pauseCgroup(slotID string) string { return slotID + "/pause" }

func (s *slot) label(ready bool, uid, public string) json.RawMessage {
	return slotLabel{Index: s.index, Addr: s.addr.String(), Ready: ready, UID: uid, Public: public, Host: s.host, Own: s.own}.json()
}

func slotID(index uint32) string { return "s" + strconv.FormatUint(uint64(index), 10) }

// pool keeps slots parked in advance. A start takes one without waiting; when none is left it makes its own.
type pool struct {
	a     *Agent
	ready chan *slot
	need  chan struct{}
	next  atomic.Uint32
	// starting counts starts under way: a refill waits for them, so that it takes no processor from a start.
	starting atomic.Int64
	hits     atomic.Int64
	misses   atomic.Int64

	mu     sync.Mutex // guards paused
	paused bool       // until it is known what is there, and while there is no keeper
}

func newPool(a *Agent) *pool {
	return &pool{a: a, ready: make(chan *slot, max(a.cfg.PoolSize, 0)), need: make(chan struct{}, 1), paused: true}
}

// refillPause is how long after the last start a refill begins, and refillPatience how long it waits at most when
// starts keep coming.
const (
	refillPause    = 3 * time.Millisecond
	refillPatience = 250 * time.Millisecond
)

// run keeps the pool full until ctx ends.
func (p *pool) run(ctx context.Context) {
	for {
		for len(p.ready) < cap(p.ready) && ctx.Err() == nil && !p.isPaused() {
			p.yield(ctx)
			s, err := p.refill(ctx)
			if err != nil {
				if ctx.Err() == nil {
					p.a.cfg.Log.Error("park a slot", "error", err)
				}
				sleep(ctx, time.Second)
				continue
			}
			select {
			case p.ready <- s:
			default:
				p.destroy(ctx, s)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-p.need:
		}
	}
}

// yield lets starts go first.
func (p *pool) yield(ctx context.Context) {
	for deadline := time.Now().Add(refillPatience); ctx.Err() == nil && time.Now().Before(deadline); {
		if p.starting.Load() == 0 {
			sleep(ctx, refillPause)
			if p.starting.Load() == 0 {
				return
			}
			continue
		}
		sleep(ctx, time.Millisecond)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

func (p *pool) isPaused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.paused
}

// PoolNone as Config.PoolSize parks nothing in advance: every start makes its own slot.
const PoolNone = -1

// take gives a parked slot, or makes one.
func (p *pool) take(ctx context.Context, rt runtime.Runtime, want wish) (*slot, error) {
	defer p.wakeUp()
	if want == (wish{}) {
		select {
		case s := <-p.ready:
			p.hits.Add(1)
			return s, nil
		default:
		}
	}
	p.misses.Add(1)
	return p.make(ctx, rt, want)
}

func (p *pool) refill(ctx context.Context) (*slot, error) {
	p.a.span.awaitBlock(ctx)
	p.a.sweeping.RLock()
	defer p.a.sweeping.RUnlock()
	return p.make(ctx, p.a.runtimes[group.IsolationShared], wish{})
}

// make builds a slot, with sweeping held for reading: address, cgroups, namespaces, network. What it made is undone when a step fails.
func (p *pool) make(ctx context.Context, rt runtime.Runtime, want wish) (_ *slot, err error) {
	addr, err := p.address(want)
	if err != nil {
		return nil, err
	}
	s := &slot{index: p.next.Add(1), addr: addr, host: want.hostNetwork, own: want != wish{}}
	s.id = slotID(s.index)
	defer func() {
		if err != nil {
			p.destroy(context.WithoutCancel(ctx), s)
		}
	}()
	waits := s.cgroup()
	if err := p.a.tree.Make(waits); err != nil {
		return nil, err
	}
	if want.shareProcesses {
		waits = pauseCgroup(s.id)
		if err := p.a.tree.Make(waits); err != nil {
			return nil, err
		}
	}
	// Not broken off half-way: what the keeper is making then could not be taken apart.

	// gofail: var poolBeforePark struct{}
	parked, err := rt.Park(context.WithoutCancel(ctx), runtime.SlotRequest{ID: s.id, Cgroup: waits, Label: s.label(false, "", ""),
		ShareProcesses: want.shareProcesses, HostNetwork: want.hostNetwork, HostIPC: want.hostIPC})
	if err != nil {
		return nil, err
	}
	// gofail: var poolParked struct{}
	if s.host {
		return s, p.a.keeper.Load().SetLabel(ctx, s.id, s.label(true, "", ""))
	}
	netns, err := os.Open(parked.NetNS)
	if err != nil {
		return nil, fmt.Errorf("open network namespace of slot %s: %w", s.id, err)
	}
	defer netns.Close()
	if err := p.a.cfg.Network.Attach(ctx, network.Slot{Index: s.index, Addr: s.addr, NetNS: netns, Network: want.network}); err != nil {
		return nil, err
	}
	// gofail: var poolAttached struct{}
	return s, p.a.keeper.Load().SetLabel(ctx, s.id, s.label(true, "", ""))
}

// address is the one of a new slot.
func (p *pool) address(want wish) (netip.Addr, error) {
	if want.hostNetwork {
		preferred, _ := netip.ParseAddr(want.hostAddress)
		return p.a.cfg.Network.HostAddress(preferred)
	}
	if want.addr.IsValid() {
		return want.addr, nil
	}
	return p.a.addrs.Alloc(time.Now())
}

// restoreNetwork gives a slot its network back after a guest kernel has taken it.
func (a *Agent) restoreNetwork(ctx context.Context, s *converge.Slot) error {
	slots, _, err := a.keeper.Load().List(ctx)
	if err != nil {
		return err
	}
	addr, err := netip.ParseAddr(s.IP)
	if err != nil {
		return err
	}
	for _, known := range slots {
		if known.ID != s.ID {
			continue
		}
		netns, err := os.Open(known.Namespaces["net"])
		if err != nil {
			return fmt.Errorf("open network namespace of slot %s: %w", s.ID, err)
		}
		defer netns.Close()
		return a.cfg.Network.Restore(ctx, network.Slot{Index: slotIndex(s.ID), Addr: addr, NetNS: netns})
	}
	return &keeper.Error{Message: "slot " + s.ID + " does not exist", NotFound: true}
}

// destroy takes a slot apart. It may be half made.
func (p *pool) destroy(ctx context.Context, s *slot) {
	if err := p.a.removeSlot(ctx, s); err != nil {
		p.a.cfg.Log.Error("remove slot", "slot", s.id, "error", err)
	}
}

// drop forgets all parked slots: their inits died with the keeper.
func (p *pool) drop() {
	p.mu.Lock()
	p.paused = true
	p.mu.Unlock()
	for {
		select {
		case s := <-p.ready:
			_ = p.a.cfg.Network.Detach(context.Background(), network.Slot{Index: s.index, Addr: s.addr})
			_ = p.a.tree.Remove(s.id)
			p.a.addrs.Release(s.addr, time.Now())
		default:
			return
		}
	}
}

func (p *pool) resume() {
	p.mu.Lock()
	p.paused = false
	p.mu.Unlock()
	p.wakeUp()
}

// wakeUp lets the pool look whether it is full.
func (p *pool) wakeUp() {
	select {
	case p.need <- struct{}{}:
	default:
	}
}

// adoptSpare takes a parked slot of an earlier agent into the pool, or takes it apart when it is not complete.
func (p *pool) adoptSpare(ctx context.Context, f foundSlot) {
	s := f.slot()
	if !s.addr.IsValid() {
		_ = p.a.keeper.Load().Unpark(ctx, f.id)
		return
	}
	if f.label.Ready && f.parked && !s.own && p.a.addrs.Reserve(s.addr) == nil {
		select {
		case p.ready <- s:
			return
		default:
		}
	}
	p.destroy(ctx, s)
}

// sawIndex makes sure that no new slot gets an index in use.
func (p *pool) sawIndex(index uint32) {
	for {
		n := p.next.Load()
		if index <= n || p.next.CompareAndSwap(n, index) {
			return
		}
	}
}
