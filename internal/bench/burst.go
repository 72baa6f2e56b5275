package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// burst measures many groups at once: how many start per second, what they cost, and whether a longer queue slows
// them down.
func burst(ctx context.Context, o Options) (*Report, error) {
	r := newReport("burst")
	image, err := archive()
	if err != nil {
		return nil, err
	}
	platform, err := openOurs(ctx, filepath.Join(o.Dir, "burst"), image)
	if err != nil {
		return nil, err
	}
	defer platform.close()
	c, err := openCrun(ctx, peerOptions{dir: o.Dir})
	if err != nil {
		r.Missing["crun"] = err.Error()
	}
	var all, two, many, cpu, crunRate, crunCPU []float64
	for round := range o.burstRounds() {
		for _, m := range []struct {
			outstanding int
			into        *[]float64
			cpu         *[]float64
		}{{o.Burst, &all, &cpu}, {2, &two, nil}, {128, &many, nil}} {
			rate, ticks, err := platform.wave(ctx, fmt.Sprintf("r%do%d", round, m.outstanding), o.Burst, m.outstanding)
			if err != nil {
				return nil, err
			}
			*m.into = append(*m.into, rate)
			if m.cpu != nil {
				*m.cpu = append(*m.cpu, ticks)
			}
		}
		if c != nil {
			rate, ticks, err := crunLoop(ctx, c.(*crun), fmt.Sprintf("r%d", round), o.Burst, 2)
			if err != nil {
				return nil, err
			}
			crunRate, crunCPU = append(crunRate, rate), append(crunCPU, ticks)
		}
		o.progress("burst", round+1, o.burstRounds())
	}
	r.Ours["groups"] = float64(o.Burst)
	r.Ours["groupsPerSecond"] = round(median(all))
	r.Ours["groupsPerSecondAt2"], r.Ours["groupsPerSecondAt128"] = round(median(two)), round(median(many))
	r.Ours["cpuMsPerStart"] = round(median(cpu))
	r.Ratios["at128/at2"] = round(median(many) / median(two))
	if c != nil {
		defer c.close()
		r.Peers["crun"] = Figures{"runsPerSecond": round(median(crunRate)), "cpuMsPerStart": round(median(crunCPU))}
		r.Ratios["groupsPerSecond/crun"] = round(median(all) / median(crunRate))
		r.Ratios["cpuMsPerStart/crun"] = round(median(cpu) / median(crunCPU))
	}
	return r, nil
}

// wave starts n groups with so many requests outstanding, waits for the last payload's first instruction and removes
// them all. The rate counts from the first request to the last first instruction; the processor time is the whole
// machine's from the first request until pool and platform are quiet again, so that every refill is in it.
func (e *ours) wave(ctx context.Context, prefix string, n, outstanding int) (perSecond, cpuMs float64, err error) {
	quiet(ctx)
	ticks := busyTicks()
	begin := now()
	var mu sync.Mutex // guards last
	var last time.Duration
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(outstanding)
	for i := range n {
		g.Go(func() error {
			id := fmt.Sprintf("%sn%d", prefix, i)
			if _, err := e.api.PutGroup(gctx, "", id, e.group()); err != nil {
				return err
			}
			at, err := e.stampOf(gctx, id)
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			last = max(last, at)
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return 0, 0, err
	}
	quiet(ctx)
	spent := (busyTicks() - ticks) * tickMs
	rm, rctx := errgroup.WithContext(ctx)
	rm.SetLimit(16)
	for i := range n {
		rm.Go(func() error { return e.remove(rctx, fmt.Sprintf("%sn%d", prefix, i)) })
	}
	return float64(n) / (last - begin).Seconds(), spent / float64(n), rm.Wait()
}

// quiet waits until the machine has been idle for a moment.
func quiet(ctx context.Context) {
	const look, most = 100 * time.Millisecond, 15 * time.Second
	for deadline := time.Now().Add(most); time.Now().Before(deadline) && ctx.Err() == nil; {
		before := busyTicks()
		time.Sleep(look)
		if busyTicks()-before <= 1 {
			return
		}
	}
}

// crunLoop runs the payload n times with so many at once, each run to its end.
func crunLoop(ctx context.Context, c *crun, prefix string, n, outstanding int) (perSecond, cpuMs float64, err error) {
	quiet(ctx)
	ticks := busyTicks()
	begin := now()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(outstanding)
	for i := range n {
		g.Go(func() error { return c.runToEnd(gctx, fmt.Sprintf("%sn%d", prefix, i)) })
	}
	if err := g.Wait(); err != nil {
		return 0, 0, err
	}
	took := now() - begin
	quiet(ctx)
	return float64(n) / took.Seconds(), (busyTicks() - ticks) * tickMs / float64(n), nil
}
