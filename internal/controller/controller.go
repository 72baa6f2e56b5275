// Package controller is the control plane behind the API: it keeps every group's record, places groups on hosts, tells
// hosts what to run, and tells watchers what happens.
//
// Reads come from memory, writes are one durable commit each; what a host reports lives in memory, and its last word
// on an ended group is stored behind the scenes. It must never do what a host does, nor know HTTP. Start reading at
// Controller; index.go is the memory, feed.go the watch, put.go the walk of a create.
package controller

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/place"
	"spillway.dev/spillway/internal/store"
)

// DefaultCPUOvercommit is how many requested cores one real core carries. Groups of a developer's machine mostly wait;
// the kernel shares cores fairly by request.
const DefaultCPUOvercommit = 10

// DefaultStorageOvercommit is how many bytes that groups may write one byte of disk carries. What a group may write is
// a limit that few come near; a disk that gets full takes no new groups whatever was promised.
const DefaultStorageOvercommit = 10

// DefaultServices is the range of allocated service addresses: of the addresses that providers use between themselves,
// which no machine's own networks should.
var DefaultServices = netip.MustParsePrefix("100.64.0.0/16")

// Config is what a controller needs.
type Config struct {
	Store    store.Store
	Location string       // name of the region that this platform is
	Policy   place.Policy // of every pool without one of its own; zero: DefaultCPUOvercommit, DefaultStorageOvercommit, memory as it is
	Pools    map[string]place.Policy
	// Services is the range that service addresses get their address from when they ask for none; zero:
	// DefaultServices. Reserved are the groups' own ranges, where no service address may be.
	Services netip.Prefix
	Reserved []netip.Prefix
	// Network is the range of all groups' addresses, of which hosts get blocks; zero: this machine is the only host, and
	// has it all.
	Network netip.Prefix
	// LostAfter is how long a host that has joined may be silent before its groups are started elsewhere, and the length
	// of the leases under which its fenced groups run; 0: DefaultLostAfter.
	LostAfter time.Duration
	Log       *slog.Logger
	Now       func() time.Time // nil: time.Now
}

// Controller implements all that the API can ask of groups, resource groups and hosts. It is safe for concurrent use.
type Controller struct {
	cfg         Config
	feed        *feed[arm.View]
	addressFeed *feed[arm.AddressView]

	mu      sync.RWMutex // guards what follows; held only for memory, never over IO
	idx     index
	links   map[string]host.Link
	states  map[string]host.State // of connected hosts, as heard last
	absent  map[string]*absence   // by name: hosts that have joined and are not connected
	settled bool                  // what hosts have not told by now does not count

	span      *span
	naming    *naming
	numbering sync.Mutex   // one network at a time gets its number
	netting   sync.RWMutex // held for reading while a group gets an address of a subnet, for writing while one changes; taken before mu
	serving   sync.Mutex   // orders what hosts are told of service addresses; taken before mu

	// placing is held for reading from the choice of a host to the message to it, for writing while a host is told
	// which groups it keeps: in between, a new group would be taken for a foreign one.
	placing sync.RWMutex

	dirty *queue        // uids whose status should be stored
	gone  *queue        // uids of which nothing is left on their host
	moved *queue        // uids of service addresses that may lead elsewhere now
	left  *queue        // names of hosts that groups have left
	room  chan struct{} // a bell: something has changed that waiting groups may go by
	told  telling       // only the wait loop touches it

	displacing *rate.Limiter // starts of lost hosts' groups
	loaded     int64         // store revision that idx started from
}

// New reads the store and makes a controller that knows all groups. Run keeps it going.
func New(ctx context.Context, cfg Config) (*Controller, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.Policy = overcommit(cfg.Policy)
	cfg.Pools = maps.Clone(cfg.Pools)
	for name, p := range cfg.Pools {
		cfg.Pools[name] = overcommit(p)
	}
	if !cfg.Services.IsValid() {
		cfg.Services = DefaultServices
	}
	if cfg.LostAfter == 0 {
		cfg.LostAfter = DefaultLostAfter
	}
	c := &Controller{cfg: cfg, idx: newIndex(place.Policies{Default: cfg.Policy, Pools: cfg.Pools}), links: map[string]host.Link{}, absent: map[string]*absence{}, states: map[string]host.State{},
		dirty: newQueue(), gone: newQueue(), moved: newQueue(), left: newQueue(), room: make(chan struct{}, 1), span: newSpan(cfg.Now()), naming: newNaming(), displacing: newDisplacing()}
	if err := c.load(ctx); err != nil {
		return nil, fmt.Errorf("load groups: %w", err)
	}
	life := newID()[:8]
	c.feed, c.addressFeed = newFeed[arm.View](life), newFeed[arm.AddressView](life)
	return c, nil
}

// overcommit fills in what a policy leaves open.
func overcommit(p place.Policy) place.Policy {
	if p.CPUOvercommit == 0 {
		p.CPUOvercommit = DefaultCPUOvercommit
	}
	if p.StorageOvercommit == 0 {
		p.StorageOvercommit = DefaultStorageOvercommit
	}
	return p
}

// load fills the index from the store.
func (c *Controller) load(ctx context.Context) error {
	page, err := c.cfg.Store.List(ctx, store.Root, 0, "")
	if err != nil {
		return err
	}
	for _, e := range page.Entries {
		if err := c.apply(store.Change{Entry: e, Revision: e.Revision}); err != nil {
			return err
		}
	}
	c.loaded, c.idx.followed = page.Revision, page.Revision
	c.resume()
	return nil
}

// Run follows the store and does what happens behind the scenes, until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { c.persistLoop(ctx) })
	wg.Go(func() { c.removeLoop(ctx) })
	wg.Go(func() { c.serveLoop(ctx) })
	wg.Go(func() { c.failoverLoop(ctx) })
	wg.Go(func() { c.spanLoop(ctx) })
	wg.Go(func() { c.namesLoop(ctx) })
	wg.Go(func() { c.waitLoop(ctx) })
	return c.follow(ctx)
}

// follow applies what other writers of the store do; own writes arrive here too and change nothing.
func (c *Controller) follow(ctx context.Context) error {
	after := c.loaded
	for ctx.Err() == nil {
		changes, err := c.cfg.Store.Watch(ctx, store.Root, after)
		if err != nil {
			if ctx.Err() != nil {
				break
			}
			return fmt.Errorf("watch the store: %w", err)
		}
		for batch := range changes {
			for _, change := range batch {
				after = change.Revision
				if err := c.apply(change); err != nil {
					return fmt.Errorf("watch the store: %w", err)
				}
			}
			c.seen(batch)
		}
		select { // the watch broke off: open it again, not too fast
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return nil
}

// Host finds the link to a host.
func (c *Controller) Host(name string) (host.Link, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	l, ok := c.links[name]
	return l, ok
}

// assign tells a group's host of a new record.
func (c *Controller) assign(g *group.Group) {
	c.mu.RLock()
	l, ok := c.links[g.Host]
	g = c.forHost(g)
	c.mu.RUnlock()
	if ok {
		l.Assign(g)
	}
}

// Location is the name of the region.
func (c *Controller) Location() string { return c.cfg.Location }

// newID makes a random id of 24 hex digits.
func newID() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

func encode(v any) ([]byte, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("write record: %w", err)
	}
	return data, nil
}

// view is a group as the API shows it.
func (e *entry) view() arm.View { return arm.View{Group: e.group, Status: e.status} }
