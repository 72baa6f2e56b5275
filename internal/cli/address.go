package cli

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/client"
)

func (a *app) addressCommand() *cobra.Command {
	return family("address", "Service addresses: one stable address in front of groups",
		a.addressListCommand(), a.addressShowCommand(), a.addressApplyCommand(), a.addressRemoveCommand())
}

var addressListing = listing[client.ServiceAddress]{(*client.Client).ListServiceAddresses, (*client.Client).GetServiceAddress, addressesView}

func (a *app) addressListCommand() *cobra.Command {
	return addressListing.listCommand(a, &cobra.Command{Use: "ls", Short: "List service addresses"})
}

func (a *app) addressShowCommand() *cobra.Command {
	return addressListing.showCommand(a, &cobra.Command{
		Use: "show NAME", Short: "Show one service address", Args: names("the NAME of a service address", 1, 1), ValidArgsFunction: a.first(a.addressNames)})
}

func (a *app) addressApplyCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "apply -f FILE", Short: "Create or update service addresses from a file", Args: none,
		Long: "As 'spillway apply', where a document that names no type is a service address.",
		RunE: func(c *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("'spillway address apply' needs -f FILE")
			}
			return a.apply(c.Context(), applyFlags{file: file, kind: arm.AddressType})
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "file to read, - for standard input")
	return c
}

func (a *app) addressRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Short: "Delete service addresses", Args: names("the NAME of a service address", 1, 0), ValidArgsFunction: a.addressNames,
		RunE: func(c *cobra.Command, args []string) error {
			return a.removeEach(args, func(api *client.Client, name string) error { return api.DeleteServiceAddress(c.Context(), "", name) })
		},
	}
}

// addressesView is a table of service addresses.
func addressesView(list []*client.ServiceAddress, data any) view {
	v := view{data: data, header: []string{"NAME", "NETWORK", "ADDRESS", "PORTS", "READY", "ENDPOINTS", "NAMES"}}
	for _, s := range list {
		p := &s.Properties
		ready := ""
		if p.InstanceView != nil {
			ready = strconv.Itoa(p.InstanceView.ReadyEndpoints)
		}
		v.rows = append(v.rows, []string{s.Name, p.Network, p.Address, portsText(p.Ports), ready, behindText(p), strings.Join(p.FQDNs, ",")})
	}
	return v
}

// portsText is 80->8080,53/udp.
func portsText(ports []arm.AddressPort) string {
	var out []string
	for _, p := range ports {
		text := strconv.Itoa(p.Port)
		if p.TargetPort != 0 && p.TargetPort != p.Port {
			text += "->" + strconv.Itoa(p.TargetPort)
		}
		if strings.EqualFold(p.Protocol, "UDP") {
			text += "/udp"
		}
		out = append(out, text)
	}
	return strings.Join(out, ",")
}

// behindText is the selector, or the first of the listed endpoints.
func behindText(p *arm.AddressProperties) string {
	if p.Endpoints == nil {
		var out []string
		for _, k := range slices.Sorted(maps.Keys(p.Selector)) {
			out = append(out, printable(k+"="+p.Selector[k]))
		}
		return strings.Join(out, ",")
	}
	const most = 3
	var out []string
	for _, e := range *p.Endpoints {
		out = append(out, e.Address)
	}
	if len(out) > most {
		out = append(out[:most], fmt.Sprintf("+%d", len(out)-most))
	}
	return cmp.Or(strings.Join(out, ","), "none")
}
