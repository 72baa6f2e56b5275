package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"spillway.dev/spillway/internal/fault"
)

// Options choose what is measured and how long.
type Options struct {
	Name     string          // one of Names
	Dir      string          // scratch; made and removed
	Runs     int             // rounds of start and network; parts of it of failover
	Burst    int             // groups of burst
	Density  int             // groups of density
	Saturate time.Duration   // of failover: how long every core is kept busy
	Peers    map[string]bool // only these; empty: all
	Parts    []string        // of failover: only these of FailoverParts; empty: all
	Progress func(name string, done, of int)
}

// Defaults.
const (
	DefaultRuns    = 50
	DefaultBurst   = 200
	DefaultDensity = 500
	// DefaultSaturate is short: what is promised is promised for ten minutes.
	DefaultSaturate = time.Minute
)

func (o Options) progress(name string, done, of int) {
	if o.Progress != nil {
		o.Progress(name, done, of)
	}
}

// warmUp is the number of rounds that are not counted: caches fill and heaps grow in them.
func (o Options) warmUp() int { return min(3, o.Runs) }

// gvisorRuns is the number of rounds against bare runsc, which takes a hundred times as long.
func (o Options) gvisorRuns() int { return max(o.Runs/3, 1) }

func (o Options) burstRounds() int { return 3 }

// Names are the benchmarks.
func Names() []string { return []string{"start", "burst", "density", "place", "network", "failover"} }

// Run measures one benchmark.
func Run(ctx context.Context, o Options) (*Report, error) {
	run, ok := map[string]func(context.Context, Options) (*Report, error){"start": start, "burst": burst, "density": density, "place": placements, "network": networkPaths,
		"failover": failover}[o.Name]
	if !ok {
		return nil, fault.New(fault.Invalid, "", "There is no benchmark '%s'; there are %v.", o.Name, Names())
	}
	for _, part := range o.Parts {
		if o.Name != "failover" || !slices.Contains(FailoverParts(), part) {
			return nil, fault.New(fault.Invalid, "", "Benchmark '%s' has no part '%s'; failover has %v.", o.Name, part, FailoverParts())
		}
	}
	if o.Name != "place" && os.Getuid() != 0 {
		return nil, fault.New(fault.Denied, "", "This benchmark starts containers: run it as root.")
	}
	if o.Dir == "" {
		// Not below /tmp: overlay needs a real file system, and /tmp is memory on many machines.
		dir, err := os.MkdirTemp("/var/tmp", "spillway-bench-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		o.Dir = dir
	}
	begin := time.Now()
	r, err := run(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("bench %s: %w", o.Name, err)
	}
	r.Environment["took"] = time.Since(begin).Round(time.Second).String()
	return r, nil
}

func findRunsc() (string, error) {
	if self, err := os.Executable(); err == nil {
		if path := filepath.Join(filepath.Dir(self), "runsc"); fileExists(path) {
			return path, nil
		}
	}
	return find("runsc")
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
