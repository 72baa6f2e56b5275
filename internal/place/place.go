// Package place decides which host runs a group.
//
// It is pure: no clock, no chance, no IO, no logger; the same calls in the same order give the same answers. It must
// never promise more of a host than its pool's policy allows, and never say that a group fits nowhere while it fits
// somewhere: what holds is exact, only what is preferred is approximate on large fleets.
//
// A View is the fleet in memory, kept up to date change by change; View.Take places a group. Groups that fit nowhere
// wait in a Queue. Start reading at View, then search.go; docs/decisions/0011-placement.md says why it is built so.
package place

import (
	"spillway.dev/spillway/internal/group"
)

// Policy is how the hosts of a pool are filled. Zero factors mean 1.
type Policy struct {
	CPUOvercommit     float64 // requested cores over real ones
	MemoryOvercommit  float64 // requested bytes over real ones
	StorageOvercommit float64 // bytes that groups may write over those that the disk has
	Pack              bool    // fill the fullest host that has room; else the emptiest
}

// Policies are the policies of all pools.
type Policies struct {
	Default Policy
	Pools   map[string]Policy // by name of the pool, instead of the default
}

func (p *Policies) of(pool string) Policy {
	if own, ok := p.Pools[pool]; ok {
		return own
	}
	return p.Default
}

// Decision is where a group goes, or why it goes nowhere.
type Decision struct {
	Host string // "" when none has room
	// Victims are the uids of Spot groups that have to leave Host before a regular group, which fits nowhere else, has
	// room there; Host is then "" and Victim names it: nothing was placed.
	Victims []string
	Victim  string
	Refusal Refusal // when Host is ""
}

// capacity is what a policy lets groups ask of a host. Storage that the host has not measured is not counted.
func (p Policy) capacity(r group.Resources) group.Resources {
	most := group.Resources{MilliCPU: scale(r.MilliCPU, p.CPUOvercommit), Memory: scale(r.Memory, p.MemoryOvercommit),
		EphemeralStorage: scale(r.EphemeralStorage, p.StorageOvercommit), GPUs: r.GPUs}
	if r.EphemeralStorage == 0 {
		most.EphemeralStorage = uncounted
	}
	return most
}

// uncounted stands for storage without a measured end; sums of it do not overflow.
const uncounted = 1 << 60

func scale(n int64, factor float64) int64 {
	if factor <= 0 {
		return n
	}
	return int64(float64(n) * factor)
}
