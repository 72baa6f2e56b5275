package controller

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"strings"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/service"
)

// addressEntry is a service address in memory. What it points to is never changed, only replaced.
type addressEntry struct {
	address  *service.Address
	status   service.Status
	revision int64
	route    *service.Route // as the hosts were told last; nil: not yet
}

func (e *addressEntry) view() arm.AddressView {
	return arm.AddressView{Address: e.address, Status: e.status}
}

// target is what of a group matters to service addresses.
type target struct {
	network string // key of the network
	labels  map[string]string
	ip      netip.Addr // invalid: none
	up      bool       // has begun to run and shall go on
	ready   bool
	unknown bool // it ran when this process began, and nobody has said yet how it is
}

func (t *target) equal(o *target) bool {
	return t.network == o.network && t.ip == o.ip && t.up == o.up && t.ready == o.ready && t.unknown == o.unknown && maps.Equal(t.labels, o.labels)
}

// addressIndex is all that the controller knows of service addresses, and of groups as their endpoints. The
// controller's lock guards it.
type addressIndex struct {
	all   map[string]*addressEntry // by arm.Key
	byUID map[string]*addressEntry
	count map[string]int // by subscription
	// inGroup counts by resource group.
	inGroup map[string]int
	// weight is what the routes of a subscription need on a host.
	weight map[string]int
	taken  map[string]string // network and IP → uid
	// claimed are IP addresses of records that are being written.
	claimed map[string]bool
	cursor  uint32 // where the search for a free address goes on
	// selectors finds service addresses by the network and one label of their selector, groups finds groups by network
	// and each of their labels.
	selectors map[string]map[string]*addressEntry
	groups    map[string]map[string]*target
	targets   map[string]*target // by uid of the group
}

func newAddressIndex() *addressIndex {
	return &addressIndex{
		all: map[string]*addressEntry{}, byUID: map[string]*addressEntry{}, count: map[string]int{}, inGroup: map[string]int{}, weight: map[string]int{},
		taken: map[string]string{}, claimed: map[string]bool{}, selectors: map[string]map[string]*addressEntry{},
		groups: map[string]map[string]*target{}, targets: map[string]*target{},
	}
}

func networkKey(subscription, network string) string {
	return strings.ToLower(subscription) + "/" + network
}

func ipOf(a *service.Address, ip netip.Addr) string {
	return networkKey(a.Ref.Subscription, a.Spec.Network) + "/" + ip.String()
}

func labelOf(network, name, value string) string { return network + "\x00" + name + "\x00" + value }

// claim takes an IP address for a record that is about to be written.
func (x *addressIndex) claim(a *service.Address, ip netip.Addr) bool {
	key := ipOf(a, ip)
	if x.claimed[key] || x.taken[key] != "" {
		return false
	}
	x.claimed[key] = true
	return true
}

// next walks round a range. Its first and last address are left out, as people expect.
func (x *addressIndex) next(r netip.Prefix) netip.Addr {
	size := uint32(1) << (32 - r.Bits())
	if size > 2 {
		x.cursor = x.cursor%(size-2) + 1
	} else {
		x.cursor = (x.cursor + 1) % size
	}
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(r.Masked().Addr().AsSlice())+x.cursor)
	return netip.AddrFrom4(b)
}

// selectorOf is where a service address with a selector is found: by its first label.
func selectorOf(a *service.Address) string {
	for _, name := range sortedNames(a.Spec.Selector) {
		return labelOf(networkKey(a.Ref.Subscription, a.Spec.Network), name, a.Spec.Selector[name])
	}
	return ""
}

// takeAddress takes over a record; older ones than the known are ignored.
func (c *Controller) takeAddress(a *service.Address, revision int64) {
	key := arm.Key(a.Ref)
	c.mu.Lock()
	defer c.mu.Unlock()
	x := c.idx.addresses
	old := x.all[key]
	if old != nil && old.revision >= revision || revision <= c.idx.followed || c.idx.buried[addressKey(a.Ref)] > revision {
		return
	}
	e := &addressEntry{address: a, revision: revision}
	kind := Added
	if old != nil {
		if old.address.UID == a.UID {
			kind, e.route = Modified, old.route
			x.remove(key, old)
		} else { // deleted and made again, seen as one
			c.forgetAddress(key, old)
		}
	}
	x.add(key, e)
	_, e.status = c.resolve(e)
	c.addressFeed.publish(kind, e.view())
	c.moved.add(a.UID)
}

// dropAddress forgets a service address.
func (c *Controller) dropAddress(key string, revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.idx.addresses.all[key]; e != nil && e.revision < revision {
		c.forgetAddress(key, e)
	}
}

// forgetAddress forgets a service address, with the lock held.
func (c *Controller) forgetAddress(key string, e *addressEntry) {
	c.idx.addresses.remove(key, e)
	c.addressFeed.publish(Deleted, e.view())
	c.moved.add(e.address.UID)
}

func (x *addressIndex) add(key string, e *addressEntry) {
	a := e.address
	x.all[key], x.byUID[a.UID], x.taken[ipOf(a, a.IP)] = e, e, a.UID
	x.count[strings.ToLower(a.Ref.Subscription)]++
	x.inGroup[rgKey(a.Ref.Subscription, a.Ref.ResourceGroup)]++
	if s := selectorOf(a); s != "" {
		fileIn(x.selectors, s, a.UID, e)
	}
	x.weigh(e, 1)
}

func (x *addressIndex) remove(key string, e *addressEntry) {
	a := e.address
	delete(x.all, key)
	delete(x.byUID, a.UID)
	delete(x.taken, ipOf(a, a.IP))
	x.count[strings.ToLower(a.Ref.Subscription)]--
	if scope := rgKey(a.Ref.Subscription, a.Ref.ResourceGroup); x.inGroup[scope] == 1 {
		delete(x.inGroup, scope)
	} else {
		x.inGroup[scope]--
	}
	if s := selectorOf(a); s != "" {
		takeFrom(x.selectors, s, a.UID)
	}
	x.weigh(e, -1)
}

// weigh adds what an entry's route needs on a host, or takes it off.
func (x *addressIndex) weigh(e *addressEntry, sign int) {
	if e.route != nil {
		x.weight[strings.ToLower(e.address.Ref.Subscription)] += sign * e.route.Weight()
	}
}

func fileIn[V any](m map[string]map[string]V, key, inner string, v V) {
	if m[key] == nil {
		m[key] = map[string]V{}
	}
	m[key][inner] = v
}

func takeFrom[V any](m map[string]map[string]V, key, inner string) {
	if delete(m[key], inner); len(m[key]) == 0 {
		delete(m, key)
	}
}

// followTarget notes what a group means to service addresses, and wakes those that it concerns. The lock is held.
func (c *Controller) followTarget(e *entry, gone bool) {
	c.followName(e, gone)
	x := c.idx.addresses
	uid := e.group.UID
	old := x.targets[uid]
	var now *target
	if !gone {
		now = c.targetOf(e)
	}
	if old == nil && now == nil || old != nil && now != nil && old.equal(now) {
		return
	}
	for _, t := range []*target{old, now} {
		if t == nil {
			continue
		}
		for name, value := range t.labels {
			for _, a := range x.selectors[labelOf(t.network, name, value)] {
				c.moved.add(a.address.UID)
			}
		}
	}
	if old != nil {
		for name, value := range old.labels {
			takeFrom(x.groups, labelOf(old.network, name, value), uid)
		}
		delete(x.targets, uid)
	}
	if now != nil && len(now.labels) > 0 { // others can never be selected
		for name, value := range now.labels {
			fileIn(x.groups, labelOf(now.network, name, value), uid, now)
		}
		x.targets[uid] = now
	}
}

// followTargets looks at all groups of a host again, with the lock held.
func (c *Controller) followTargets(name string) {
	for _, e := range c.idx.byHost[name] {
		c.followTarget(e, false)
	}
}

func (c *Controller) targetOf(e *entry) *target {
	g, s := e.group, e.status
	t := &target{network: networkKey(g.Ref.Subscription, g.Spec.NetworkName()), labels: g.Spec.Labels}
	if g.Desired != group.Run || g.Spec.HostNetwork { // the machine's address is nobody's in a network
		return t
	}
	if s == nil {
		t.unknown = e.revision <= c.loaded || c.feed == nil
		return t
	}
	if s.Epoch < g.Epoch || s.Gone || s.State.Ended() {
		return t
	}
	t.ip, _ = netip.ParseAddr(s.IP)
	t.up = t.ip.IsValid() && !c.isLost(g.Host)
	t.ready = t.up && s.Ready()
	return t
}
