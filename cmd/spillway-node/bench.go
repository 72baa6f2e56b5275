package main

import (
	"encoding/json"
	"os"
	"runtime"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"spillway.dev/spillway/internal/podbench"
)

// benchCommand measures pods on the nodes of a cluster, one beside the other.
func benchCommand(kubeconfig *string) *cobra.Command {
	cfg := podbench.Config{}
	c := &cobra.Command{Use: "bench", Short: "Measure what a pod costs, node beside node", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			rest, err := kubeConfig(*kubeconfig)
			if err != nil {
				return err
			}
			if cfg.Kube, err = kubernetes.NewForConfig(rest); err != nil {
				return err
			}
			results, err := podbench.Run(c.Context(), cfg)
			if err != nil {
				return err
			}
			out := map[string]any{"name": "pods", "results": results, "environment": map[string]any{"cpus": runtime.NumCPU(), "rounds": cfg.Rounds}}
			if len(results) > 1 && results[1].Running > 0 {
				ratios := map[string]float64{"createToRunning": results[0].Running / results[1].Running}
				if results[1].Writes > 0 {
					ratios["writesPerPod"] = results[0].Writes / results[1].Writes
				}
				if results[1].PerSecond > 0 {
					ratios["burstPodsPerSecond"] = results[0].PerSecond / results[1].PerSecond
				}
				out["ratios"] = ratios
			}
			e := json.NewEncoder(os.Stdout)
			e.SetIndent("", "  ")
			return e.Encode(out)
		}}
	f := c.Flags()
	f.StringSliceVar(&cfg.Nodes, "nodes", []string{"spillway"}, "nodes to compare; the first is ours")
	f.StringVar(&cfg.Namespace, "namespace", "default", "where the pods are made")
	f.StringVar(&cfg.Image, "image", "busybox:1", "image with a shell, present on every node")
	f.IntVar(&cfg.Rounds, "rounds", 20, "pods on each node, one after the other")
	f.IntVar(&cfg.Burst, "burst", 0, "pods at once on each node")
	return c
}
