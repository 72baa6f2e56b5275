package cli

import (
	"time"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
)

func (a *app) logsCommand() *cobra.Command {
	var container, since string
	var opt host.LogOptions
	tail := -1
	c := &cobra.Command{
		Use:               "logs NAME",
		Short:             "Print the log of a container",
		Args:              names("the NAME of a group", 1, 1),
		ValidArgsFunction: a.first(a.groupNames),
		RunE: func(c *cobra.Command, args []string) error {
			if opt.Tail = tail; tail == 0 {
				opt.Tail = -1 // none, and then what follows
			} else if tail < 0 {
				opt.Tail = 0 // all
			}
			var err error
			if opt.Since, err = parseSince(since, time.Now()); err != nil {
				return err
			}
			api, err := a.client()
			if err != nil {
				return err
			}
			return api.Logs(c.Context(), client.Target{Group: args[0], Container: container}, opt, a.stdout)
		},
	}
	f := c.Flags()
	f.StringVarP(&container, "container", "c", "", "container (default: the first)")
	f.BoolVarP(&opt.Follow, "follow", "f", false, "go on as the log grows")
	f.IntVar(&tail, "tail", -1, "lines from the end (default: all)")
	f.StringVar(&since, "since", "", "not older than: a duration as 10m, or a time as 2026-01-02T15:04:05Z")
	f.BoolVar(&opt.Timestamps, "timestamps", false, "begin each line with its time")
	f.BoolVarP(&opt.Previous, "previous", "p", false, "of the run before this one")
	a.complete(c, "container", a.containerNames)
	return c
}

func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if t := parseTime(s); !t.IsZero() {
		return t, nil
	}
	return time.Time{}, usagef("--since %q must be a duration as 10m or a time as 2026-01-02T15:04:05Z", s)
}
