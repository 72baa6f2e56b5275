package cli

import (
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/client"
)

func (a *app) showCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Show one container group",
		Args:              names("the NAME of a group", 1, 1),
		ValidArgsFunction: a.first(a.groupNames),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			g, err := api.GetGroup(c.Context(), "", args[0])
			if err != nil {
				return err
			}
			return a.emit(showView(g, time.Now()))
		},
	}
}

// showView is a list of facts, then one line per container.
func showView(g *client.Group, now time.Time) view {
	v := view{data: g}
	fact := func(name, value string) {
		if value != "" {
			v.rows = append(v.rows, []string{name + ":", value})
		}
	}
	fact("Name", g.Name)
	fact("Id", g.ID)
	fact("Location", g.Location)
	fact("State", stateText(g))
	fact("Provisioning", g.Properties.ProvisioningState)
	fact("Address", addressText(g))
	if ip := g.Properties.IPAddress; ip != nil {
		fact("FQDN", ip.FQDN)
	}
	fact("Restart policy", g.Properties.RestartPolicy)
	if o := g.Properties.OwnGroup; o != nil {
		fact("Host", o.Host)
		fact("Isolation", o.Isolation)
		if t := parseTime(o.Created); !t.IsZero() {
			fact("Created", t.Local().Format(time.RFC3339)+" ("+age(now.Sub(t))+" ago)")
		}
	}
	if iv := g.Properties.InstanceView; iv != nil {
		fact("Reason", printable(iv.Reason))
	}
	for _, c := range g.Properties.Containers {
		text := []string{c.Properties.Image}
		if iv := c.Properties.InstanceView; iv != nil && iv.Current != nil {
			text = append(text, iv.Current.State, printable(iv.Current.Detail))
			if iv.Current.ExitCode != nil && iv.Current.State == "Terminated" {
				text = append(text, "exit code "+strconv.Itoa(*iv.Current.ExitCode))
			}
			if iv.RestartCount > 0 {
				text = append(text, strconv.Itoa(iv.RestartCount)+" restarts")
			}
			if p := iv.Previous; p != nil && p.ExitCode != nil && iv.Current.ExitCode == nil {
				text = append(text, "last exit code "+strconv.Itoa(*p.ExitCode), printable(p.Detail))
			}
		}
		fact("Container "+c.Name, strings.Join(nonEmpty(text), ", "))
	}
	return v
}

func nonEmpty(list []string) []string {
	var out []string
	for _, s := range list {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}
