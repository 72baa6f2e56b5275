package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/kubernetes"

	"spillway.dev/spillway/internal/virtualnode"
)

// drainCommand moves the pods of a node away.
func drainCommand(kubeconfig *string) *cobra.Command {
	var d virtualnode.Draining
	var timeout time.Duration
	c := &cobra.Command{Use: "drain", Short: "Take no new pods on a node and move its pods away", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			rest, err := kubeConfig(*kubeconfig)
			if err != nil {
				return err
			}
			if d.Kube, err = kubernetes.NewForConfig(rest); err != nil {
				return err
			}
			ctx := c.Context()
			if timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, timeout)
				defer cancel()
			}
			d.Say = func(line string) { fmt.Fprintln(c.ErrOrStderr(), line) }
			if err := d.Run(ctx); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "node %s is drained; 'kubectl uncordon %s' lets pods come again\n", d.Node, d.Node)
			return nil
		}}
	f := c.Flags()
	f.StringVar(&d.Node, "name", "spillway", "name of the node")
	f.BoolVar(&d.Force, "force", false, "also delete pods that no controller makes again")
	f.DurationVar(&timeout, "timeout", 0, "give up after this time (default: never)")
	return c
}
