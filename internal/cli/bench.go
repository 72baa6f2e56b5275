package cli

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/bench"
)

func (a *app) benchCommand() *cobra.Command {
	var o bench.Options
	var peers []string
	var asJSON bool
	c := &cobra.Command{
		Use:   "bench " + strings.Join(bench.Names(), "|"),
		Short: "Measure this machine beside crun, docker, podman and ctr",
		Long: "Measures on a platform of its own, which it takes away again, beside the tools that are installed here:\n" +
			"crun, docker (a dockerd of its own), podman, ctr (a containerd of its own), runsc. Network has other ways between the\n" +
			"same two namespaces for peers, failover a Docker Swarm of three daemons. Runs are interleaved; ratios are medians of\n" +
			"paired runs, ours over theirs. Needs root.",
		Args:      names("one of "+strings.Join(bench.Names(), ", "), 1, 1),
		ValidArgs: bench.Names(),
		RunE: func(c *cobra.Command, args []string) error {
			o.Name, o.Peers = args[0], map[string]bool{}
			for _, p := range peers {
				o.Peers[p] = true
			}
			if !asJSON && a.output == "table" {
				o.Progress = func(name string, done, of int) { fmt.Fprintf(a.stderr, "\r%s %d/%d ", name, done, of) }
			}
			r, err := bench.Run(c.Context(), o)
			if o.Progress != nil {
				fmt.Fprintln(a.stderr)
			}
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(a.stdout)
				e.SetIndent("", "  ")
				return e.Encode(r)
			}
			return a.emit(benchView(r))
		},
	}
	f := c.Flags()
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.IntVar(&o.Runs, "runs", bench.DefaultRuns, "rounds of start and network; parts of it of failover")
	f.DurationVar(&o.Saturate, "saturate", bench.DefaultSaturate, "how long failover keeps every core busy")
	f.IntVar(&o.Burst, "groups", bench.DefaultBurst, "groups of burst")
	f.IntVar(&o.Density, "density", bench.DefaultDensity, "groups of density")
	f.StringSliceVar(&peers, "peers", nil, "only these peers")
	f.StringSliceVar(&o.Parts, "parts", nil, "only these parts of failover: "+strings.Join(bench.FailoverParts(), ", "))
	return c
}

// benchPartCommand is run by benchmarks, for what has to be a process of its own.
func (a *app) benchPartCommand() *cobra.Command {
	var dir, listen string
	etcd := &cobra.Command{Use: "etcd", Args: none, RunE: func(c *cobra.Command, _ []string) error {
		return bench.ServeEtcd(c.Context(), dir, listen, a.stdout)
	}}
	etcd.Flags().StringVar(&dir, "data-dir", "", "where it keeps its data")
	etcd.Flags().StringVar(&listen, "listen", "", "URL at which it answers")
	spin := &cobra.Command{Use: "spin", Args: none, RunE: func(c *cobra.Command, _ []string) error {
		bench.Spin(c.Context())
		return nil
	}}
	c := family(bench.PartCommand, "Play a part in a benchmark", etcd, spin)
	c.Hidden = true
	return c
}

// benchView is a report as a table: one figure a line.
func benchView(r *bench.Report) view {
	v := view{data: r, header: []string{"FIGURE", "VALUE"}}
	add := func(prefix string, values map[string]float64) {
		for _, name := range slices.Sorted(maps.Keys(values)) {
			v.rows = append(v.rows, []string{prefix + name, fmt.Sprint(values[name])})
		}
	}
	add("", r.Ours)
	for _, peer := range slices.Sorted(maps.Keys(r.Peers)) {
		add(peer+": ", r.Peers[peer])
	}
	add("ratio ", r.Ratios)
	add("count ", r.Counts)
	for _, name := range slices.Sorted(maps.Keys(r.Missing)) {
		v.rows = append(v.rows, []string{"left out: " + name, r.Missing[name]})
	}
	for _, name := range slices.Sorted(maps.Keys(r.Environment)) {
		v.rows = append(v.rows, []string{name, r.Environment[name]})
	}
	return v
}
