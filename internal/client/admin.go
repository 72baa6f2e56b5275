package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// platformPath is the provider of what only Spillway has.
const platformPath = "/providers/Spillway.Platform"

// ResourceGroup is a resource group.
type ResourceGroup struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Type       string            `json:"type"`
	Location   string            `json:"location"`
	Tags       map[string]string `json:"tags"`
	Properties struct {
		ProvisioningState string `json:"provisioningState"`
	} `json:"properties"`
}

// PutResourceGroup creates or updates a resource group.
func (c *Client) PutResourceGroup(ctx context.Context, name string, tags map[string]string) (*ResourceGroup, error) {
	var rg ResourceGroup
	return &rg, c.Do(ctx, Call{Method: http.MethodPut, Path: c.ResourceGroupPath(name), Body: map[string]any{"location": c.cfg.Location, "tags": tags}}, &rg)
}

// GetResourceGroup reads a resource group.
func (c *Client) GetResourceGroup(ctx context.Context, name string) (*ResourceGroup, error) {
	var rg ResourceGroup
	return &rg, c.Do(ctx, Call{Method: http.MethodGet, Path: c.ResourceGroupPath(name)}, &rg)
}

// ListResourceGroups reads all resource groups of the subscription.
func (c *Client) ListResourceGroups(ctx context.Context) ([]ResourceGroup, error) {
	var page struct {
		Value []ResourceGroup `json:"value"`
	}
	err := c.Do(ctx, Call{Method: http.MethodGet, Path: "/subscriptions/" + url.PathEscape(c.cfg.SubscriptionID) + "/resourceGroups"}, &page)
	return page.Value, err
}

// DeleteResourceGroup asks for the deletion of a resource group and all its groups.
func (c *Client) DeleteResourceGroup(ctx context.Context, name string) error {
	return c.Do(ctx, Call{Method: http.MethodDelete, Path: c.ResourceGroupPath(name)}, nil)
}

// Hosts lists the hosts.
func (c *Client) Hosts(ctx context.Context) ([]host.Host, error) {
	var page struct {
		Value []host.Host `json:"value"`
	}
	err := c.Do(ctx, Call{Method: http.MethodGet, Path: platformPath + "/hosts"}, &page)
	return page.Value, err
}

// Host reads one host.
func (c *Client) Host(ctx context.Context, name string) (*host.Host, error) {
	var h host.Host
	return &h, c.Do(ctx, Call{Method: http.MethodGet, Path: platformPath + "/hosts/" + url.PathEscape(name)}, &h)
}

// HostAction does cordon, uncordon or drain.
func (c *Client) HostAction(ctx context.Context, name, verb string) (*host.Host, error) {
	var h host.Host
	return &h, c.Do(ctx, Call{Method: http.MethodPost, Path: platformPath + "/hosts/" + url.PathEscape(name) + "/" + verb}, &h)
}

// RemoveHost forgets a host that has no groups.
func (c *Client) RemoveHost(ctx context.Context, name string) (*host.Host, error) {
	var h host.Host
	return &h, c.Do(ctx, Call{Method: http.MethodDelete, Path: platformPath + "/hosts/" + url.PathEscape(name)}, &h)
}

// JoinToken is a token with which one host can join.
type JoinToken struct {
	ID      string    `json:"id"`
	Token   string    `json:"token"`
	Host    string    `json:"host,omitempty"` // the only one that it is good for
	Pool    string    `json:"pool,omitempty"` // that the host will be in
	Expires time.Time `json:"expires"`
}

// CreateToken makes a join token; of t, Host and Pool count. life 0 is the platform's default.
func (c *Client) CreateToken(ctx context.Context, t JoinToken, life time.Duration) (*JoinToken, error) {
	var out JoinToken
	return &out, c.Do(ctx, Call{Method: http.MethodPost, Path: platformPath + "/tokens", Body: map[string]any{"host": t.Host, "pool": t.Pool, "lifeSeconds": int64(life / time.Second)}}, &out)
}

// HostImage is an image with the host that has it.
type HostImage struct {
	host.Image
	Host string `json:"host"`
}

// Images lists the images of all hosts.
func (c *Client) Images(ctx context.Context) ([]HostImage, error) {
	var page struct {
		Value []HostImage `json:"value"`
	}
	err := c.Do(ctx, Call{Method: http.MethodGet, Path: platformPath + "/images"}, &page)
	return page.Value, err
}

// PullImage fetches an image on every host that takes groups.
func (c *Client) PullImage(ctx context.Context, ref string, creds []group.RegistryCredential, progress func(host.Progress)) (*host.Image, error) {
	body, err := json.Marshal(map[string]any{"image": ref, "imageRegistryCredentials": creds})
	if err != nil {
		return nil, fmt.Errorf("write request body: %w", err)
	}
	resp, err := c.send(ctx, request{method: http.MethodPost, path: platformPath + "/images/pull", body: bytes.NewReader(body)})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var image *host.Image
	err = lines(resp.Body, func(raw json.RawMessage) error {
		var line struct {
			Progress *host.Progress `json:"progress"`
			Image    *host.Image    `json:"image"`
		}
		if err := json.Unmarshal(raw, &line); err != nil {
			return fmt.Errorf("read progress: %w", err)
		}
		if line.Progress != nil && progress != nil {
			progress(*line.Progress)
		}
		if line.Image != nil {
			image = line.Image
		}
		return nil
	})
	if err == nil && image == nil {
		err = fault.New(fault.Unavailable, "", "The pull of '%s' broke off. Try again; what was fetched is kept.", ref)
	}
	return image, err
}

// ImportImage sends a docker archive or an OCI archive to every host that takes groups.
func (c *Client) ImportImage(ctx context.Context, archive io.Reader) ([]host.Image, error) {
	resp, err := c.send(ctx, request{method: http.MethodPost, path: platformPath + "/images/import", body: onlyReader{archive}, kind: "application/x-tar"})
	if err != nil {
		return nil, err
	}
	var page struct {
		Value []host.Image `json:"value"`
	}
	err = readJSON(resp, &page)
	return page.Value, err
}

// onlyReader hides what else a reader can do, so that a large file is streamed and never sent twice.
type onlyReader struct{ io.Reader }

// RemoveImage forgets an image reference on every host.
func (c *Client) RemoveImage(ctx context.Context, ref string) error {
	return c.Do(ctx, Call{Method: http.MethodDelete, Path: platformPath + "/images", Query: url.Values{"image": {ref}}}, nil)
}

// Usage is one line of the usage of a location.
type Usage struct {
	ID      string `json:"id"`
	Unit    string `json:"unit"`
	Current int64  `json:"currentValue"`
	Limit   int64  `json:"limit"`
	Name    struct {
		Value     string `json:"value"`
		Localized string `json:"localizedValue"`
	} `json:"name"`
}

// Usages reads what the subscription uses of its location.
func (c *Client) Usages(ctx context.Context) ([]Usage, error) {
	var page struct {
		Value []Usage `json:"value"`
	}
	err := c.Do(ctx, Call{Method: http.MethodGet, Path: "/subscriptions/" + url.PathEscape(c.cfg.SubscriptionID) + "/providers/Microsoft.ContainerInstance/locations/" + url.PathEscape(c.cfg.Location) + "/usages"}, &page)
	return page.Value, err
}
