package cli

import (
	"context"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/client"
)

// listing is how things of one kind are listed and shown.
type listing[T any] struct {
	list  func(api *client.Client, ctx context.Context, rg string) ([]*T, error) // rg "*": of all resource groups
	get   func(api *client.Client, ctx context.Context, rg, name string) (*T, error)
	table func(list []*T, data any) view
}

// listCommand completes a command that lists.
func (l listing[T]) listCommand(a *app, c *cobra.Command) *cobra.Command {
	var all bool
	c.Args = none
	c.RunE = func(c *cobra.Command, _ []string) error {
		api, err := a.client()
		if err != nil {
			return err
		}
		rg := ""
		if all {
			rg = "*"
		}
		list, err := l.list(api, c.Context(), rg)
		if err != nil {
			return err
		}
		if list == nil {
			list = []*T{}
		}
		return a.emit(l.table(list, list))
	}
	c.Flags().BoolVarP(&all, "all", "A", false, "of all resource groups")
	return c
}

// showCommand completes a command that shows one thing by its name.
func (l listing[T]) showCommand(a *app, c *cobra.Command) *cobra.Command {
	c.RunE = func(c *cobra.Command, args []string) error {
		api, err := a.client()
		if err != nil {
			return err
		}
		one, err := l.get(api, c.Context(), "", args[0])
		if err != nil {
			return err
		}
		return a.emit(l.table([]*T{one}, one))
	}
	return c
}
