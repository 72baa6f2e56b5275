package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"time"
)

// settle is the pause between runs: the pool is full again, and what the last run left is cleaned up. Every engine
// gets it.
const settle = 60 * time.Millisecond

// start measures one group at a time: pool hit, pool miss, the command, and every peer, run by run in turn.
func start(ctx context.Context, o Options) (*Report, error) {
	r := newReport("start")
	image, err := archive()
	if err != nil {
		return nil, err
	}
	hit, err := openOurs(ctx, filepath.Join(o.Dir, "hit"), image)
	if err != nil {
		return nil, err
	}
	defer hit.close()
	miss, err := openOurs(ctx, filepath.Join(o.Dir, "miss"), image, "--pool", "0")
	if err != nil {
		return nil, err
	}
	defer miss.close()
	miss.label = "miss"
	peers := openPeers(ctx, peerOptions{dir: o.Dir, image: image, only: o.Peers}, r.Missing)
	for _, p := range peers {
		defer p.close()
	}
	started, commands, ourCommand, err := interleave(ctx, o, hit, append([]engine{hit, miss}, peers...))
	if err != nil {
		return nil, err
	}
	r.fillStart(started, commands, ourCommand, peers)
	if err := hotPath(ctx, r, hit); err != nil {
		return nil, err
	}
	if err := gvisor(ctx, o, r, hit); err != nil {
		return nil, err
	}
	return r, nil
}

// interleave runs every engine once per round. Each run's container is removed before the next begins.
func interleave(ctx context.Context, o Options, hit *ours, engines []engine) (started, commands map[string]sample, ourCommand sample, err error) {
	started, commands = map[string]sample{}, map[string]sample{}
	for i := range o.Runs + o.warmUp() {
		for _, e := range engines {
			id := fmt.Sprintf("b%d", i)
			time.Sleep(settle)
			at, took, err := e.start(ctx, id)
			if err != nil {
				return nil, nil, nil, fmt.Errorf("%s: %w", e.name(), err)
			}
			if i >= o.warmUp() {
				started[e.name()] = append(started[e.name()], at)
				commands[e.name()] = append(commands[e.name()], took)
			}
			if err := e.remove(ctx, id); err != nil {
				return nil, nil, nil, fmt.Errorf("%s: remove: %w", e.name(), err)
			}
		}
		time.Sleep(settle)
		id := fmt.Sprintf("c%d", i)
		took, err := hit.startCommand(ctx, id)
		if err != nil {
			return nil, nil, nil, err
		}
		if i >= o.warmUp() {
			ourCommand = append(ourCommand, took)
		}
		if err := hit.remove(ctx, id); err != nil {
			return nil, nil, nil, err
		}
		o.progress("start", i+1, o.Runs+o.warmUp())
	}
	return started, commands, ourCommand, nil
}

func (r *Report) fillStart(started, commands map[string]sample, ourCommand sample, peers []engine) {
	ours, miss := started["spillway"], started["miss"]
	ours.into(r.Ours, "firstInstruction")
	miss.into(r.Ours, "missFirstInstruction")
	commands["spillway"].into(r.Ours, "put")
	ourCommand.into(r.Ours, "command")
	r.Ours["runs"] = float64(len(ours))
	for _, p := range peers {
		f := Figures{}
		theirs := started[p.name()]
		theirs.into(f, "firstInstruction")
		r.Ratios["firstInstruction/"+p.name()] = pairedRatio(ours, theirs)
		if own := commands[p.name()]; own.quantile(1) > 0 {
			own.into(f, "command")
			r.Ratios["command/"+p.name()] = pairedRatio(ourCommand, own)
		}
		r.Peers[p.name()] = f
		if p.name() == "crun" {
			r.Ratios["p99/crunP50"] = round(float64(ours.quantile(0.99)) / float64(theirs.quantile(0.5)))
			r.Ratios["missFirstInstruction/crun"] = pairedRatio(miss, theirs)
		}
	}
}

// countedStarts is the number of starts whose effects are counted.
const countedStarts = 10

// hotPath counts what starts cost, from the request to the running program: nothing is removed meanwhile, and each
// start finds its parked slot.
func hotPath(ctx context.Context, r *Report, e *ours) error {
	quiet(ctx)
	before, err := e.api.Metrics(ctx)
	if err != nil {
		return err
	}
	for i := range countedStarts {
		time.Sleep(settle)
		if _, _, err := e.start(ctx, fmt.Sprintf("h%d", i)); err != nil {
			return err
		}
	}
	after, err := e.api.Metrics(ctx)
	if err != nil {
		return err
	}
	for i := range countedStarts {
		if err := e.remove(ctx, fmt.Sprintf("h%d", i)); err != nil {
			return err
		}
	}
	per := func(name string) float64 { return round((after[name] - before[name]) / countedStarts) }
	r.Counts["durableWritesPerStart"] = per("etcd_disk_wal_fsync_duration_seconds_count")
	r.Counts["netlinkChangesPerStart"] = per("spillway_network_joins_total")
	r.Counts["cgroupMovesPerStart"] = per("spillway_keeper_cgroup_moves_total")
	r.Counts["otherProcessesPerStart"] = per("spillway_keeper_processes_total")
	r.Counts["poolHitsPerStart"] = per("spillway_pool_hits_total")
	return nil
}

// gvisor compares groups of isolation gvisor with bare runsc, when it is installed.
func gvisor(ctx context.Context, o Options, r *Report, platform *ours) error {
	runsc, err := findRunsc()
	if err != nil {
		r.Missing["runsc"] = err.Error()
		return nil
	}
	bare, err := newCrun("runsc", runsc, []string{"--platform=systrap", "--network=sandbox", "--overlay2=none"}, o.Dir, true)
	if err != nil {
		return err
	}
	defer bare.close()
	group := &ours{label: "gvisor", dir: platform.dir, self: platform.self, api: platform.api, isolation: "gvisor"}
	var us, them sample
	for i := range o.gvisorRuns() {
		for _, e := range []engine{group, bare} {
			id := fmt.Sprintf("g%d", i)
			time.Sleep(settle)
			at, _, err := e.start(ctx, id)
			if err != nil {
				r.Missing["runsc"] = err.Error()
				return nil
			}
			if e.name() == "gvisor" {
				us = append(us, at)
			} else {
				them = append(them, at)
			}
			if err := e.remove(ctx, id); err != nil {
				return fmt.Errorf("%s: remove: %w", e.name(), err)
			}
		}
	}
	us.into(r.Ours, "gvisorFirstInstruction")
	f := Figures{}
	them.into(f, "firstInstruction")
	r.Peers["runsc"] = f
	r.Ratios["gvisorFirstInstruction/runsc"] = pairedRatio(us, them)
	return nil
}
