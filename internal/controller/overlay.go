package controller

import (
	"cmp"
	"context"
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// fencePatience is how long the other hosts have to carry out that a lost host's addresses are withdrawn. One that has
// not by then cannot: it is broken, or lost itself.
const fencePatience = 10 * time.Second

// span is what hosts have been told of the network over all of them.
type span struct {
	mu      sync.Mutex           // orders what hosts are told; taken before the controller's
	version atomic.Int64         // written with mu held
	told    map[string]told      // by name: links, and what they have been told of themselves
	peers   map[string]host.Peer // by name; nil: nobody has been told anything
	bell    *queue
}

// told is what a link has been told of its own part.
type told struct {
	link     host.Link
	underlay netip.Addr
	blocks   []netip.Prefix
}

// newSpan begins to count versions where no earlier leader has got to.
func newSpan(now time.Time) *span {
	s := &span{told: map[string]told{}, bell: newQueue()}
	s.version.Store(now.UnixNano())
	return s
}

// spanLoop gives hosts address blocks as they need them, and tells all hosts of each other, until ctx ends.
func (c *Controller) spanLoop(ctx context.Context) {
	if !c.cfg.Network.IsValid() {
		return
	}
	if err := c.numberOld(ctx); err != nil && ctx.Err() == nil {
		c.cfg.Log.Error("number the networks of older groups", "error", err)
	}
	for c.span.bell.wait(ctx) {
		c.span.bell.take(maxAttempts)
		c.noteReturned(ctx)
		if err := c.grantBlocks(ctx); err != nil && ctx.Err() == nil {
			c.cfg.Log.Error("give hosts address blocks", "error", err)
			time.AfterFunc(retryDelay, c.respan)
		}
		c.tellSpan()
	}
}

// respan asks for a look at the network over all hosts.
func (c *Controller) respan() { c.span.bell.add("") }

// wantedBlocks is how many address blocks a host needs: for its groups, a quarter more for those whose addresses are not
// free again yet, and some that it makes in advance.
func wantedBlocks(groups, size int) int { return (groups + groups/4 + size/4 + size - 1) / size }

// wantBlocks asks for a look when a host needs more address blocks than it has, with the lock held.
func (c *Controller) wantBlocks(name string) {
	if c.cfg.Network.IsValid() && c.missingBlocks(name) > 0 {
		c.respan()
	}
}

// missingBlocks is how many address blocks a connected host needs and does not have, with the lock held.
func (c *Controller) missingBlocks(name string) int {
	return wantedBlocks(len(c.idx.byHost[name]), 1<<(32-host.BlockBits(c.cfg.Network))) - len(c.blocksOf(name))
}

// grantBlocks gives hosts the address blocks that they need and do not have, in one durable write for each host. Only the
// span's loop calls it, so that no block is given twice.
func (c *Controller) grantBlocks(ctx context.Context) error {
	c.mu.RLock()
	need := map[string]int{}
	for name := range c.links {
		if n := c.missingBlocks(name); n > 0 {
			need[name] = n
		}
	}
	c.mu.RUnlock()
	for _, name := range slices.Sorted(maps.Keys(need)) {
		free := c.freeBlocks(need[name])
		if len(free) == 0 {
			return fault.New(fault.Exhausted, "", "the host %s gets no more addresses: all blocks of %s are given out", name, c.cfg.Network)
		}
		err := c.changeHost(ctx, name, adding(free))
		if fault.KindOf(err) == fault.NotFound {
			continue // it was removed
		}
		if err != nil {
			return err
		}
		c.cfg.Log.Info("address blocks given", "host", name, "blocks", free)
	}
	return nil
}

// adding edits a host's record so that it has more address blocks.
func adding(blocks []netip.Prefix) func(*hostRecord) error {
	return func(r *hostRecord) error {
		r.Blocks = append(slices.Clone(r.Blocks), blocks...)
		return nil
	}
}

// freeBlocks are the first n blocks that no host has, and no virtual network of an earlier version.
func (c *Controller) freeBlocks(n int) (out []netip.Prefix) {
	c.mu.RLock()
	taken := map[netip.Prefix]bool{}
	for _, r := range c.idx.hosts {
		for _, b := range r.Blocks {
			taken[b] = true
		}
	}
	apart := c.apart()
	c.mu.RUnlock()
	bits := host.BlockBits(c.cfg.Network)
	base := binary.BigEndian.Uint32(c.cfg.Network.Addr().AsSlice())
	for i := range uint32(1) << (bits - c.cfg.Network.Bits()) {
		if len(out) == n {
			break
		}
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], base+i<<(32-bits))
		b := netip.PrefixFrom(netip.AddrFrom4(a), bits)
		if !taken[b] && !slices.ContainsFunc(apart, b.Overlaps) {
			out = append(out, b)
		}
	}
	return out
}

// HoldBlocks makes the blocks with these addresses a host's own: groups of it have them from a time when it had the whole
// range for itself. It is called before Run. Errors: conflict, when another host has one.
func (c *Controller) HoldBlocks(ctx context.Context, name string, addrs []netip.Addr) error {
	bits := host.BlockBits(c.cfg.Network)
	wanted := map[netip.Prefix]bool{}
	for _, a := range addrs {
		if c.cfg.Network.Contains(a) {
			wanted[netip.PrefixFrom(a, bits).Masked()] = true
		}
	}
	c.mu.RLock()
	for _, used := range c.idx.vnets.used { // their own network's, wherever they are
		for a := range used {
			delete(wanted, netip.PrefixFrom(a, bits).Masked())
		}
	}
	for other, r := range c.idx.hosts {
		for _, b := range r.Blocks {
			switch {
			case !wanted[b]:
			case other == name:
				delete(wanted, b)
			default:
				c.mu.RUnlock()
				return fault.New(fault.Conflict, "", "the host %s has addresses of the block %s, which belongs to the host %s", name, b, other)
			}
		}
	}
	c.mu.RUnlock()
	if len(wanted) == 0 {
		return nil
	}
	return c.editHost(ctx, name, adding(slices.SortedFunc(maps.Keys(wanted), func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })))
}

// Blocks are the address blocks of a host.
func (c *Controller) Blocks(name string) []netip.Prefix {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.blocksOf(name)
}

func (c *Controller) blocksOf(name string) []netip.Prefix {
	if r := c.idx.hosts[name]; r != nil {
		return r.Blocks
	}
	return nil
}

// truthful drops from a host's report an address that the host does not have, with the lock held: nothing is led to a
// place that a host only claims.
func (c *Controller) truthful(name string, g *group.Group, s *group.Status) {
	r := c.idx.hosts[name]
	if !c.cfg.Network.IsValid() || s.IP == "" || r == nil || r.UID == "" {
		return
	}
	ip, err := netip.ParseAddr(s.IP)
	if err == nil && g.Address.IsValid() && ip == g.Address {
		return
	}
	if err == nil && !g.Address.IsValid() && (g.Spec.HostNetwork || slices.ContainsFunc(r.Blocks, func(b netip.Prefix) bool { return b.Contains(ip) })) {
		return // the address of a group on its host's network is nobody's in a network, and nothing is led there
	}
	c.cfg.Log.Warn("host reports an address that it does not have", "host", name, "group", g.Ref.Name, "uid", g.UID, "address", s.IP)
	s.IP = ""
}

// tellSpan tells every host what has changed since it was told last, and gives the version that says so.
func (c *Controller) tellSpan() int64 {
	if !c.cfg.Network.IsValid() {
		return 0
	}
	s := c.span
	s.mu.Lock()
	defer s.mu.Unlock()
	c.mu.RLock()
	peers := c.takingPart()
	own := map[string]told{}
	for name, l := range c.links {
		own[name] = c.ownSpan(name, l)
	}
	c.mu.RUnlock()
	var set []host.Peer
	var gone []string
	for name, p := range peers {
		if old, ok := s.peers[name]; !ok || !old.Equal(p) {
			set = append(set, p)
		}
	}
	for name := range s.peers {
		if _, ok := peers[name]; !ok {
			gone = append(gone, name)
		}
	}
	s.peers = peers
	if len(set)+len(gone) > 0 {
		s.version.Add(1)
	}
	for name, now := range own {
		old, known := s.told[name]
		if !known || old.link != now.link {
			continue // it is told everything when it connects
		}
		if len(set)+len(gone) == 0 && old.underlay == now.underlay && slices.Equal(old.blocks, now.blocks) {
			continue
		}
		now.link.Span(host.Overlay{Version: s.version.Load(), Underlay: now.underlay, Blocks: now.blocks, Set: without(set, name), Gone: gone})
		s.told[name] = now
	}
	for name := range s.told {
		if _, ok := own[name]; !ok {
			delete(s.told, name)
		}
	}
	return s.version.Load()
}

// spanAll tells a host that connects everything.
func (c *Controller) spanAll(name string, link host.Link) {
	if !c.cfg.Network.IsValid() {
		return
	}
	s := c.span
	s.mu.Lock()
	defer s.mu.Unlock()
	c.mu.RLock()
	now := c.ownSpan(name, link)
	if s.peers == nil { // a leader's first word leaves things as they were
		s.peers = c.takingPart()
	}
	c.mu.RUnlock()
	o := host.Overlay{Version: s.version.Load(), Full: true, Underlay: now.underlay, Blocks: now.blocks}
	o.Set = without(slices.SortedFunc(maps.Values(s.peers), func(a, b host.Peer) int { return cmp.Compare(a.Name, b.Name) }), name)
	link.Span(o)
	s.told[name] = now
	c.respan()
}

func without(peers []host.Peer, name string) []host.Peer {
	return slices.DeleteFunc(slices.Clone(peers), func(p host.Peer) bool { return p.Name == name })
}

// ownSpan is what a connected host has of the network over all hosts, with the lock held.
func (c *Controller) ownSpan(name string, l host.Link) told {
	return told{link: l, underlay: l.Describe().Underlay, blocks: c.blocksOf(name)}
}

// takingPart are the hosts that others may reach, with both locks held: those that have blocks, are not lost, and are the only
// ones at their address. Of several at one address the first by name takes part.
func (c *Controller) takingPart() map[string]host.Peer {
	out := map[string]host.Peer{}
	at := map[netip.Addr]string{}
	for _, name := range slices.Sorted(maps.Keys(c.idx.hosts)) {
		r := c.idx.hosts[name]
		h, ok := c.known(name)
		if _, takes := c.span.peers[name]; h.State != host.Ready && (r.Lost || c.links[name] != nil && !takes && c.span.peers != nil) {
			continue // one that comes back has to stop first what was started elsewhere
		}
		if !ok || h.State == host.Lost || !h.Underlay.Is4() || h.Underlay.IsLoopback() || len(r.Blocks) == 0 {
			continue
		}
		if _, taken := at[h.Underlay]; taken {
			continue
		}
		at[h.Underlay] = name
		out[name] = host.Peer{Name: name, Underlay: h.Underlay, Blocks: r.Blocks}
	}
	return out
}

// withdraw takes the addresses of lost hosts away from all others, and writes down that they are lost: a later leader must
// not let them in again.
func (c *Controller) withdraw(ctx context.Context) {
	version := c.tellSpan()
	var names []string
	c.mu.Lock()
	for name, a := range c.absent {
		if a.lost && a.withdrawn == 0 {
			a.withdrawn, a.withdrawnAt = version, c.cfg.Now()
			names = append(names, name)
		}
	}
	c.mu.Unlock()
	for _, name := range names {
		c.noteLost(ctx, name, true)
	}
}

func (c *Controller) noteLost(ctx context.Context, name string, lost bool) {
	err := c.changeHost(ctx, name, func(r *hostRecord) error {
		if r.Lost == lost || r.UID == "" {
			return errUnchanged
		}
		r.Lost = lost
		return nil
	})
	if err != nil && fault.KindOf(err) != fault.NotFound && ctx.Err() == nil {
		c.cfg.Log.Error("write down whether a host is lost", "host", name, "lost", lost, "error", err)
	}
}

// noteReturned writes down that hosts are not lost any more.
func (c *Controller) noteReturned(ctx context.Context) {
	var back []string
	c.mu.RLock()
	for name := range c.links {
		if r := c.idx.hosts[name]; r != nil && r.Lost && c.describe(name).State == host.Ready {
			back = append(back, name)
		}
	}
	c.mu.RUnlock()
	for _, name := range back {
		c.noteLost(ctx, name, false)
	}
}

// fenced says whether every other host has withdrawn a lost host's addresses, or has had its time to. The lock is held.
func (c *Controller) fenced(a *absence) bool {
	if !c.cfg.Network.IsValid() {
		return true
	}
	if a.withdrawn == 0 {
		return false
	}
	if c.cfg.Now().Sub(a.withdrawnAt) >= fencePatience {
		return true
	}
	newest := c.span.version.Load()
	for _, l := range c.links {
		if v := l.Describe().Overlay; v < a.withdrawn || v > newest {
			return false
		}
	}
	return true
}
