package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"strconv"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
)

// event is an event with the container that it is about; "" is the group.
type event struct {
	Container string `json:"container,omitempty"`
	Count     int    `json:"count"`
	First     string `json:"firstTimestamp"`
	Last      string `json:"lastTimestamp"`
	Name      string `json:"name"`
	Message   string `json:"message"`
	Type      string `json:"type"`
}

func (a *app) eventsCommand() *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use:               "events NAME",
		Short:             "Print what happened to a group",
		Args:              names("the NAME of a group", 1, 1),
		ValidArgsFunction: a.first(a.groupNames),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			if follow {
				return a.followEvents(c.Context(), api, args[0])
			}
			g, err := api.GetGroup(c.Context(), "", args[0])
			if err != nil {
				return err
			}
			return a.emit(eventsView(eventsOf(g)))
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on as things happen")
	return c
}

// eventsOf are the events of a group and its containers, oldest first.
func eventsOf(g *client.Group) []event {
	out := []event{}
	if v := g.Properties.InstanceView; v != nil {
		for _, e := range v.Events {
			out = append(out, event{"", e.Count, e.First, e.Last, e.Name, e.Message, e.Type})
		}
	}
	for _, c := range append(g.Properties.InitContainers, g.Properties.Containers...) {
		if v := c.Properties.InstanceView; v != nil {
			for _, e := range v.Events {
				out = append(out, event{c.Name, e.Count, e.First, e.Last, e.Name, e.Message, e.Type})
			}
		}
	}
	sort.SliceStable(out, func(i, j int) bool { return parseTime(out[i].Last).Before(parseTime(out[j].Last)) })
	return out
}

func eventsView(list []event) view {
	v := view{data: list, header: []string{"LAST", "COUNT", "TYPE", "CONTAINER", "NAME", "MESSAGE"}}
	for _, e := range list {
		v.rows = append(v.rows, []string{e.Last, strconv.Itoa(e.Count), e.Type, e.Container, e.Name, printable(e.Message)})
	}
	return v
}

// followEvents prints every event once per time it happens, by push, until the group is gone.
func (a *app) followEvents(ctx context.Context, api *client.Client, name string) error {
	seen := map[event]bool{}
	there := false
	for {
		w, err := api.Watch(ctx, client.WatchOptions{Name: name})
		if err != nil {
			return err
		}
		gone, err := a.drainEvents(w, seen, &there)
		_ = w.Close()
		if gone && !there {
			return fault.New(fault.NotFound, "", "The container group '%s' does not exist. 'spillway ps' lists those that do.", name)
		}
		if gone || ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
	}
}

func (a *app) drainEvents(w *client.Watch, seen map[event]bool, there *bool) (gone bool, err error) {
	for {
		e, err := w.Next()
		if err != nil {
			return false, err
		}
		if e.Type == client.Deleted || e.Type == client.Bookmark && !*there {
			return true, nil
		}
		if e.Object == nil {
			continue
		}
		*there = true
		for _, ev := range eventsOf(e.Object) {
			if seen[ev] {
				continue
			}
			seen[ev] = true
			if _, err := fmt.Fprintf(a.stdout, "%s  %-7s  %-12s  %s: %s\n", ev.Last, ev.Type, or(ev.Container, "-"), ev.Name, printable(ev.Message)); err != nil {
				return false, err
			}
		}
	}
}

func or(s, other string) string {
	if s == "" {
		return other
	}
	return s
}
