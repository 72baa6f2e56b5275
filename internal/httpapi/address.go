package httpapi

import (
	"net/http"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/identity"
)

// addressRef is the service address that the path names.
func (c *call) addressRef() group.Ref {
	return group.Ref{Subscription: c.params["subscription"], ResourceGroup: c.params["resourceGroup"], Name: c.params["address"]}
}

func (a *api) putAddress(c *call) error {
	ref := c.addressRef()
	if err := arm.CheckAddressName(ref.Name); err != nil {
		return err
	}
	body, err := c.body()
	if err != nil {
		return err
	}
	req, err := arm.DecodeAddress(body, c.version, ref.Name)
	if err != nil {
		return err
	}
	// Hosts are the whole platform's: the right to lead to them is not one on a resource group.
	if req.Spec.HostEndpoints {
		if err := a.Identity.Authorize(c.principal, identity.OpenHosts, "/"); err != nil {
			return err
		}
	}
	// What hosts send to its address goes where its owner says: that is as much as their network.
	if req.Spec.FromHosts {
		if err := a.hostAccess(c, []group.Need{{Access: group.AccessNetwork, Field: "properties.fromHosts"}}); err != nil {
			return err
		}
	}
	res, err := a.Controller.PutAddress(c.r.Context(), ref, req)
	if err != nil {
		return err
	}
	status := http.StatusOK
	if res.Created {
		status = http.StatusCreated
	}
	return c.answer(status, arm.RenderAddress(res.View))
}

func (a *api) getAddress(c *call) error {
	if c.query("watch") == "true" {
		return a.watchAddresses(c, controller.Filter(c.addressRef()))
	}
	v, err := a.Controller.Address(c.addressRef())
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, arm.RenderAddress(v))
}

func (a *api) deleteAddress(c *call) error {
	v, err := a.Controller.DeleteAddress(c.r.Context(), c.addressRef())
	if fault.KindOf(err) == fault.NotFound {
		return c.empty(http.StatusNoContent)
	}
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, arm.RenderAddress(v))
}

func (a *api) listAddresses(c *call) error {
	filter := controller.Filter{Subscription: c.params["subscription"], ResourceGroup: c.params["resourceGroup"]}
	if filter.ResourceGroup != "" {
		if _, err := a.Controller.ResourceGroup(filter.Subscription, filter.ResourceGroup); err != nil {
			return err
		}
	}
	if c.query("watch") == "true" {
		return a.watchAddresses(c, filter)
	}
	views, next, err := cut(c, a.Controller.Addresses(filter))
	if err != nil {
		return err
	}
	items := make([]*arm.Address, 0, len(views))
	for _, v := range views {
		items = append(items, arm.RenderAddress(v))
	}
	return c.answer(http.StatusOK, page{Value: items, NextLink: next})
}

func (a *api) watchAddresses(c *call, filter controller.Filter) error {
	w, views, err := a.Controller.WatchAddresses(filter, c.query("revision"))
	if err != nil {
		return err
	}
	return watch(a, c, w, watched[arm.AddressView]{views, func(v arm.AddressView) any { return arm.RenderAddress(v) }})
}
