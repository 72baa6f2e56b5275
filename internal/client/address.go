package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"spillway.dev/spillway/internal/arm"
)

// ServiceAddress is a service address as the API shows it. It marshals to exactly the JSON that came.
type ServiceAddress struct {
	arm.Address
	Raw json.RawMessage
}

// UnmarshalJSON keeps the bytes beside the fields.
func (a *ServiceAddress) UnmarshalJSON(data []byte) error {
	return keep(data, &a.Raw, &a.Address)
}

// MarshalJSON gives the bytes that came.
func (a ServiceAddress) MarshalJSON() ([]byte, error) {
	return kept(a.Raw, a.Address)
}

// ServiceAddressPath is the path of a service address; rg as in ResourceGroupPath.
func (c *Client) ServiceAddressPath(rg, name string) string {
	return c.ResourceGroupPath(rg) + "/providers/" + arm.AddressType + "/" + url.PathEscape(name)
}

// PutServiceAddress creates or updates a service address; body is the resource (a struct such as arm.Address, or JSON
// as []byte).
func (c *Client) PutServiceAddress(ctx context.Context, rg, name string, body any) (*ServiceAddress, error) {
	var a ServiceAddress
	return &a, c.Do(ctx, Call{Method: http.MethodPut, Path: c.ServiceAddressPath(rg, name), Body: body}, &a)
}

// GetServiceAddress reads a service address.
func (c *Client) GetServiceAddress(ctx context.Context, rg, name string) (*ServiceAddress, error) {
	var a ServiceAddress
	return &a, c.Do(ctx, Call{Method: http.MethodGet, Path: c.ServiceAddressPath(rg, name)}, &a)
}

// ListServiceAddresses reads all service addresses of a resource group, of the whole subscription when rg is "*".
func (c *Client) ListServiceAddresses(ctx context.Context, rg string) ([]*ServiceAddress, error) {
	return list[ServiceAddress](ctx, c, c.listPath(rg, arm.AddressType))
}

// DeleteServiceAddress removes a service address. One that does not exist is a not-found error.
func (c *Client) DeleteServiceAddress(ctx context.Context, rg, name string) error {
	return c.deleteAtOnce(ctx, c.ServiceAddressPath(rg, name), fmt.Sprintf("The service address '%s' does not exist in resource group '%s'. 'spillway address ls' lists those that do.", name, c.rgName(rg)))
}

// list reads all pages of a list.
func list[T any](ctx context.Context, c *Client, path string) ([]*T, error) {
	query := url.Values{}
	var all []*T
	for {
		var page struct {
			Value []*T   `json:"value"`
			Next  string `json:"nextLink"`
		}
		if err := c.Do(ctx, Call{Method: http.MethodGet, Path: path, Query: query}, &page); err != nil {
			return nil, err
		}
		all = append(all, page.Value...)
		if page.Next == "" {
			return all, nil
		}
		next, err := url.Parse(page.Next)
		if err != nil {
			return nil, fmt.Errorf("read nextLink: %w", err)
		}
		query = next.Query()
	}
}
