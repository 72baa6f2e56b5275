package bench

import (
	"fmt"
	"math"
	"math/rand/v2"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/place"
)

// Hosts of the fleets that placement is measured on, and how full they are kept.
const (
	hostCores  = 16
	hostMemory = 64 << 30
	fleetZones = 3
	fleetLoad  = 0.6 // part of the fleet's cores that groups hold
	replicas   = 20  // groups of one service
)

// mix is what the measured groups ask for beside room, in parts of a hundred.
const mix = "60 % plain, 15 % one zone, 10 % a host label that a tenth of the hosts has, 10 % anti-affinity over hosts in services of 20, 5 % even spread over zones in services of 20"

// fleet is a view with hosts and groups, and groups that come and go.
type fleet struct {
	view   *place.View
	groups []*group.Group // a ring: those from next on hold room, longest first
	next   int
}

// newFleet fills hosts with groups. Everything comes from the seed.
func newFleet(hosts int, pack bool) *fleet {
	r := rand.New(rand.NewPCG(1, uint64(hosts)))
	f := &fleet{view: place.NewView(place.Policies{Default: place.Policy{Pack: pack}})}
	for i := range hosts {
		f.view.SetHost(host.Host{Name: fmt.Sprintf("host-%06d", i), Pool: "default", Zone: fmt.Sprint(i%fleetZones + 1), FaultDomain: fmt.Sprint(i / fleetZones % 8),
			Labels:    map[string]string{"row": fmt.Sprint(i % 10)},
			Isolation: []group.Isolation{group.IsolationShared},
			Capacity:  group.Resources{MilliCPU: hostCores * 1000, Memory: hostMemory}})
	}
	for held := int64(0); held < int64(float64(hosts)*hostCores*1000*fleetLoad); {
		g := mixed(r, len(f.groups))
		if f.view.Take(g).Host == "" {
			continue
		}
		f.groups = append(f.groups, g)
		held += g.Spec.Total().MilliCPU
	}
	return f
}

// turn ends the group that has run longest and starts it anew, as another would come in its stead.
func (f *fleet) turn() bool {
	return f.view.Take(f.leave()).Host != ""
}

// leave ends the group that has run longest.
func (f *fleet) leave() *group.Group {
	g := f.groups[f.next]
	f.view.Release(g.UID)
	if f.next++; f.next == len(f.groups) {
		f.next = 0
	}
	return g
}

// mixed makes the n-th group: of mixed size, and of a kind by the mix.
func mixed(r *rand.Rand, n int) *group.Group {
	cpu, memory := heavyTailed(r)
	g := &group.Group{UID: fmt.Sprintf("%024x", n), Ref: group.Ref{Subscription: "bench", Name: fmt.Sprint("g", n)},
		Spec: group.Spec{Containers: []group.Container{{Name: "c", Image: "app", Requests: group.Resources{MilliCPU: cpu, Memory: memory}}}}}
	s := &g.Spec
	switch kind := r.IntN(100); {
	case kind < 60:
	case kind < 75:
		g.Zones = []string{fmt.Sprint(r.IntN(fleetZones) + 1)}
	case kind < 85:
		s.Placement = &group.Placement{Require: []group.Expression{{Key: "row", Operator: group.In, Values: []string{fmt.Sprint(r.IntN(10))}}}}
	case kind < 95:
		match := replicaOf(s, "apart", n)
		s.Placement = &group.Placement{AntiAffinity: []group.Affinity{{Match: match, Topology: group.TopologyHost}}}
	default:
		match := replicaOf(s, "even", n)
		s.Placement = &group.Placement{Spread: []group.Spread{{Match: match, Topology: group.TopologyZone, MaxSkew: 1}}}
	}
	return g
}

// replicaOf makes a group one of a service's replicas and gives the conditions that find them.
func replicaOf(s *group.Spec, kind string, n int) []group.Expression {
	share := 10
	if kind == "even" {
		share = 5
	}
	name := fmt.Sprint(kind, n*share/100/replicas)
	s.Labels = map[string]string{"app": name}
	return []group.Expression{{Key: "app", Operator: group.In, Values: []string{name}}}
}

// heavyTailed draws a size as public traces of clusters have them: cores are lognormal with half of the groups below
// half a core and a tail of many cores; memory for each core is lognormal around what a host has for each.
func heavyTailed(r *rand.Rand) (cpu, memory int64) {
	cores := min(max(0.5*math.Exp(1.2*r.NormFloat64()), 0.05), hostCores)
	perCore := float64(hostMemory) / hostCores * math.Exp(0.5*r.NormFloat64())
	return int64(math.Ceil(cores*20)) * 50, min(int64(math.Ceil(cores*perCore/(64<<20)))*(64<<20), hostMemory)
}

// packing places a heavy-tailed trace on hosts that come one by one when the others are full, and gives the hosts used
// over the least that any placement could use: the sum of the scarcer resource over what a host has of it.
func packing(groups int, seed uint64) float64 {
	r := rand.New(rand.NewPCG(seed, 2))
	v := place.NewView(place.Policies{Default: place.Policy{Pack: true}})
	var sum group.Resources
	hosts := 0
	for n := range groups {
		cpu, memory := heavyTailed(r)
		g := &group.Group{UID: fmt.Sprint(n), Spec: group.Spec{Containers: []group.Container{{Requests: group.Resources{MilliCPU: cpu, Memory: memory}}}}}
		sum = sum.Add(g.Spec.Total())
		if v.Take(g).Host != "" {
			continue
		}
		v.SetHost(host.Host{Name: fmt.Sprintf("host-%06d", hosts), Isolation: []group.Isolation{group.IsolationShared},
			Capacity: group.Resources{MilliCPU: hostCores * 1000, Memory: hostMemory}})
		hosts++
		v.Take(g)
	}
	bound := max(float64(sum.MilliCPU)/(hostCores*1000), float64(sum.Memory)/hostMemory)
	return float64(hosts) / math.Ceil(bound)
}
