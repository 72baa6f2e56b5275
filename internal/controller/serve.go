package controller

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/service"
)

const (
	// serveBatch is how many service addresses go to the hosts at once.
	serveBatch = 1000
	// unknownPatience is how long after a start the endpoints of a service address may stay unknown. Until then hosts
	// go on with what they have; afterwards groups that nobody has told of do not count.
	unknownPatience = 10 * time.Second
)

// serveLoop tells the hosts where service addresses lead, as soon as it changes.
func (c *Controller) serveLoop(ctx context.Context) {
	late := time.AfterFunc(unknownPatience, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.settled = true
		for uid := range c.idx.addresses.byUID {
			c.moved.add(uid)
		}
	})
	defer late.Stop()
	for c.moved.wait(ctx) {
		for uids := c.moved.take(serveBatch); len(uids) > 0; uids = c.moved.take(serveBatch) {
			c.serve(uids)
		}
	}
}

// serve finds the endpoints of service addresses and tells every host of those that have changed.
func (c *Controller) serve(uids []string) {
	c.serving.Lock()
	defer c.serving.Unlock()
	var u service.Update
	c.mu.Lock()
	for _, uid := range uids {
		e := c.idx.addresses.byUID[uid]
		if e == nil {
			u.Gone = append(u.Gone, uid)
			continue
		}
		if route, changed := c.reroute(e); changed {
			u.Set = append(u.Set, *route)
		}
	}
	links := slices.Collect(maps.Values(c.links))
	c.mu.Unlock()
	if len(u.Set)+len(u.Gone) == 0 {
		return
	}
	for _, l := range links {
		l.Serve(u)
	}
}

// serveAll tells one host of all service addresses.
func (c *Controller) serveAll(link host.Link) {
	c.serving.Lock()
	defer c.serving.Unlock()
	u := service.Update{Full: true}
	c.mu.Lock()
	for _, e := range c.idx.addresses.byUID {
		route, _ := c.reroute(e)
		u.Set = append(u.Set, *route)
	}
	c.mu.Unlock()
	link.Serve(u)
}

// reroute resolves a service address anew, with the lock held for writing; watchers hear when its status changes.
func (c *Controller) reroute(e *addressEntry) (route *service.Route, changed bool) {
	route, status := c.resolve(e)
	if status != e.status {
		e.status = status
		c.addressFeed.publish(Modified, e.view())
	}
	if e.route != nil && reflect.DeepEqual(e.route, route) {
		return route, false
	}
	x := c.idx.addresses
	x.weigh(e, -1)
	e.route = route
	x.weigh(e, 1)
	return route, true
}

// resolve finds where a service address leads now, with the lock held.
func (c *Controller) resolve(e *addressEntry) (*service.Route, service.Status) {
	a := e.address
	s := &a.Spec
	r := &service.Route{UID: a.UID, Subscription: a.Ref.Subscription, Network: s.Network, IP: a.IP, Names: arm.AddressNames(a),
		Sticky: s.Affinity == service.AffinityClientIP, Hosts: s.HostEndpoints, FromHosts: s.FromHosts}
	var ips []netip.Addr
	if len(s.Selector) > 0 {
		ips, r.Pending = c.selected(a)
	}
	seen := map[netip.Addr]bool{}
	for _, p := range s.Ports {
		port := service.RoutePort{Number: p.Number, Protocol: p.Protocol, Targets: s.Targets(p)}
		for _, ip := range ips {
			port.Targets = append(port.Targets, netip.AddrPortFrom(ip, uint16(p.TargetPort())))
		}
		slices.SortFunc(port.Targets, netip.AddrPort.Compare)
		port.Targets = slices.Compact(port.Targets)
		for _, t := range port.Targets {
			seen[t.Addr()] = true
		}
		r.Ports = append(r.Ports, port)
	}
	status := service.Status{Ready: len(seen)}
	status.Reason = c.limitRoute(e, r)
	return r, status
}

// limitRoute cuts a route that needs more than its subscription has left; it says so.
func (c *Controller) limitRoute(e *addressEntry, r *service.Route) string {
	reason := ""
	most := service.MostEndpoints(len(r.Ports))
	for i, p := range r.Ports {
		if len(p.Targets) > most {
			r.Ports[i].Targets = p.Targets[:most]
			reason = fmt.Sprintf("A service address with %d ports leads to %d endpoints at most.", len(r.Ports), most)
		}
	}
	others := c.idx.addresses.weight[strings.ToLower(r.Subscription)]
	if e.route != nil {
		others -= e.route.Weight()
	}
	if others+r.Weight() <= service.MaxBuckets {
		return reason
	}
	for i, p := range r.Ports {
		r.Ports[i].Targets = p.Targets[:min(1, len(p.Targets))]
	}
	return "The service addresses of the subscription have too many endpoints and ports together: this one leads to one endpoint per port."
}

// selected are the addresses of the groups that a selector finds; pending says that some are not known yet.
func (c *Controller) selected(a *service.Address) (ips []netip.Addr, pending bool) {
	for _, t := range c.idx.addresses.groups[selectorOf(a)] {
		if !selects(a.Spec.Selector, t.labels) {
			continue
		}
		pending = pending || t.unknown && !c.settled
		if t.ready || t.up && a.Spec.PublishNotReady {
			ips = append(ips, t.ip)
		}
	}
	return ips, pending
}

func selects(selector, labels map[string]string) bool {
	for name, value := range selector {
		if got, ok := labels[name]; !ok || got != value {
			return false
		}
	}
	return true
}

func sortedNames(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
