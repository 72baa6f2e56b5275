package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/network"
	"spillway.dev/spillway/internal/vnet"
	"spillway.dev/spillway/internal/wholefile"
)

// span is this host's part in the network over all hosts: the address blocks that it has been given, the networks that
// its groups are in, and the other hosts.
type span struct {
	a     *Agent
	wake  chan struct{}
	done  atomic.Int64  // version of the newest wish that is carried out
	given chan struct{} // closed when there is a block

	mu      sync.Mutex // guards what follows
	told    bool
	wish    host.Overlay
	carried map[uint32]bool // networks that reach other hosts
	changed chan struct{}   // closed when carried changes

	// Only the loop touches these.
	last   network.Overlay      // carried out
	lately map[uint32]lingering // networks that have no group here any more
	expiry *time.Timer          // wakes the loop when the first of them ends
}

// lingering is a network whose last group here has gone.
type lingering struct {
	network network.OverlayNetwork
	until   time.Time
}

// A network reaches other hosts for some time after its last group here has gone: hosts with few groups, whose jobs come one
// after the other, would make and remove its device with each, and starts would wait for it.
const (
	lingerTime = 2 * time.Minute
	mostLinger = 64
)

func newSpan(a *Agent) *span {
	s := &span{a: a, wake: make(chan struct{}, 1), given: make(chan struct{}), carried: map[uint32]bool{}, changed: make(chan struct{}), lately: map[uint32]lingering{}}
	s.expiry = time.AfterFunc(lingerTime, s.nudge)
	return s
}

// blocksFile keeps the host's address blocks: addresses of groups that run are known to be taken before anybody can be asked.
const blocksFile = "blocks.json"

// openAddresses opens the pool of groups' addresses.
func (a *Agent) openAddresses() error {
	cidr := a.cfg.Network.CIDR()
	if !a.cfg.Blocks {
		a.addrs = network.NewBlockPool(cidr)
		close(a.span.given)
		for _, own := range vnet.Without(cidr, a.cfg.Apart) {
			if err := a.addrs.Add(own); err != nil {
				return err
			}
		}
		return nil
	}
	a.addrs = network.NewBlockPool(cidr)
	var blocks []netip.Prefix
	body, err := os.ReadFile(a.path(blocksFile))
	if err == nil {
		err = json.Unmarshal(body, &blocks)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read address blocks: %w", err)
	}
	return a.span.takeBlocks(append(blocks, a.cfg.Held...))
}

// takeBlocks adds blocks to the pool, after they have been written down.
func (s *span) takeBlocks(blocks []netip.Prefix) error {
	have := s.a.addrs.Blocks()
	fresh := slices.DeleteFunc(slices.Clone(blocks), func(b netip.Prefix) bool { return slices.Contains(have, b) })
	if len(fresh) == 0 {
		return nil
	}
	body, err := json.Marshal(append(have, fresh...))
	if err == nil {
		err = wholefile.WriteSynced(s.a.path(blocksFile), body)
	}
	if err != nil {
		return fmt.Errorf("write address blocks: %w", err)
	}
	for _, b := range fresh {
		if err := s.a.addrs.Add(b); err != nil {
			return err
		}
	}
	if len(have) == 0 {
		close(s.given)
	}
	s.a.pool.wakeUp()
	return nil
}

// Span implements host.Link.
func (a *Agent) Span(o host.Overlay) {
	s := a.span
	s.mu.Lock()
	if s.told {
		s.wish.Join(o)
	} else {
		s.wish, s.told = o, o.Full
	}
	s.mu.Unlock()
	s.nudge()
}

func (s *span) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// retrySpan is the pause after a change that did not succeed.
const retrySpan = time.Second

// run carries wishes out until ctx ends.
func (s *span) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.wake:
		}
		if err := errors.Join(s.carryOut(ctx), s.syncSpaces(ctx)); err != nil && ctx.Err() == nil {
			s.a.cfg.Log.Error("carry out the network over all hosts", "error", err)
			time.AfterFunc(retrySpan, s.nudge)
		}
	}
}

// followRoutes has packets to other hosts follow the machine's routes, until ctx ends.
func (s *span) followRoutes(ctx context.Context) {
	if !s.a.cfg.Blocks {
		return
	}
	tick := time.NewTicker(network.FollowInterval)
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := s.a.cfg.Network.FollowRoutes(ctx)
		if err != nil && !failed {
			s.a.cfg.Log.Error("follow the machine's routes", "error", err)
		}
		failed = err != nil
	}
}

// carryOut brings the kernel in line with who takes part, and takes this host's blocks. In this order: a disk that is full
// must not keep a lost host from being fenced.
func (s *span) carryOut(ctx context.Context) error {
	s.mu.Lock()
	wish, told := s.wish, s.told
	s.mu.Unlock()
	if !told || !s.a.cfg.Blocks {
		return nil
	}
	networks := s.linger(s.a.carriedNetworks(), time.Now())
	want := overlayOf(wish, networks, s.last.Enabled())
	if want.Enabled() {
		want.Homes = s.a.homesOf(wish, networks)
	}
	if !reflect.DeepEqual(want, s.last) || s.done.Load() == 0 {
		if err := s.a.cfg.Network.SetOverlay(ctx, want); err != nil {
			return err
		}
		s.last = want
		s.note(want.Networks)
	}
	if s.done.Swap(wish.Version) != wish.Version && s.a.cfg.Changed != nil {
		s.a.cfg.Changed()
	}
	return s.takeBlocks(wish.Blocks)
}

// overlayOf is what the kernel shall hold. A host that has nobody to reach takes no part; one that had keeps its devices.
func overlayOf(wish host.Overlay, networks []network.OverlayNetwork, enabled bool) network.Overlay {
	if !wish.Underlay.Is4() || wish.Underlay.IsLoopback() || len(wish.Set) == 0 && !enabled {
		return network.Overlay{}
	}
	want := network.Overlay{Underlay: wish.Underlay, Networks: networks}
	for _, p := range wish.Set {
		if p.Underlay != wish.Underlay {
			want.Peers = append(want.Peers, network.Peer{Underlay: p.Underlay, Blocks: p.Blocks})
		}
	}
	slices.SortFunc(want.Peers, func(a, b network.Peer) int { return a.Underlay.Compare(b.Underlay) })
	return want
}

// carriedNetworks are those of this host's groups, by number.
func (a *Agent) carriedNetworks() []network.OverlayNetwork {
	ids := map[uint32]uint32{}
	a.mu.Lock()
	for _, w := range a.workers {
		w.mu.Lock()
		g := w.next
		w.mu.Unlock()
		if g.NetworkID != 0 && !g.Spec.HostNetwork {
			ids[a.networkOf(g)] = g.NetworkID
		}
	}
	a.mu.Unlock()
	var out []network.OverlayNetwork
	for number, id := range ids {
		if number != 0 {
			out = append(out, network.OverlayNetwork{Number: number, VNI: id})
		}
	}
	slices.SortFunc(out, func(a, b network.OverlayNetwork) int { return int(a.Number) - int(b.Number) })
	return out
}

// linger adds to the networks of this host's groups those that had one lately, and has the loop look again when the first of
// them ends.
func (s *span) linger(carried []network.OverlayNetwork, now time.Time) []network.OverlayNetwork {
	for _, n := range s.last.Networks {
		if _, ok := s.lately[n.Number]; !ok && !slices.Contains(carried, n) && len(s.lately) < mostLinger {
			s.lately[n.Number] = lingering{n, now.Add(lingerTime)}
		}
	}
	out := slices.Clone(carried)
	var first time.Time
	for number, l := range s.lately {
		again := slices.ContainsFunc(carried, func(n network.OverlayNetwork) bool { return n.Number == number || n.VNI == l.network.VNI })
		if again || !now.Before(l.until) {
			delete(s.lately, number)
			continue
		}
		out = append(out, l.network)
		if first.IsZero() || l.until.Before(first) {
			first = l.until
		}
	}
	if !first.IsZero() {
		s.expiry.Reset(first.Sub(now))
	}
	slices.SortFunc(out, func(a, b network.OverlayNetwork) int { return cmp.Compare(a.Number, b.Number) })
	return out
}

// note says which networks reach other hosts now, to those that wait for one.
func (s *span) note(networks []network.OverlayNetwork) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.carried)
	for _, n := range networks {
		s.carried[n.Number] = true
	}
	close(s.changed)
	s.changed = make(chan struct{})
}

// spanPatience is how long a group's start waits until its network reaches other hosts. What is missing then comes later.
const spanPatience = time.Second

// await waits until a group's network reaches the other hosts, if there are any: its first connection shall find them.
func (s *span) await(ctx context.Context, g *group.Group) {
	if !s.a.cfg.Blocks || g.NetworkID == 0 || g.Spec.HostNetwork {
		return
	}
	number := s.a.networkOf(g)
	late := time.NewTimer(spanPatience)
	defer late.Stop()
	for {
		s.mu.Lock()
		ready := s.carried[number] || len(s.wish.Set) == 0 || !s.wish.Underlay.Is4() || s.wish.Underlay.IsLoopback()
		changed := s.changed
		s.mu.Unlock()
		if ready {
			return
		}
		s.nudge()
		select {
		case <-changed:
		case <-late.C:
			return
		case <-ctx.Done():
			return
		}
	}
}

// firstBlock bounds how long a new host's first groups wait for addresses.
const firstBlock = 10 * time.Second

// awaitBlock waits until the host has addresses at all.
func (s *span) awaitBlock(ctx context.Context) {
	select {
	case <-s.given:
		return
	default:
	}
	late := time.NewTimer(firstBlock)
	defer late.Stop()
	select {
	case <-s.given:
	case <-late.C:
	case <-ctx.Done():
	}
}
