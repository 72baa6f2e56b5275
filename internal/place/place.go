// Package place decides which host runs a group.
//
// It is pure: no clock, no randomness, no IO; equal input gives an equal answer. Start at Pick.
package place

import (
	"fmt"
	"slices"
	"strings"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// Candidate is a host with what its groups hold already.
type Candidate struct {
	host.Host
	Used group.Resources
}

// Policy is how full hosts may get. Zero factors mean 1.
type Policy struct {
	CPUOvercommit    float64 // requested cores over real ones
	MemoryOvercommit float64 // requested bytes over real ones
}

// Decision is the answer: a host, or the reasons why each candidate was passed over.
type Decision struct {
	Host     string   // "" when none fits
	Reasons  []string // "h1: disk is full", in the order of the candidates' names
	DiskFull bool     // a full disk is the only thing in the way
}

// Pick chooses the least loaded candidate that fits; of equals the first by name.
func Pick(g *group.Group, candidates []Candidate, policy Policy) Decision {
	sorted := slices.Clone(candidates)
	slices.SortFunc(sorted, func(a, b Candidate) int { return strings.Compare(a.Name, b.Name) })
	var d Decision
	best, bestLoad := -1, 0.0
	d.DiskFull = len(sorted) > 0
	for i := range sorted {
		c := &sorted[i]
		if why := refuse(g, c, policy); why != "" {
			d.Reasons = append(d.Reasons, c.Name+": "+why)
			d.DiskFull = d.DiskFull && why == diskFull
			continue
		}
		if load := c.load(policy); best < 0 || load < bestLoad {
			best, bestLoad = i, load
		}
	}
	if best >= 0 {
		return Decision{Host: sorted[best].Name}
	}
	if len(sorted) == 0 {
		d.Reasons = []string{"no host is connected"}
	}
	return d
}

const diskFull = "its disk is full"

// refuse says why a host cannot take a group, "" when it can.
func refuse(g *group.Group, c *Candidate, policy Policy) string {
	want := g.Spec.Total()
	most := policy.capacity(c.Capacity)
	isolation := g.Spec.Isolation
	if isolation == "" {
		isolation = group.IsolationShared
	}
	switch {
	case c.Cordoned:
		return "it is cordoned"
	case !slices.Contains(c.Isolation, isolation):
		return fmt.Sprintf("it has no %s isolation", isolation)
	case len(g.Zones) > 0 && c.Zone != "" && !slices.Contains(g.Zones, c.Zone):
		return fmt.Sprintf("it stands in zone %s", c.Zone)
	case c.Used.MilliCPU+want.MilliCPU > most.MilliCPU:
		return fmt.Sprintf("%g of %g CPU are free", cores(max(most.MilliCPU-c.Used.MilliCPU, 0)), cores(most.MilliCPU))
	case c.Used.Memory+want.Memory > most.Memory:
		return fmt.Sprintf("%.1f of %.1f GB memory are free", gigabytes(max(most.Memory-c.Used.Memory, 0)), gigabytes(most.Memory))
	case c.DiskFull:
		return diskFull
	}
	return ""
}

// load is how full a host is, by the fuller of its resources.
func (c *Candidate) load(policy Policy) float64 {
	most := policy.capacity(c.Capacity)
	if most.MilliCPU <= 0 || most.Memory <= 0 {
		return 1
	}
	return max(float64(c.Used.MilliCPU)/float64(most.MilliCPU), float64(c.Used.Memory)/float64(most.Memory))
}

func (p Policy) capacity(r group.Resources) group.Resources {
	return group.Resources{MilliCPU: scale(r.MilliCPU, p.CPUOvercommit), Memory: scale(r.Memory, p.MemoryOvercommit)}
}

func scale(n int64, factor float64) int64 {
	if factor <= 0 {
		return n
	}
	return int64(float64(n) * factor)
}

func cores(milli int64) float64 { return float64(milli) / 1000 }

func gigabytes(bytes int64) float64 { return float64(bytes) / (1 << 30) }
