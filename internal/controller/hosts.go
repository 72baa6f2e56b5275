package controller

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"sort"
	"strings"
	"time"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/store"
)

// hostRecord is what the platform knows of a host, and wants of it.
type hostRecord struct {
	Cordoned bool `json:"cordoned"`
	Draining bool `json:"draining,omitempty"` // its groups are to move elsewhere as soon as there is room
	// The rest is there for hosts that have joined with a token.
	UID    string    `json:"uid,omitempty"`    // one per joining
	Serial string    `json:"serial,omitempty"` // of the newest certificate
	Joined time.Time `json:"joined,omitzero"`
	Pool   string    `json:"pool,omitempty"` // as its token says; "": as the host says
	Last   host.Host `json:"last,omitzero"`  // how it described itself when it connected last

	Blocks []netip.Prefix `json:"blocks,omitempty"` // where its groups' addresses are from
	Lost   bool           `json:"lost,omitempty"`   // until it is ready again

	revision int64
}

// applyHost takes over a change of a host's record.
func (c *Controller) applyHost(ch store.Change) error {
	name := strings.TrimPrefix(ch.Key, store.Hosts)
	r := &hostRecord{revision: ch.Revision}
	if !ch.Deleted {
		if err := json.Unmarshal(ch.Value, r); err != nil {
			return fmt.Errorf("read %s: %w", ch.Key, err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.respan()
	old := c.idx.hosts[name]
	switch {
	case old != nil && old.revision >= ch.Revision, ch.Revision <= c.idx.followed, c.idx.buried[ch.Key] > ch.Revision:
		return nil
	case ch.Deleted:
		if old != nil && old.UID != "" {
			delete(c.links, name) // at once, not when its connection has ended: nothing is given to it any more
		}
		delete(c.idx.hosts, name)
		delete(c.absent, name)
		c.idx.fleet.RemoveHost(name)
		return nil
	}
	c.idx.hosts[name] = r
	if was := old != nil && old.Draining; was != r.Draining {
		defer c.accountHost(name)
	}
	if r.UID != "" && c.links[name] == nil && c.absent[name] == nil {
		since := c.cfg.Now()
		if c.feed == nil { // this process has just begun: hosts have to find it first
			since = since.Add(reconnectTime)
		}
		c.absent[name] = &absence{since: since, lost: r.Lost}
	}
	c.showHost(name)
	return nil
}

// showHost tells the fleet's view how a host is now, with the lock held.
func (c *Controller) showHost(name string) {
	if h, ok := c.known(name); ok {
		c.idx.fleet.SetHost(h)
	}
	c.nudge()
}

// known is a host as it is or was last, with the lock held.
func (c *Controller) known(name string) (host.Host, bool) {
	if c.links[name] != nil {
		return c.describe(name), true
	}
	r, a := c.idx.hosts[name], c.absent[name]
	if r == nil || r.UID == "" || r.Last.Name == "" {
		return host.Host{}, false
	}
	h := r.Last
	h.State = host.NotReady
	if a != nil && a.lost {
		h.State = host.Lost
	}
	return r.want(h), true
}

// want is a host with what the platform has decided about it.
func (r *hostRecord) want(h host.Host) host.Host {
	h.Cordoned = h.Cordoned || r.Cordoned
	if r.Pool != "" {
		h.Pool = r.Pool
	}
	return h
}

// describe is a connected host as it is and as the platform wants it, with the lock held.
func (c *Controller) describe(name string) host.Host {
	h := c.links[name].Describe()
	if r := c.idx.hosts[name]; r != nil {
		h = r.want(h)
	}
	return h
}

// Connect makes the machine's own host available, tells it all its groups and reads what it knows of them. It is called
// once for each connection.
func (c *Controller) Connect(link host.Link) { _ = c.connect(link, "") }

// ConnectJoined is Connect for a host that has joined. Errors: denied, when it is not of the fleet any more.
func (c *Controller) ConnectJoined(link host.Link, uid string) error { return c.connect(link, uid) }

func (c *Controller) connect(link host.Link, uid string) error {
	h := link.Describe()
	name := h.Name
	c.placing.Lock()
	c.mu.Lock()
	if err := c.admits(name, uid); uid != "" && err != nil { // it was admitted before it told of its groups
		c.mu.Unlock()
		c.placing.Unlock()
		return err
	}
	c.links[name] = link
	c.states[name] = c.describe(name).State
	mine := c.idx.onHost(name)
	for i, g := range mine {
		mine[i] = c.forHost(g)
	}
	c.mu.Unlock()
	// First what there is, then that there is nothing else: a host that sweeps must know what its groups hold.
	for _, g := range mine {
		link.Assign(g)
	}
	c.serveAll(link)
	c.nameAll(name, link) // first where addresses are: what leads there has to stay
	c.spanAll(name, link)
	retain(link, mine)
	c.placing.Unlock()
	for _, g := range mine {
		if s, ok := link.Status(g.UID); ok {
			c.Report(name, s)
		}
	}
	c.mu.Lock()
	if c.links[name] == link {
		delete(c.absent, name)
		c.showHost(name)
		c.followTargets(name)
		c.accountHost(name)
	}
	c.mu.Unlock()
	c.respan()
	return nil
}

// retain tells a host that these are all its groups.
func retain(link host.Link, groups []*group.Group) {
	uids := make(map[string]bool, len(groups))
	for _, g := range groups {
		uids[g.UID] = true
	}
	link.Retain(uids)
}

// Disconnect takes a host away that was heard of last at a given time. Its groups are left alone until it is lost.
func (c *Controller) Disconnect(link host.Link, heard time.Time, why error) {
	name := link.Describe().Name
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.links[name] != link {
		return // it has connected anew
	}
	delete(c.links, name)
	c.absent[name] = &absence{since: heard}
	c.showHost(name)
	c.cfg.Log.Warn("host disconnected", "host", name, "reason", why)
}

// Heard takes over what a connected host says of itself now.
func (c *Controller) Heard(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.links[name] == nil {
		return
	}
	c.showHost(name)
	if state := c.describe(name).State; state != c.states[name] {
		c.states[name] = state
		c.respan()
	}
}

// Remember keeps how a host describes itself, for the time when it is away. It is called after each connection.
func (c *Controller) Remember(ctx context.Context, h host.Host) error {
	return c.changeHost(ctx, h.Name, func(r *hostRecord) error {
		h.Images, h.DiskFull, h.Overlay, h.State = nil, false, 0, host.Ready // they change all the time
		if reflect.DeepEqual(r.Last, h) {
			return errUnchanged
		}
		r.Last = h
		return nil
	})
}

// Hosts lists the hosts by name: those that are connected and those that have joined.
func (c *Controller) Hosts() []host.Host {
	c.mu.RLock()
	defer c.mu.RUnlock()
	var out []host.Host
	for name := range c.links {
		out = append(out, c.describe(name))
	}
	for name := range c.idx.hosts {
		if c.links[name] == nil {
			if h, ok := c.known(name); ok {
				out = append(out, h)
			}
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// DescribeHost describes one host. Errors: not-found.
func (c *Controller) DescribeHost(name string) (host.Host, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if h, ok := c.known(name); ok {
		return h, nil
	}
	return host.Host{}, noHost(name)
}

func noHost(name string) error {
	return fault.New(fault.NotFound, "HostNotFound", "The host '%.80s' does not exist. 'spillway host ls' lists those that do.", name)
}

// Cordon keeps new groups off a host, or lets them on again. Errors: not-found.
func (c *Controller) Cordon(ctx context.Context, name string, cordoned bool) (host.Host, error) {
	return c.cordon(ctx, name, hostRecord{Cordoned: cordoned})
}

func (c *Controller) cordon(ctx context.Context, name string, want hostRecord) (host.Host, error) {
	if _, err := c.DescribeHost(name); err != nil {
		return host.Host{}, err
	}
	err := c.changeHost(ctx, name, func(r *hostRecord) error {
		drain := want.Draining || want.Cordoned && r.Draining
		if r.Cordoned == want.Cordoned && r.Draining == drain {
			return errUnchanged
		}
		r.Cordoned, r.Draining = want.Cordoned, drain
		return nil
	})
	if err != nil {
		return host.Host{}, err
	}
	return c.DescribeHost(name)
}
