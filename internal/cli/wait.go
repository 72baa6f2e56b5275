package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

func (a *app) waitCommand() *cobra.Command {
	var what string
	var timeout time.Duration
	c := &cobra.Command{
		Use:               "wait NAME --for running|terminated",
		Short:             "Wait until a group runs or has ended",
		Args:              names("the NAME of a group", 1, 1),
		ValidArgsFunction: a.first(a.groupNames),
		RunE: func(c *cobra.Command, args []string) error {
			done, err := condition(what)
			if err != nil {
				return err
			}
			api, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			line := a.statusLine()
			defer line.clear()
			tell, reason := a.tellRoom(line), ""
			g, err := api.WaitFor(ctx, "", args[0], func(g *client.Group) (bool, error) {
				if reason = ""; waitsForRoom(g) {
					reason = g.Properties.InstanceView.Reason
				}
				line.set(reason)
				tell(g)
				return done(g)
			})
			if ctx.Err() == context.DeadlineExceeded {
				return fault.New(fault.Unavailable, "", "The container group '%s' was not %s within %s%s. See 'spillway show %s'.", args[0], strings.ToLower(what), timeout, because(reason), args[0])
			}
			if err != nil {
				return err
			}
			return a.emit(groupsView([]*client.Group{g}, g, time.Now()))
		},
	}
	c.Flags().StringVar(&what, "for", "running", "running or terminated")
	c.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait")
	a.complete(c, "for", fixed("running", "terminated"))
	return c
}

// tellRoom prints why a group waits for room, each reason once. A terminal has a line for it that changes.
func (a *app) tellRoom(l *line) func(*client.Group) {
	said := ""
	return func(g *client.Group) {
		if l.w != nil || !waitsForRoom(g) || g.Properties.InstanceView.Reason == said {
			return
		}
		said = g.Properties.InstanceView.Reason
		_, why, _ := strings.Cut(said, ": ")
		fmt.Fprintf(a.stderr, "The container group '%s' waits for room: %s\n", g.Name, printable(why))
	}
}

// condition is what a wait waits for. A view of an earlier epoch says nothing.
func condition(what string) (func(*client.Group) (bool, error), error) {
	switch strings.ToLower(what) {
	case "running":
		return func(g *client.Group) (bool, error) {
			if !tellsOf(g, epochOf(g)) {
				return false, nil
			}
			if group.State(g.State()) == group.Running {
				return true, nil
			}
			if group.State(g.State()).Ended() {
				return true, fault.New(fault.Conflict, "", "The container group '%s' has ended as %s and will not run. Start it with 'spillway start %s'.", g.Name, g.State(), g.Name)
			}
			return false, nil
		}, nil
	case "terminated":
		return func(g *client.Group) (bool, error) {
			return tellsOf(g, epochOf(g)) && group.State(g.State()).Ended(), nil
		}, nil
	}
	return nil, usagef("--for %q does not exist; use running or terminated", what)
}
