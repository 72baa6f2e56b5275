package agent

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"spillway.dev/spillway/internal/dns"
	"spillway.dev/spillway/internal/network"
	"spillway.dev/spillway/internal/service"
)

// routes carries the platform's service addresses into this host's rules and DNS. What a crash leaves is put right by
// the first update of a connection, which is full.
type routes struct {
	a    *Agent
	wake chan struct{}

	mu    sync.Mutex // guards what follows
	wish  map[string]service.Route
	dirty map[string]bool // uids to look at
	full  bool            // everything that is not wished for has to go

	// Only the loop touches what it has carried out: by uid, and who has a service address's key.
	done  map[string][]network.ServiceKey
	owner map[network.ServiceKey]string
}

func newRoutes(a *Agent) *routes {
	return &routes{a: a, wake: make(chan struct{}, 1), wish: map[string]service.Route{}, dirty: map[string]bool{},
		done: map[string][]network.ServiceKey{}, owner: map[network.ServiceKey]string{}}
}

// Serve implements host.Link.
func (a *Agent) Serve(u service.Update) { a.routes.take(u) }

func (r *routes) take(u service.Update) {
	r.mu.Lock()
	if u.Full {
		for uid := range r.wish {
			r.dirty[uid] = true
		}
		clear(r.wish)
		r.full = true
	}
	for _, uid := range u.Gone {
		delete(r.wish, uid)
		r.dirty[uid] = true
	}
	for _, route := range u.Set {
		r.wish[route.UID] = route
		r.dirty[route.UID] = true
	}
	r.mu.Unlock()
	r.nudge()
}

func (r *routes) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// retryRoutes is the pause after a change that did not succeed.
const retryRoutes = time.Second

// run carries wishes out until ctx ends.
func (r *routes) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		work := r.takeWork()
		if err := r.carryOut(ctx, work); err != nil {
			r.a.cfg.Log.Error("carry out service addresses", "error", err)
			r.giveBack(work)
			sleep(ctx, retryRoutes)
			r.nudge()
		}
	}
}

// work is what has changed: the wishes among it, and uids that nobody wishes for any more.
type work struct {
	full bool
	set  []service.Route
	gone []string
}

func (r *routes) takeWork() work {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := work{full: r.full}
	for uid := range r.dirty {
		if route, ok := r.wish[uid]; ok {
			w.set = append(w.set, route)
		} else {
			w.gone = append(w.gone, uid)
		}
	}
	clear(r.dirty)
	r.full = false
	return w
}

func (r *routes) giveBack(w work) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.full = r.full || w.full
	for _, route := range w.set {
		r.dirty[route.UID] = true
	}
	for _, uid := range w.gone {
		r.dirty[uid] = true
	}
	if r.full { // all of them, as takeWork has to give
		for uid := range r.wish {
			r.dirty[uid] = true
		}
	}
}

// carryOut brings rules and names in line with what has changed.
func (r *routes) carryOut(ctx context.Context, w work) error {
	numbers := make(map[string]uint32, len(w.set))
	for _, route := range w.set {
		number, err := r.a.networks.of(route.Subscription, route.Network)
		if err != nil {
			return err
		}
		numbers[route.UID] = number
	}
	// gofail: var routesBefore struct{}
	if err := r.rules(ctx, w, numbers); err != nil {
		return err
	}
	// gofail: var routesRuled struct{}
	for _, uid := range w.gone {
		r.a.cfg.Names.Remove(routeOwner(uid))
	}
	for _, route := range w.set {
		r.a.cfg.Names.Set(routeOwner(route.UID), namesOf(route, numbers[route.UID]))
	}
	if w.full {
		r.a.settle(routeKind)
	}
	return nil
}

func (r *routes) rules(ctx context.Context, w work, numbers map[string]uint32) error {
	var set []network.Service
	var keep, gone []network.ServiceKey
	lost := func(uid string, keys []network.ServiceKey) {
		for _, key := range keys {
			if r.owner[key] == uid { // else another service address has taken it over
				gone = append(gone, key)
			}
		}
	}
	next := map[string][]network.ServiceKey{}
	for _, route := range w.set {
		var now []network.ServiceKey
		for _, s := range servicesOf(route, numbers[route.UID]) {
			if err := r.a.cfg.Network.CheckService(s); err != nil { // the others shall not wait for it
				r.a.cfg.Log.Error("service address cannot be served", "uid", route.UID, "error", err)
				continue
			}
			r.owner[s.ServiceKey] = route.UID
			now = append(now, s.ServiceKey)
			if route.Pending {
				keep = append(keep, s.ServiceKey)
			} else {
				set = append(set, s)
			}
		}
		next[route.UID] = now
	}
	for uid, now := range next {
		lost(uid, slices.DeleteFunc(slices.Clone(r.done[uid]), func(k network.ServiceKey) bool { return slices.Contains(now, k) }))
	}
	for _, uid := range w.gone {
		lost(uid, r.done[uid])
	}
	var err error
	if w.full {
		err = r.a.cfg.Network.SyncServices(ctx, set, keep)
	} else {
		err = r.a.cfg.Network.SetServices(ctx, set, gone)
	}
	if err != nil {
		return err
	}
	for _, k := range gone {
		delete(r.owner, k)
	}
	for _, uid := range w.gone {
		delete(r.done, uid)
	}
	maps.Copy(r.done, next)
	return nil
}

// servicesOf is a route in its network and, where the machine itself may reach it, in the machine's own.
func servicesOf(route service.Route, number uint32) []network.Service {
	s := network.Service{ServiceKey: network.ServiceKey{Network: number, Addr: route.IP}, Ports: route.Ports, Sticky: route.Sticky, Hosts: route.Hosts}
	all := []network.Service{s}
	if route.FromHosts {
		s.Network, s.Hosts = network.Machine, false // what the machine sends to itself needs not be let in
		all = append(all, s)
	}
	return all
}

// routeKind is the prefix of the owners of service addresses' names in the DNS table. Groups' uids hold no slash.
const routeKind = "service/"

func routeOwner(uid string) string { return routeKind + uid }

func namesOf(route service.Route, number uint32) dns.Owner {
	o := dns.Owner{Network: number}
	for _, n := range route.Names {
		o.Names = append(o.Names, dns.Name{Name: n, Addr: route.IP})
	}
	return o
}
