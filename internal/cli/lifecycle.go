package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/client"
)

func (a *app) stopCommand() *cobra.Command {
	return a.each("stop", "Stop groups; they keep their definition", func(ctx context.Context, api *client.Client, name string) error { return api.Stop(ctx, "", name) })
}

func (a *app) startCommand() *cobra.Command {
	return a.each("start", "Start stopped groups", func(ctx context.Context, api *client.Client, name string) error { return api.Start(ctx, "", name) })
}

func (a *app) restartCommand() *cobra.Command {
	return a.each("restart", "Run all containers of groups afresh", func(ctx context.Context, api *client.Client, name string) error { return api.Restart(ctx, "", name) })
}

func (a *app) rmCommand() *cobra.Command {
	var noWait bool
	c := a.each("rm", "Delete groups", func(ctx context.Context, api *client.Client, name string) error {
		return api.DeleteGroup(ctx, "", name, !noWait)
	})
	c.Flags().BoolVar(&noWait, "no-wait", false, "return before the group is gone")
	return c
}

// manyAtOnce is how many groups are worked on at a time: a group may take its whole grace period to end.
const manyAtOnce = 16

// each does something to every group named, side by side; a failure does not keep it from the others.
func (a *app) each(verb, short string, do func(context.Context, *client.Client, string) error) *cobra.Command {
	return &cobra.Command{
		Use:               verb + " NAME...",
		Short:             short,
		Args:              names("the NAME of a group", 1, 0),
		ValidArgsFunction: a.groupNames,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			failed := make([]error, len(args))
			done := make([]chan struct{}, len(args))
			free := make(chan struct{}, manyAtOnce)
			for i, name := range args {
				done[i] = make(chan struct{})
				go func() {
					defer close(done[i])
					free <- struct{}{}
					failed[i] = do(c.Context(), api, name)
					<-free
				}()
			}
			line := a.statusLine()
			for i, name := range args {
				line.set(fmt.Sprintf("%s %s (containers have their grace period to end)", verb, name))
				<-done[i]
				line.clear()
				if failed[i] == nil {
					fmt.Fprintln(a.stdout, name)
				}
			}
			return errors.Join(failed...)
		},
	}
}
