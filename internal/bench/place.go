package bench

import (
	"context"
	"fmt"
	"time"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/place"
)

// placeSizes are the numbers of hosts that placement is measured at.
var placeSizes = []int{1, 100, 1000, 5000}

// placements measures decisions in memory: groups of mixed sizes on hosts of mixed load.
func placements(ctx context.Context, o Options) (*Report, error) {
	r := newReport("place")
	for i, n := range placeSizes {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		per := placementTime(n)
		r.Ours[fmt.Sprintf("placementsPerSecondAt%dHosts", n)] = round(float64(time.Second) / float64(per))
		o.progress("place", i+1, len(placeSizes))
	}
	return r, nil
}

// placementTime is the median time of one decision.
func placementTime(n int) time.Duration {
	const span, batches = 500 * time.Millisecond, 5
	candidates := make([]place.Candidate, n)
	for i := range candidates {
		candidates[i] = place.Candidate{
			Host: host.Host{Name: fmt.Sprintf("host-%05d", i), Capacity: group.Resources{MilliCPU: 64_000, Memory: 256 << 30},
				Isolation: []group.Isolation{group.IsolationShared}},
			Used: group.Resources{MilliCPU: int64(i*7919%64) * 1000, Memory: int64(i*104729%256) << 30},
		}
	}
	var times []time.Duration
	for range batches {
		count := 0
		begin := now()
		for now()-begin < span/batches {
			g := &group.Group{Spec: group.Spec{Containers: []group.Container{{Requests: group.Resources{MilliCPU: int64(100 + count%4000), Memory: int64(count%8+1) << 28}}}}}
			place.Pick(g, candidates, place.Policy{})
			count++
		}
		times = append(times, (now()-begin)/time.Duration(count))
	}
	return median(times)
}
