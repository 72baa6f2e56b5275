package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
)

// VirtualNetwork is a virtual network as the API shows it. It marshals to exactly the JSON that came.
type VirtualNetwork struct {
	arm.Network
	Raw json.RawMessage
}

// UnmarshalJSON keeps the bytes beside the fields.
func (n *VirtualNetwork) UnmarshalJSON(data []byte) error {
	return keep(data, &n.Raw, &n.Network)
}

// MarshalJSON gives the bytes that came.
func (n VirtualNetwork) MarshalJSON() ([]byte, error) {
	return kept(n.Raw, n.Network)
}

// Subnet is a subnet as the API shows it. It marshals to exactly the JSON that came.
type Subnet struct {
	arm.Subnet
	Raw json.RawMessage
}

// UnmarshalJSON keeps the bytes beside the fields.
func (s *Subnet) UnmarshalJSON(data []byte) error {
	return keep(data, &s.Raw, &s.Subnet)
}

// MarshalJSON gives the bytes that came.
func (s Subnet) MarshalJSON() ([]byte, error) {
	return kept(s.Raw, s.Subnet)
}

// NetworkPath is the path of a virtual network; rg as in ResourceGroupPath.
func (c *Client) NetworkPath(rg, name string) string {
	return c.ResourceGroupPath(rg) + "/providers/" + arm.NetworkType + "/" + url.PathEscape(name)
}

// SubnetPath is the path of a subnet, which is its id as well.
func (c *Client) SubnetPath(rg, network, name string) string {
	return c.NetworkPath(rg, network) + "/subnets/" + url.PathEscape(name)
}

// PutNetwork creates or updates a virtual network.
func (c *Client) PutNetwork(ctx context.Context, rg, name string, body any) (*VirtualNetwork, error) {
	var n VirtualNetwork
	return &n, c.Do(ctx, Call{Method: http.MethodPut, Path: c.NetworkPath(rg, name), Body: body}, &n)
}

// GetNetwork reads a virtual network.
func (c *Client) GetNetwork(ctx context.Context, rg, name string) (*VirtualNetwork, error) {
	var n VirtualNetwork
	return &n, c.Do(ctx, Call{Method: http.MethodGet, Path: c.NetworkPath(rg, name)}, &n)
}

// ListNetworks reads all virtual networks of a resource group, of the whole subscription when rg is "*".
func (c *Client) ListNetworks(ctx context.Context, rg string) ([]*VirtualNetwork, error) {
	return list[VirtualNetwork](ctx, c, c.listPath(rg, arm.NetworkType))
}

// DeleteNetwork removes a virtual network. One that does not exist is a not-found error.
func (c *Client) DeleteNetwork(ctx context.Context, rg, name string) error {
	return c.deleteAtOnce(ctx, c.NetworkPath(rg, name), fmt.Sprintf("The virtual network '%s' does not exist in resource group '%s'. 'spillway network ls' lists those that do.", name, c.rgName(rg)))
}

// PutSubnet creates or updates a subnet.
func (c *Client) PutSubnet(ctx context.Context, rg, network, name string, body any) (*Subnet, error) {
	var s Subnet
	return &s, c.Do(ctx, Call{Method: http.MethodPut, Path: c.SubnetPath(rg, network, name), Body: body}, &s)
}

// ListSubnets reads all subnets of a virtual network.
func (c *Client) ListSubnets(ctx context.Context, rg, network string) ([]*Subnet, error) {
	return list[Subnet](ctx, c, c.NetworkPath(rg, network)+"/subnets")
}

// DeleteSubnet removes a subnet. One that does not exist is a not-found error.
func (c *Client) DeleteSubnet(ctx context.Context, rg, network, name string) error {
	return c.deleteAtOnce(ctx, c.SubnetPath(rg, network, name), fmt.Sprintf("The subnet '%s' does not exist in virtual network '%s'. 'spillway network subnet ls %s' lists those that do.", name, network, network))
}

// deleteAtOnce removes what goes without a long operation.
func (c *Client) deleteAtOnce(ctx context.Context, path, missing string) error {
	resp, err := c.send(ctx, request{method: http.MethodDelete, path: path})
	if err != nil {
		return err
	}
	if err := resp.Body.Close(); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode == http.StatusNoContent {
		return fault.New(fault.NotFound, "", "%s", missing)
	}
	return nil
}
