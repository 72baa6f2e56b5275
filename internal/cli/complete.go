package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/client"
)

// completionTime is how long a shell waits for names.
const completionTime = 2 * time.Second

type completer = func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective)

// complete gives a flag its completion.
func (a *app) complete(c *cobra.Command, flag string, f completer) {
	if err := c.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic("flag " + flag + " of " + c.Name() + ": " + err.Error()) // a flag that does not exist: a mistake in this package
	}
}

// fixed completes from a list.
func fixed(words ...string) completer {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}

// first completes only the first argument.
func (a *app) first(f completer) completer {
	return func(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(c, args, prefix)
	}
}

// live completes with names that the platform knows now. Without a platform there are none.
func (a *app) live(c *cobra.Command, prefix string, list func(context.Context, *client.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(orBackground(c.Context())), completionTime)
	defer cancel()
	api, err := a.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := list(ctx, api)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var out []string
	for _, n := range all {
		if strings.HasPrefix(n, prefix) {
			out = append(out, n)
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func orBackground(ctx context.Context) context.Context {
	if ctx == nil { // cobra completes flags of commands that were never executed
		return context.Background()
	}
	return ctx
}

func (a *app) groupNames(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.live(c, prefix, func(ctx context.Context, api *client.Client) ([]string, error) {
		groups, err := api.ListGroups(ctx, "")
		var out []string
		for _, g := range groups {
			out = append(out, g.Name)
		}
		return out, err
	})
}

func (a *app) containerNames(c *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.live(c, prefix, func(ctx context.Context, api *client.Client) ([]string, error) {
		g, err := api.GetGroup(ctx, "", args[0])
		if err != nil {
			return nil, err
		}
		var out []string
		for _, c := range append(g.Properties.Containers, g.Properties.InitContainers...) {
			out = append(out, c.Name)
		}
		return out, nil
	})
}

func (a *app) imageRefs(c *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.live(c, prefix, func(ctx context.Context, api *client.Client) ([]string, error) {
		images, err := api.Images(ctx)
		var out []string
		for _, i := range images {
			out = append(out, i.Ref)
		}
		return out, err
	})
}

func (a *app) addressNames(c *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.live(c, prefix, func(ctx context.Context, api *client.Client) ([]string, error) {
		list, err := api.ListServiceAddresses(ctx, "")
		var out []string
		for _, s := range list {
			out = append(out, s.Name)
		}
		return out, err
	})
}

func (a *app) networkNames(c *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.live(c, prefix, func(ctx context.Context, api *client.Client) ([]string, error) {
		list, err := api.ListNetworks(ctx, "")
		var out []string
		for _, n := range list {
			out = append(out, n.Name)
		}
		return out, err
	})
}

func (a *app) hostNames(c *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.live(c, prefix, func(ctx context.Context, api *client.Client) ([]string, error) {
		hosts, err := api.Hosts(ctx)
		var out []string
		for _, h := range hosts {
			out = append(out, h.Name)
		}
		return out, err
	})
}

func (a *app) resourceGroupNames(c *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.live(c, prefix, func(ctx context.Context, api *client.Client) ([]string, error) {
		groups, err := api.ListResourceGroups(ctx)
		var out []string
		for _, g := range groups {
			out = append(out, g.Name)
		}
		return out, err
	})
}
