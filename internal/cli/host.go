package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/host"
)

func (a *app) hostCommand() *cobra.Command {
	return family("host", "Machines that run groups",
		a.hostListCommand(), a.hostShowCommand(),
		a.hostAction("cordon", "Take no new groups on a host"),
		a.hostAction("uncordon", "Take new groups on a host again"),
		a.hostAction("drain", "Take no new groups on a host and move its groups away"),
		a.hostRemoveCommand())
}

func (a *app) hostListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls", Short: "List hosts", Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			list, err := api.Hosts(c.Context())
			if err != nil {
				return err
			}
			if list == nil {
				list = []host.Host{}
			}
			return a.emit(hostsView(list, list))
		},
	}
}

func hostsView(list []host.Host, data any) view {
	v := view{data: data, header: []string{"NAME", "STATE", "POOL", "ZONE", "CPU", "MEMORY", "ISOLATION", "RUNTIME", "VERSION"}}
	for _, h := range list {
		var kinds []string
		for _, k := range h.Isolation {
			kinds = append(kinds, string(k))
		}
		v.rows = append(v.rows, []string{h.Name, hostState(h), h.Pool, h.Zone, strconv.FormatFloat(float64(h.Capacity.MilliCPU)/1000, 'f', -1, 64),
			bytesText(h.Capacity.Memory), strings.Join(kinds, ","), h.Runtime, h.Version})
	}
	return v
}

func hostState(h host.Host) string {
	switch {
	case h.State == host.Lost:
		return "lost"
	case h.State != host.Ready:
		return "not ready" // host show says why
	case h.Cordoned:
		return "cordoned"
	case h.DiskFull:
		return "disk full"
	}
	return "ready"
}

func (a *app) hostShowCommand() *cobra.Command {
	return &cobra.Command{
		Use: "show NAME", Short: "Show one host", Args: names("the NAME of a host", 1, 1), ValidArgsFunction: a.first(a.hostNames),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			h, err := api.Host(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.emit(hostsView([]host.Host{*h}, h))
		},
	}
}

func (a *app) hostRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Short: "Forget a host that has no groups; it cannot connect again", Args: names("the NAME of a host", 1, 1), ValidArgsFunction: a.first(a.hostNames),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			h, err := api.RemoveHost(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.emit(hostsView([]host.Host{*h}, h))
		},
	}
}

func (a *app) hostAction(verb, short string) *cobra.Command {
	return &cobra.Command{
		Use: verb + " NAME", Short: short, Args: names("the NAME of a host", 1, 1), ValidArgsFunction: a.first(a.hostNames),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			h, err := api.HostAction(c.Context(), args[0], verb)
			if err != nil {
				return err
			}
			return a.emit(hostsView([]host.Host{*h}, h))
		},
	}
}
