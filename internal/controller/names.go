package controller

import (
	"context"
	"net/netip"
	"sync"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// namesBatch is how many names go to a host at once.
const namesBatch = 1000

// naming is what hosts have been told of the names of groups elsewhere.
type naming struct {
	mu      sync.Mutex                    // orders what hosts are told; taken before the controller's
	told    map[host.Link]map[string]bool // networks of whose groups a link has heard
	changed *queue                        // uids whose names are others now
	looked  *queue                        // hosts that may have groups of a new network
}

func newNaming() *naming {
	return &naming{told: map[host.Link]map[string]bool{}, changed: newQueue(), looked: newQueue()}
}

// namedGroup is a ready group with its names, and where it is.
type namedGroup struct {
	host.Named
	network string // its networkKey
	host    string
}

// nameOf is what a group is called now and where its address of a virtual network is, nil when there is nothing to tell; the
// lock is held.
func (c *Controller) nameOf(e *entry) *namedGroup {
	g := e.group
	if !c.cfg.Network.IsValid() {
		return nil
	}
	names := c.namesOf(e)
	var home *host.Home
	if g.Address.IsValid() && g.Host != "" && !c.isLost(g.Host) && !e.settled() {
		home = &host.Home{Addr: g.Address, Host: g.Host}
	}
	if names == nil && home == nil {
		return nil
	}
	return &namedGroup{network: networkKey(g.Ref.Subscription, g.Spec.NetworkName()), host: g.Host, Named: host.Named{UID: g.UID,
		Subscription: g.Ref.Subscription, Network: g.Spec.NetworkName(), Names: names, Home: home}}
}

// namesOf are the names of a ready group.
func (c *Controller) namesOf(e *entry) []host.Name {
	g, s := e.group, e.status
	if s == nil || g.Desired != group.Run || g.Spec.HostNetwork || s.Epoch < g.Epoch || s.Gone || s.State.Ended() || !s.Ready() || c.isLost(g.Host) {
		return nil
	}
	addr, err := netip.ParseAddr(s.IP)
	if err != nil {
		return nil
	}
	seen, err := netip.ParseAddr(s.PublicIP)
	if err != nil {
		seen = addr
	}
	return host.NamesOf(g, arm.Domain, addr, seen)
}

// followName notes what a group is called now, and wakes the loop when that has changed. The lock is held.
func (c *Controller) followName(e *entry, gone bool) {
	uid := e.group.UID
	old := c.idx.named[uid]
	var now *namedGroup
	if !gone {
		now = c.nameOf(e)
	}
	if old == nil && now == nil || old != nil && now != nil && old.host == now.host && old.Equal(&now.Named) {
		return
	}
	if old != nil {
		delete(c.idx.named, uid)
		takeFrom(c.idx.namedIn, old.network, uid)
	}
	if now != nil {
		c.idx.named[uid] = now
		fileIn(c.idx.namedIn, now.network, uid, now)
	}
	c.naming.changed.add(uid)
}

// namesLoop tells hosts of the names of groups elsewhere, until ctx ends.
func (c *Controller) namesLoop(ctx context.Context) {
	n := c.naming
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.changed.bell:
		case <-n.looked.bell:
		}
		for hosts := n.looked.take(namesBatch); len(hosts) > 0; hosts = n.looked.take(namesBatch) {
			for _, name := range hosts {
				c.nameMore(name)
			}
		}
		for uids := n.changed.take(namesBatch); len(uids) > 0; uids = n.changed.take(namesBatch) {
			c.tellNames(uids)
		}
	}
}

// tellNames tells the hosts that it concerns of changed names.
func (c *Controller) tellNames(uids []string) {
	n := c.naming
	n.mu.Lock()
	defer n.mu.Unlock()
	c.mu.RLock()
	updates := map[host.Link]*host.Names{}
	for name, link := range c.links {
		networks, known := n.told[link]
		if !known {
			continue // it is told everything when it connects
		}
		u := &host.Names{}
		for _, uid := range uids {
			if r, ok := c.idx.named[uid]; !ok || !r.tell(u, name, networks) {
				u.Gone = append(u.Gone, uid)
			}
		}
		updates[link] = u
	}
	for link := range n.told {
		if c.links[link.Describe().Name] != link {
			delete(n.told, link)
		}
	}
	c.mu.RUnlock()
	for link, u := range updates {
		link.Name(*u)
	}
}

// tell adds a group's names to what a host is told, as far as they are that host's business; false: they are not.
func (r *namedGroup) tell(u *host.Names, name string, networks map[string]bool) bool {
	if r.host == name { // it knows
		return false
	}
	told, ok := r.Named, true
	if !networks[r.network] {
		told, ok = r.Public()
	}
	if ok {
		u.Set = append(u.Set, told)
	}
	return ok
}

// carried are the networks that a host has groups in, with the lock held.
func (c *Controller) carried(name string) map[string]bool {
	out := map[string]bool{}
	for _, e := range c.idx.byHost[name] {
		out[networkKey(e.group.Ref.Subscription, e.group.Spec.NetworkName())] = true
	}
	return out
}

// nameAll tells a host that connects all names that are its business.
func (c *Controller) nameAll(name string, link host.Link) {
	if !c.cfg.Network.IsValid() {
		return
	}
	n := c.naming
	n.mu.Lock()
	defer n.mu.Unlock()
	c.mu.RLock()
	networks := c.carried(name)
	u := host.Names{Full: true}
	for _, r := range c.idx.named {
		r.tell(&u, name, networks)
	}
	c.mu.RUnlock()
	n.told[link] = networks
	sendNames(link, u)
}

// nameMore tells a host of the networks that it has become part of.
func (c *Controller) nameMore(name string) {
	n := c.naming
	n.mu.Lock()
	defer n.mu.Unlock()
	c.mu.RLock()
	link := c.links[name]
	networks := n.told[link]
	var u host.Names
	if link != nil && networks != nil {
		for network := range c.carried(name) {
			if networks[network] {
				continue
			}
			networks[network] = true
			for _, r := range c.idx.namedIn[network] {
				r.tell(&u, name, networks)
			}
		}
	}
	c.mu.RUnlock()
	if len(u.Set) > 0 {
		sendNames(link, u)
	}
}

// sendNames sends what may be long in parts.
func sendNames(link host.Link, u host.Names) {
	rest := u
	for len(rest.Set) > namesBatch {
		link.Name(host.Names{Full: rest.Full, More: true, Set: rest.Set[:namesBatch]})
		rest = host.Names{Set: rest.Set[namesBatch:]}
	}
	link.Name(rest)
}
