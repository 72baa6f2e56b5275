package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/vnet"
)

func (a *app) networkCommand() *cobra.Command {
	return family("network", "Virtual networks: groups with addresses of their subnets, apart from all others",
		a.networkListCommand(), a.networkShowCommand(), a.networkCreateCommand(), a.networkRemoveCommand(),
		family("subnet", "Subnets of virtual networks", a.subnetListCommand(), a.subnetCreateCommand(), a.subnetRemoveCommand()))
}

var networkListing = listing[client.VirtualNetwork]{(*client.Client).ListNetworks, (*client.Client).GetNetwork, networksView}

func (a *app) networkListCommand() *cobra.Command {
	return networkListing.listCommand(a, &cobra.Command{Use: "ls", Short: "List virtual networks"})
}

func (a *app) networkShowCommand() *cobra.Command {
	return networkListing.showCommand(a, &cobra.Command{
		Use: "show NAME", Short: "Show one virtual network", Args: names("the NAME of a virtual network", 1, 1), ValidArgsFunction: a.first(a.networkNames)})
}

func (a *app) networkCreateCommand() *cobra.Command {
	var prefixes, subnets, tags []string
	c := &cobra.Command{
		Use: "create NAME", Short: "Create or update a virtual network", Args: names("the NAME of a virtual network", 1, 1),
		Long: "Create or update a virtual network. Without --prefix the platform finds a free address space. Address spaces are private\n" +
			"ranges, apart from each other and from what the platform and its hosts have themselves.",
		Example: "  spillway network create shop --subnet web --subnet data\n  spillway run nginx --port 80 --subnet shop/web",
		RunE: func(c *cobra.Command, args []string) error {
			return a.createNetwork(c.Context(), args[0], prefixes, subnets, tags)
		},
	}
	c.Flags().StringArrayVar(&prefixes, "prefix", nil, "range of its address space; repeatable")
	c.Flags().StringArrayVar(&subnets, "subnet", nil, "subnet NAME, or NAME=RANGE; repeatable")
	c.Flags().StringArrayVar(&tags, "tag", nil, "tag K=V; repeatable")
	return c
}

func (a *app) createNetwork(ctx context.Context, name string, prefixes, subnets, tags []string) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	labels, err := keyValues("--tag", tags)
	if err != nil {
		return err
	}
	props := object{}
	if len(prefixes) > 0 {
		props["addressSpace"] = object{"addressPrefixes": prefixes}
	}
	n, err := api.PutNetwork(ctx, "", name, object{"location": api.Config().Location, "tags": labels, "properties": props})
	for _, s := range subnets {
		if err != nil {
			return err
		}
		sub, prefix, _ := strings.Cut(s, "=")
		if _, err = putSubnet(ctx, api, name, sub, prefix); err == nil {
			n, err = api.GetNetwork(ctx, "", name)
		}
	}
	if err != nil {
		return err
	}
	return a.emit(networksView([]*client.VirtualNetwork{n}, n))
}

// usualSubnet is the size of a subnet that nobody has chosen, as bits of its prefix.
const usualSubnet = 24

// putSubnet makes a subnet, in a free range when it is to have none in particular. One that there is stays as it is then.
func putSubnet(ctx context.Context, api *client.Client, network, name, prefix string) (*client.Subnet, error) {
	if prefix == "" {
		n, err := api.GetNetwork(ctx, "", network)
		if err != nil {
			return nil, err
		}
		if prefix, err = freeRange(n, name); err != nil {
			return nil, err
		}
	}
	return api.PutSubnet(ctx, "", network, name, object{"properties": object{"addressPrefix": prefix}})
}

// freeRange finds a range for a subnet: as large as usual, or else as there is.
func freeRange(n *client.VirtualNetwork, name string) (string, error) {
	var used []netip.Prefix
	for _, s := range n.Properties.Subnets {
		text := prefixOf(s)
		if strings.EqualFold(s.Name, name) {
			return text, nil
		}
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return "", fmt.Errorf("read the range of subnet %s: %w", s.Name, err)
		}
		used = append(used, p)
	}
	for bits := usualSubnet; bits <= vnet.MostBits; bits++ {
		for _, text := range n.Properties.AddressSpace.Prefixes {
			space, err := netip.ParsePrefix(text)
			if err != nil {
				return "", fmt.Errorf("read the address space of virtual network %s: %w", n.Name, err)
			}
			if p, ok := vnet.Free(space, bits, used); ok {
				return p.String(), nil
			}
		}
	}
	return "", fault.New(fault.Exhausted, "", "The address space of virtual network '%s' is full. Delete subnets of it, or give it another range with 'spillway network create %s --prefix'.", n.Name, n.Name)
}

// prefixOf is a subnet's range, which is a list of one when it was given as one.
func prefixOf(s *arm.Subnet) string {
	if len(s.Properties.Prefixes) > 0 {
		return s.Properties.Prefixes[0]
	}
	return s.Properties.Prefix
}

func (a *app) networkRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME...", Short: "Delete virtual networks", Args: names("the NAME of a virtual network", 1, 0), ValidArgsFunction: a.networkNames,
		RunE: func(c *cobra.Command, args []string) error {
			return a.removeEach(args, func(api *client.Client, name string) error { return api.DeleteNetwork(c.Context(), "", name) })
		},
	}
}

// removeEach removes things by name and prints those that it has removed.
func (a *app) removeEach(list []string, remove func(api *client.Client, name string) error) error {
	api, err := a.client()
	if err != nil {
		return err
	}
	var failed []error
	for _, name := range list {
		if err := remove(api, name); err != nil {
			failed = append(failed, err)
			continue
		}
		fmt.Fprintln(a.stdout, name)
	}
	return errors.Join(failed...)
}

func (a *app) subnetListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ls NETWORK", Short: "List the subnets of a virtual network", Args: names("the NAME of a virtual network", 1, 1), ValidArgsFunction: a.first(a.networkNames),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			list, err := api.ListSubnets(c.Context(), "", args[0])
			if err != nil {
				return err
			}
			if list == nil {
				list = []*client.Subnet{}
			}
			return a.emit(subnetsView(list, list))
		},
	}
}

func (a *app) subnetCreateCommand() *cobra.Command {
	var prefix string
	c := &cobra.Command{
		Use: "create NETWORK NAME", Short: "Create or update a subnet", Args: names("the NAME of a virtual network and that of a subnet", 2, 2), ValidArgsFunction: a.first(a.networkNames),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			s, err := putSubnet(c.Context(), api, args[0], args[1], prefix)
			if err != nil {
				return err
			}
			return a.emit(subnetsView([]*client.Subnet{s}, s))
		},
	}
	c.Flags().StringVar(&prefix, "prefix", "", "its range (default: a free one of 256 addresses)")
	return c
}

func (a *app) subnetRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NETWORK NAME...", Short: "Delete subnets", Args: names("the NAME of a virtual network and those of subnets", 2, 0), ValidArgsFunction: a.first(a.networkNames),
		RunE: func(c *cobra.Command, args []string) error {
			return a.removeEach(args[1:], func(api *client.Client, name string) error { return api.DeleteSubnet(c.Context(), "", args[0], name) })
		},
	}
}

// subnetID makes an id of NETWORK/SUBNET; an id stays one.
func subnetID(api *client.Client, text string) (string, error) {
	if strings.HasPrefix(text, "/") {
		return text, nil
	}
	network, name, ok := strings.Cut(text, "/")
	if !ok || network == "" || name == "" || strings.Contains(name, "/") {
		return "", usagef("--subnet %q must be NETWORK/SUBNET, or the id of a subnet", text)
	}
	return api.SubnetPath("", network, name), nil
}

// networksView is a table of virtual networks.
func networksView(list []*client.VirtualNetwork, data any) view {
	v := view{data: data, header: []string{"NAME", "SPACE", "SUBNETS", "GROUPS"}}
	for _, n := range list {
		var subnets []string
		groups := 0
		for _, s := range n.Properties.Subnets {
			subnets = append(subnets, s.Name+"="+prefixOf(s))
			groups += len(s.Properties.Users)
		}
		v.rows = append(v.rows, []string{n.Name, strings.Join(n.Properties.AddressSpace.Prefixes, ","), strings.Join(subnets, ","), strconv.Itoa(groups)})
	}
	return v
}

// subnetsView is a table of subnets.
func subnetsView(list []*client.Subnet, data any) view {
	v := view{data: data, header: []string{"NAME", "RANGE", "GROUPS", "FREE"}}
	for _, s := range list {
		text, free := prefixOf(&s.Subnet), ""
		if p, err := netip.ParsePrefix(text); err == nil {
			free = strconv.Itoa(vnet.Size(p) - len(s.Properties.Users))
		}
		v.rows = append(v.rows, []string{s.Name, text, strconv.Itoa(len(s.Properties.Users)), free})
	}
	return v
}
