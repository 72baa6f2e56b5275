package controller

import (
	"encoding/json"
	"fmt"
	"strings"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/place"
	"spillway.dev/spillway/internal/store"
)

// entry is a group in memory. What it points to is never changed, only replaced.
type entry struct {
	group    *group.Group
	status   *group.Status // nil: no report yet
	revision int64         // of the stored record
}

// ResourceGroup is a stored resource group.
type ResourceGroup struct {
	Subscription string            `json:"subscription"`
	Name         string            `json:"name"`
	Location     string            `json:"location"`
	Tags         map[string]string `json:"tags,omitempty"`
	Deleting     bool              `json:"deleting,omitempty"`

	revision int64
}

// index is all that the controller knows, by every way it is asked for. The controller's lock guards it.
type index struct {
	groups    map[string]*entry                 // by arm.Key
	byUID     map[string]*entry                 //
	byRG      map[string]map[string]*entry      // by subscription/resource group, then arm.Key
	byHost    map[string]map[string]*entry      // by name, then uid
	rgs       map[string]*ResourceGroup         // by subscription/name
	hosts     map[string]*hostRecord            // by name: hosts that have joined, and what is wanted of this machine's own
	fleet     *place.View                       // what the hosts have, and what of it groups hold
	queue     *place.Queue                      // the groups that wait for room
	claims    map[string]*claim                 // by uid: the groups that wait for Spot groups to leave
	evicted   map[string]bool                   // uids of Spot groups that have stopped for others and are to wait again
	reserved  map[string]chan struct{}          // by uid: a write is under way, and the fleet holds what it will need; closed at its end
	networks  map[string]uint32                 // by networkKey: VXLAN ids
	named     map[string]*namedGroup            // by uid: ready groups with their names
	namedIn   map[string]map[string]*namedGroup // by networkKey, then uid
	addresses *addressIndex
	vnets     *vnetIndex
	// buried holds the revision of own deletions, by store key, until the store's watch has told of them: older
	// records of the same key that it still has to tell must not come to life again.
	buried   map[string]int64
	followed int64 // revision up to which the store's watch has told everything
}

func newIndex(policies place.Policies) index {
	fleet := place.NewView(policies)
	return index{
		queue: place.NewQueue(fleet), claims: map[string]*claim{}, evicted: map[string]bool{},
		groups: map[string]*entry{}, byUID: map[string]*entry{}, byRG: map[string]map[string]*entry{}, byHost: map[string]map[string]*entry{},
		networks: map[string]uint32{}, named: map[string]*namedGroup{}, namedIn: map[string]map[string]*namedGroup{},
		rgs: map[string]*ResourceGroup{}, hosts: map[string]*hostRecord{}, fleet: fleet, reserved: map[string]chan struct{}{},
		buried: map[string]int64{}, addresses: newAddressIndex(), vnets: newVnetIndex(),
	}
}

func rgKey(subscription, name string) string {
	return strings.ToLower(subscription + "/" + name)
}

// apply takes over a change of the store. It is idempotent: older revisions are ignored.
func (c *Controller) apply(ch store.Change) error {
	switch key := ch.Key; {
	case strings.HasPrefix(key, store.Groups):
		if ch.Deleted {
			c.dropGroup(strings.TrimPrefix(key, store.Groups), ch.Revision)
			return nil
		}
		var g group.Group
		if err := json.Unmarshal(ch.Value, &g); err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
		if c.putGroup(&g, ch.Revision) && c.feed != nil {
			c.assign(&g)
		}
	case strings.HasPrefix(key, store.Addresses):
		return c.applyAddress(ch)
	case strings.HasPrefix(key, store.Networks):
		return c.applyNetwork(ch)
	case strings.HasPrefix(key, store.ResourceGroups):
		return c.applyResourceGroup(ch)
	case strings.HasPrefix(key, store.Statuses):
		if ch.Deleted || c.feed != nil { // only after a restart is the store the newer source
			return nil
		}
		var s group.Status
		if err := json.Unmarshal(ch.Value, &s); err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if e := c.idx.byUID[s.UID]; e != nil {
			e.status = &s
			c.account(e)
			c.followTarget(e, false)
		}
	case strings.HasPrefix(key, store.Hosts):
		return c.applyHost(ch)
	case strings.HasPrefix(key, store.NetworkIDs):
		return c.applyNetworkID(ch)
	}
	return nil
}

// bury applies an own deletion.
func (c *Controller) bury(key string, revision int64) error {
	c.mu.Lock()
	if c.idx.followed < revision {
		c.idx.buried[key] = revision
	}
	c.mu.Unlock()
	return c.apply(store.Change{Entry: store.Entry{Key: key, Revision: revision}, Deleted: true, Revision: revision})
}

// seen notes how far the store's watch has come: graves older than that need no stone.
func (c *Controller) seen(batch []store.Change) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, ch := range batch {
		c.idx.followed = ch.Revision
		if revision, ok := c.idx.buried[ch.Key]; ok && ch.Revision >= revision {
			delete(c.idx.buried, ch.Key)
		}
	}
}

func (c *Controller) applyResourceGroup(ch store.Change) error {
	key := strings.TrimPrefix(ch.Key, store.ResourceGroups)
	var rg ResourceGroup
	if !ch.Deleted {
		if err := json.Unmarshal(ch.Value, &rg); err != nil {
			return fmt.Errorf("read %s: %w", ch.Key, err)
		}
	}
	rg.revision = ch.Revision
	c.mu.Lock()
	defer c.mu.Unlock()
	old := c.idx.rgs[key]
	switch {
	case old != nil && old.revision >= ch.Revision, ch.Revision <= c.idx.followed, c.idx.buried[ch.Key] > ch.Revision:
	case ch.Deleted:
		delete(c.idx.rgs, key)
	default:
		c.idx.rgs[key] = &rg
	}
	return nil
}

// putGroup takes over a record; watchers hear of it. It is false for a record that is known already.
func (c *Controller) putGroup(g *group.Group, revision int64) bool {
	key := arm.Key(g.Ref)
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.idx.groups[key]
	if e != nil && e.revision >= revision || revision <= c.idx.followed || c.idx.buried[groupKey(g)] > revision {
		return false // the watch, or this process, was there before
	}
	kind := Modified
	if e != nil && e.group.UID != g.UID { // deleted and made again, seen as one
		c.remove(key, e)
		e = nil
	}
	if e == nil {
		kind = Added
		e = &entry{}
		c.idx.groups[key] = e
		c.idx.byUID[g.UID] = e
		scope := rgKey(g.Ref.Subscription, g.Ref.ResourceGroup)
		if c.idx.byRG[scope] == nil {
			c.idx.byRG[scope] = map[string]*entry{}
		}
		c.idx.byRG[scope][key] = e
	}
	old := e.group
	e.group, e.revision = g, revision
	c.idx.vnets.follow(old, g)
	c.rehouse(e, old)
	c.fileHost(e, old)
	if a := c.absent[g.Host]; a != nil {
		a.empty = false // what is wanted of it has changed
	}
	c.account(e)
	c.followTarget(e, false)
	c.feed.publish(kind, e.view())
	return true
}

// fileHost files a group under its host, and sees to what that host needs for it, with the lock held.
func (c *Controller) fileHost(e *entry, old *group.Group) {
	g := e.group
	if old != nil && old.Host != g.Host {
		takeFrom(c.idx.byHost, old.Host, g.UID)
	}
	if g.Host == "" {
		return
	}
	fileIn(c.idx.byHost, g.Host, g.UID, e)
	c.wantBlocks(g.Host)
	if c.cfg.Network.IsValid() {
		c.naming.looked.add(g.Host)
	}
}

// dropGroup forgets a group.
func (c *Controller) dropGroup(key string, revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.idx.groups[key]; e != nil && e.revision < revision {
		c.remove(key, e)
	}
}

// remove forgets a group, with the lock held.
func (c *Controller) remove(key string, e *entry) {
	if c.idx.reserved[e.group.UID] == nil {
		c.idx.fleet.Release(e.group.UID)
	}
	c.idx.queue.Leave(e.group.UID)
	delete(c.idx.claims, e.group.UID)
	delete(c.idx.evicted, e.group.UID)
	c.nudge()
	delete(c.idx.groups, key)
	delete(c.idx.byUID, e.group.UID)
	takeFrom(c.idx.byHost, e.group.Host, e.group.UID)
	scope := rgKey(e.group.Ref.Subscription, e.group.Ref.ResourceGroup)
	delete(c.idx.byRG[scope], key)
	if len(c.idx.byRG[scope]) == 0 {
		delete(c.idx.byRG, scope)
	}
	c.idx.vnets.follow(e.group, nil)
	c.followTarget(e, true)
	c.feed.publish(Deleted, e.view())
}

// settled says whether a group has come to rest and holds nothing: it ended by itself, or what was asked to stop has
// stopped. A report answers the newest wish when it tells of its epoch or of its generation.
func (e *entry) settled() bool {
	s := e.status
	return s != nil && (s.Epoch >= e.group.Epoch || s.Generation >= e.group.Generation) && (s.State.Ended() || s.Gone)
}

// holds says whether a group has room on its host: while it runs or may run, not when it has ended.
func (e *entry) holds() bool { return !e.settled() && e.group.Host != "" }

func (x *index) onHost(name string) []*group.Group {
	var out []*group.Group
	for _, e := range x.byHost[name] {
		out = append(out, e.group)
	}
	return out
}
