// Package service is the vocabulary of service addresses: one stable address in a virtual network in front of endpoints
// that come and go.
//
// It imports only the standard library and group, and does no IO. Start reading at Address, which is what a caller asked
// for; Route is what becomes of it on a host.
package service

import (
	"net/netip"
	"time"

	"spillway.dev/spillway/internal/group"
)

// Address is a service address. The API is its only writer.
type Address struct {
	Ref        group.Ref         `json:"ref"`
	UID        string            `json:"uid"`        // one per creation
	Generation int64             `json:"generation"` // grows with each write
	Location   string            `json:"location"`
	Tags       map[string]string `json:"tags,omitempty"`
	Created    time.Time         `json:"created"`
	IP         netip.Addr        `json:"ip"` // as asked for, or allocated; never changes
	Spec       Spec              `json:"spec"`
}

// Spec is what the owner of a service address asked for. With an empty Selector, Endpoints are what is behind it, also
// when there are none.
type Spec struct {
	Network   string            `json:"network"`             // never ""
	Names     []string          `json:"names,omitempty"`     // in front of LOCATION.spillway.internal
	Ports     []Port            `json:"ports"`               //
	Selector  map[string]string `json:"selector,omitempty"`  // labels of groups of the same network and subscription
	Endpoints []Endpoint        `json:"endpoints,omitempty"` // in the order of the request
	Affinity  Affinity          `json:"affinity"`
	// AffinitySeconds is kept and shown. Clients are spread by a hash of their address, which no clock ends.
	AffinitySeconds int  `json:"affinitySeconds,omitempty"`
	PublishNotReady bool `json:"publishNotReady,omitempty"` // groups that are not ready count too
	// HostEndpoints lets connections to listed endpoints enter the hosts themselves, whose ports are closed to groups.
	HostEndpoints bool `json:"hostEndpoints,omitempty"`
	// FromHosts lets the hosts themselves reach it, and groups in their network: their own traffic to it goes there.
	FromHosts bool `json:"fromHosts,omitempty"`
}

// Affinity says whether a client keeps its endpoint from one connection to the next.
type Affinity string

// Affinities.
const (
	AffinityNone     Affinity = "None"
	AffinityClientIP Affinity = "ClientIP"
)

// Port is a port of a service address.
type Port struct {
	Name     string `json:"name,omitempty"`
	Number   int    `json:"number"`
	Protocol string `json:"protocol"`         // TCP or UDP
	Target   int    `json:"target,omitempty"` // of the endpoints; 0 = Number
}

// Endpoint is one listed place behind a service address.
type Endpoint struct {
	IP    netip.Addr     `json:"ip"`
	Ports map[string]int `json:"ports,omitempty"` // by name of the service's port; nil: every port, at its Target
}

// Limits.
const (
	MaxNames     = 16
	MaxPorts     = 32
	MaxEndpoints = 1000 // per address: with them the largest spread still gives each at least four buckets
	MaxTargets   = 4096 // per address, endpoints times ports: it is sorted anew at each change
	// MaxPerSubscription is how many service addresses a subscription has: twice what has been measured.
	MaxPerSubscription = 20_000
	// MaxBuckets bounds the kernel memory of all service addresses of a subscription on a host: entries of the map that
	// leads to endpoints, of about 150 bytes each. Addresses beyond it lead to one endpoint per port.
	MaxBuckets = 1_000_000
)

// MostEndpoints is how many endpoints an address with so many ports can have.
func MostEndpoints(ports int) int { return min(MaxEndpoints, MaxTargets/max(ports, 1)) }

// DefaultAffinitySeconds is Kubernetes' default.
const DefaultAffinitySeconds = 10_800

// TargetPort is the port of endpoints that name none.
func (p Port) TargetPort() int {
	if p.Target == 0 {
		return p.Number
	}
	return p.Target
}

// Targets are the endpoints' addresses and ports behind one port.
func (s *Spec) Targets(p Port) []netip.AddrPort {
	var out []netip.AddrPort
	for _, e := range s.Endpoints {
		number := p.TargetPort()
		if e.Ports != nil {
			number = e.Ports[p.Name]
		}
		if number != 0 {
			out = append(out, netip.AddrPortFrom(e.IP, uint16(number)))
		}
	}
	return out
}

// exact is the number of endpoints up to which chance has one bucket for each of them.
const exact = 16

// classes are the larger numbers of buckets, and all of those that a hash chooses among: with few numbers that divide
// each other, a client keeps its endpoint when the number changes.
var classes = [...]int{16, 64, 256, 1024, 4096}

// Classes lists the numbers of buckets that Buckets gives.
func Classes(sticky bool) []int {
	if sticky {
		return append([]int{1}, classes[:]...)
	}
	var out []int
	for n := 1; n < exact; n++ {
		out = append(out, n)
	}
	return append(out, classes[:]...)
}

// Buckets is the number of buckets for a number of endpoints: as many as endpoints while they are few and chance
// chooses, else at least four each, so that shares differ by a quarter at most.
func Buckets(endpoints int, sticky bool) int {
	if endpoints <= 1 || endpoints <= exact && !sticky {
		return endpoints
	}
	for _, n := range classes {
		if n >= 4*endpoints {
			return n
		}
	}
	return classes[len(classes)-1]
}

// Status is what the platform knows of a service address now. The control plane makes it; it is not stored.
type Status struct {
	Ready  int    // endpoints that take connections
	Reason string // why there are fewer than there could be; "" = there are not
}

// Route is a service address with its endpoints found, as hosts carry it out.
type Route struct {
	UID          string
	Subscription string
	Network      string
	IP           netip.Addr
	Names        []string // in full
	Ports        []RoutePort
	Sticky       bool // a client keeps its endpoint
	Hosts        bool // endpoints on hosts are let in
	FromHosts    bool // hosts reach it, too
	// Pending: the endpoints are not known yet, as after a restart. What a host has of the address stays as it is.
	Pending bool
}

// RoutePort is one port of a route. Without targets it refuses connections.
type RoutePort struct {
	Number   int
	Protocol string
	Targets  []netip.AddrPort // sorted, each once
}

// Update tells a host of routes.
type Update struct {
	Full bool // Set are all routes that there are: others go
	Set  []Route
	Gone []string // uids
}

// Weight is the number of entries that a route needs on a host.
func (r *Route) Weight() int {
	n := 0
	for _, p := range r.Ports {
		n += Buckets(len(p.Targets), r.Sticky)
	}
	return n
}
