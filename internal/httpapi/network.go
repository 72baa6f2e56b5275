package httpapi

import (
	"net/http"
	"net/netip"
	"strings"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/identity"
	"spillway.dev/spillway/internal/vnet"
)

// networkVersions are api-versions that the platform names to clients which look for one; every date is taken.
var networkVersions = []string{"2025-05-01", "2024-07-01", "2024-05-01", "2023-09-01", "2022-07-01", "2021-08-01", "2020-11-01", "2018-11-01", "2015-06-15"}

// networkRef is the virtual network that the path names.
func (c *call) networkRef() group.Ref {
	return group.Ref{Subscription: c.params["subscription"], ResourceGroup: c.params["resourceGroup"], Name: c.params["network"]}
}

// dated is the api-version of a call that takes any.
func (c *call) dated() arm.Version { return arm.DatedVersion(c.query("api-version")) }

// mayJoin checks the right to put a group into a subnet, which may be in another resource group.
func (a *api) mayJoin(c *call, s *group.Subnet) error {
	if s == nil || !strings.EqualFold(s.Network.Subscription, c.params["subscription"]) {
		return nil // there is no such subnet, as it will be told
	}
	return a.Identity.Authorize(c.principal, identity.JoinSubnets, arm.SubnetID(s.Network, s.Name))
}

func (a *api) putNetwork(c *call) error {
	ref := c.networkRef()
	if err := arm.CheckNetworkName("virtual network", ref.Name); err != nil {
		return err
	}
	body, err := c.body()
	if err != nil {
		return err
	}
	req, err := arm.DecodeNetwork(body, c.dated(), ref.Name)
	if err != nil {
		return err
	}
	res, err := a.Controller.PutNetwork(c.r.Context(), ref, req)
	return c.network(res, err)
}

func (a *api) tagNetwork(c *call) error {
	body, err := c.body()
	if err != nil {
		return err
	}
	tags, err := arm.DecodeTags(body, c.dated())
	if err != nil {
		return err
	}
	res, err := a.Controller.TagNetwork(c.r.Context(), c.networkRef(), tags)
	return c.network(res, err)
}

// network answers a write of a virtual network.
func (c *call) network(res controller.NetworkResult, err error) error {
	if err != nil {
		return err
	}
	status := http.StatusOK
	if res.Created {
		status = http.StatusCreated
	}
	return c.tagged(status, res.View, arm.RenderNetwork(res.View))
}

// tagged answers with the entity tag of a virtual network.
func (c *call) tagged(status int, v arm.NetworkView, body any) error {
	c.w.Header().Set("ETag", arm.NetworkTag(v.Network))
	return c.answer(status, body)
}

func (a *api) getNetwork(c *call) error {
	v, err := a.Controller.Network(c.networkRef())
	if err != nil {
		return err
	}
	return c.tagged(http.StatusOK, v, arm.RenderNetwork(v))
}

func (a *api) deleteNetwork(c *call) error {
	return c.deleted(a.Controller.DeleteNetwork(c.r.Context(), c.networkRef()))
}

// deleted answers a deletion that is done at once.
func (c *call) deleted(err error) error {
	switch {
	case fault.KindOf(err) == fault.NotFound:
		return c.empty(http.StatusNoContent)
	case err != nil:
		return err
	}
	return c.empty(http.StatusOK)
}

func (a *api) listNetworks(c *call) error {
	filter := controller.Filter{Subscription: c.params["subscription"], ResourceGroup: c.params["resourceGroup"]}
	if filter.ResourceGroup != "" {
		if _, err := a.Controller.ResourceGroup(filter.Subscription, filter.ResourceGroup); err != nil {
			return err
		}
	}
	views, next, err := cut(c, a.Controller.Networks(filter))
	if err != nil {
		return err
	}
	items := make([]*arm.Network, 0, len(views))
	for _, v := range views {
		items = append(items, arm.RenderNetwork(v))
	}
	return c.answer(http.StatusOK, page{Value: items, NextLink: next})
}

func (a *api) listSubnets(c *call) error {
	v, err := a.Controller.Network(c.networkRef())
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, page{Value: arm.RenderNetwork(v).Properties.Subnets})
}

func (a *api) getSubnet(c *call) error {
	v, s, err := a.Controller.Subnet(c.networkRef(), c.params["subnet"])
	if err != nil {
		return err
	}
	return c.tagged(http.StatusOK, v, arm.RenderSubnet(v, s))
}

func (a *api) putSubnet(c *call) error {
	name := c.params["subnet"]
	if err := arm.CheckNetworkName("subnet", name); err != nil {
		return err
	}
	body, err := c.body()
	if err != nil {
		return err
	}
	s, err := arm.DecodeSubnet(body, c.dated(), name)
	if err != nil {
		return err
	}
	v, created, err := a.Controller.PutSubnet(c.r.Context(), c.networkRef(), s)
	if err != nil {
		return err
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	return c.tagged(status, v, arm.RenderSubnet(v, v.Network.Subnet(name)))
}

func (a *api) deleteSubnet(c *call) error {
	return c.deleted(a.Controller.DeleteSubnet(c.r.Context(), c.networkRef(), c.params["subnet"]))
}

// checkAddress says whether a group could have an address.
func (a *api) checkAddress(c *call) error {
	addr, err := netip.ParseAddr(c.query("ipAddress"))
	if err != nil || !addr.Is4() {
		return fault.New(fault.Invalid, "InvalidQueryParameterValue", "The query parameter 'ipAddress' must be an IPv4 address, got %s.", quoted(c.query("ipAddress")))
	}
	free, others, err := a.Controller.CheckAddress(c.networkRef(), addr)
	if err != nil {
		return err
	}
	body := map[string]any{"available": free, "isPlatformReserved": false}
	if len(others) > 0 {
		body["availableIPAddresses"] = others
	}
	return c.answer(http.StatusOK, body)
}

// networkUsages counts the addresses of each subnet.
func (a *api) networkUsages(c *call) error {
	v, err := a.Controller.Network(c.networkRef())
	if err != nil {
		return err
	}
	items := []map[string]any{}
	for i := range v.Network.Subnets {
		s := &v.Network.Subnets[i]
		items = append(items, map[string]any{"id": arm.SubnetID(v.Network.Ref, s.Name), "currentValue": len(arm.Users(v, s.Prefix)), "limit": vnet.Size(s.Prefix),
			"unit": "Count", "name": map[string]string{"value": "SubnetSpace", "localizedValue": "Subnet size and usage"}})
	}
	return c.answer(http.StatusOK, page{Value: items})
}
