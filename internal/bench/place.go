package bench

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// placeSizes are the numbers of hosts that placement is measured at.
var placeSizes = []int{100, 1000, 5000, 100_000}

// How much is measured at each size.
const (
	placeTurns   = 300_000
	placeSamples = 100_000
	packedGroups = 50_000
	packedSeeds  = 5
)

// placements measures decisions in memory, on fleets with groups that ask for more than room.
func placements(ctx context.Context, o Options) (*Report, error) {
	r := newReport("place")
	r.Environment["groups"] = mix
	r.Environment["sizes"] = "lognormal: half below 0.5 cores, up to 16; memory by core around what a host has"
	r.Environment["hosts"] = fmt.Sprintf("%d cores, %d GB, 3 zones, 8 fault domains in each, 10 labels; %.0f %% of the cores are held", hostCores, int64(hostMemory)>>30, 100*fleetLoad)
	var p50 []time.Duration
	for i, n := range placeSizes {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		for _, pack := range []bool{true, false} {
			m := measureFleet(newFleet(n, pack))
			at := fmt.Sprintf("At%dHosts", n)
			if !pack {
				r.Ours["spreadPerCPUSecond"+at] = m.perSecond
				continue
			}
			p50 = append(p50, m.times.quantile(0.50))
			r.Ours["placementsPerCPUSecond"+at] = m.perSecond
			r.Ours["placementP50Micros"+at], r.Ours["placementP99Micros"+at] = micros(m.times.quantile(0.50)), micros(m.times.quantile(0.99))
			r.Counts["allocationsPerPlacement"+at] = round(m.allocations)
			r.Counts["refusedPer1000"+at] = round(1000 * m.refused)
		}
		o.progress("place", i+1, len(placeSizes))
	}
	r.Ratios[fmt.Sprintf("placementP50At%dHostsOverAt%d", placeSizes[len(placeSizes)-1], placeSizes[0])] = round(float64(p50[len(p50)-1]) / float64(p50[0]))
	var packed []float64
	for seed := range uint64(packedSeeds) {
		packed = append(packed, packing(packedGroups, seed))
	}
	r.Ratios["packedHostsOverLowerBound"] = round(slices.Max(packed))
	r.Missing["kube-scheduler"] = "its own benchmark runs beside this one by hack/schedulerperf.sh"
	return r, durable(ctx, o, r)
}

// measured is what one fleet did.
type measured struct {
	perSecond   float64 // groups that went and came, by second of processor time
	times       sample  // of placements alone
	allocations float64
	refused     float64
}

func measureFleet(f *fleet) measured {
	for range f.groups[:min(len(f.groups), placeTurns)] {
		f.turn()
	}
	runtime.GC()
	var m measured
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	begin, refused := processorTime(), 0
	for range placeTurns {
		if !f.turn() {
			refused++
		}
	}
	took := processorTime() - begin
	runtime.ReadMemStats(&after)
	m.perSecond = math.Round(placeTurns / took.Seconds())
	m.allocations = float64(after.Mallocs-before.Mallocs) / placeTurns
	m.refused = float64(refused) / placeTurns
	m.times = make(sample, 0, placeSamples)
	clock := clockTime()
	for range placeSamples {
		g := f.leave()
		g.Spec.Total() // a request that was just read is in the processor's cache
		begin := now()
		f.view.Take(g)
		m.times = append(m.times, max(now()-begin-clock, 0))
	}
	return m
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts)
	return time.Duration(ts.Nano())
}

// clockTime is what reading the clock takes.
func clockTime() time.Duration {
	times := make(sample, 1000)
	for i := range times {
		begin := now()
		times[i] = now() - begin
	}
	return times.quantile(0.50)
}

func micros(d time.Duration) float64 { return round(float64(d) / 1000) }
