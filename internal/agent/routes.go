package agent

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"spillway.dev/spillway/internal/dns"
	"spillway.dev/spillway/internal/service"
)

// routes carries the service addresses of the platform into this host's DNS, and forgets those that are gone.
type routes struct {
	a    *Agent
	wake chan struct{}

	mu    sync.Mutex // guards what follows
	wish  map[string]service.Route
	dirty map[string]bool // uids to look at
}

func newRoutes(a *Agent) *routes {
	return &routes{a: a, wake: make(chan struct{}, 1), wish: map[string]service.Route{}, dirty: map[string]bool{}}
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
		r.mu.Lock()
		dirty := r.dirty
		r.dirty = map[string]bool{}
		set := map[string]service.Route{}
		for uid := range dirty {
			if route, ok := r.wish[uid]; ok {
				set[uid] = route
			}
		}
		r.mu.Unlock()
		if err := r.apply(set, dirty); err != nil {
			r.a.cfg.Log.Error("carry out service addresses", "error", err)
			r.mu.Lock()
			for uid := range dirty {
				r.dirty[uid] = true
			}
			r.mu.Unlock()
			sleep(ctx, retryRoutes)
			r.nudge()
		}
	}
}

// apply brings the host in line with the wishes of the dirty uids; those that set lacks are gone.
func (r *routes) apply(set map[string]service.Route, dirty map[string]bool) error {
	for uid := range dirty {
		route, ok := set[uid]
		if !ok {
			r.a.cfg.Names.Remove(routeOwner(uid))
			continue
		}
		number, err := r.a.networks.of(route.Subscription, route.Network)
		if err != nil {
			return err
		}
		r.a.cfg.Names.Set(routeOwner(uid), namesOf(route, number))
	}
	return nil
}

// routeOwner is whose names a service address's are in the DNS table. Groups' uids hold no slash.
func routeOwner(uid string) string { return "service/" + uid }

func namesOf(route service.Route, network uint32) dns.Owner {
	o := dns.Owner{Addr: netip.Addr{}, Network: network}
	for _, n := range route.Names {
		o.Names = append(o.Names, dns.Name{Name: n, Addr: route.IP})
	}
	return o
}
