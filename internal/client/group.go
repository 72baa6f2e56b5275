package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/host"
)

// Parts of a group.
type (
	Container     = arm.Container
	ContainerView = arm.ContainerView
	Moment        = arm.Moment
	GroupEvent    = arm.Event
)

// Group is a container group as the API shows it. It marshals to exactly the JSON that came.
type Group struct {
	arm.Resource
	Raw json.RawMessage
}

// UnmarshalJSON keeps the bytes beside the fields.
func (g *Group) UnmarshalJSON(data []byte) error {
	return keep(data, &g.Raw, &g.Resource)
}

// MarshalJSON gives the bytes that came.
func (g Group) MarshalJSON() ([]byte, error) {
	return kept(g.Raw, g.Resource)
}

// State is the state of the group's instance view, "" when the answer had none.
func (g *Group) State() string {
	if g.Properties.InstanceView == nil {
		return ""
	}
	return g.Properties.InstanceView.State
}

// ResourceGroupPath is the path of a resource group; "" names the configuration's own.
func (c *Client) ResourceGroupPath(rg string) string {
	if rg == "" {
		rg = c.cfg.ResourceGroup
	}
	return "/subscriptions/" + url.PathEscape(c.cfg.SubscriptionID) + "/resourceGroups/" + url.PathEscape(rg)
}

// GroupPath is the path of a container group.
func (c *Client) GroupPath(rg, name string) string {
	return c.ResourceGroupPath(rg) + "/providers/" + arm.GroupType + "/" + url.PathEscape(name)
}

// PutGroup creates or updates a group; body is the resource (a struct, or JSON as []byte).
func (c *Client) PutGroup(ctx context.Context, rg, name string, body any) (*Group, error) {
	var g Group
	return &g, c.Do(ctx, Call{Method: http.MethodPut, Path: c.GroupPath(rg, name), Body: body}, &g)
}

// Explanation says where a group would go, and what every host says to it.
type Explanation struct {
	Host    string   `json:"host,omitempty"`
	Reason  string   `json:"reason,omitempty"`
	Victims []string `json:"victims,omitempty"` // Spot groups that would have to leave Victim
	Victim  string   `json:"victimHost,omitempty"`
	Hosts   []struct {
		Host   string `json:"host"`
		Fits   bool   `json:"fits"`
		Reason string `json:"reason"`
	} `json:"hosts"`
}

// ExplainPlacement says where the group of a body, as PutGroup takes it, would go now. Nothing is created.
func (c *Client) ExplainPlacement(ctx context.Context, rg, name string, body any) (*Explanation, error) {
	var x Explanation
	return &x, c.Do(ctx, Call{Method: http.MethodPost, Path: c.GroupPath(rg, name) + "/explainPlacement", Body: body}, &x)
}

// GetGroup reads a group.
func (c *Client) GetGroup(ctx context.Context, rg, name string) (*Group, error) {
	var g Group
	return &g, c.Do(ctx, Call{Method: http.MethodGet, Path: c.GroupPath(rg, name)}, &g)
}

// ListGroups reads all groups of a resource group, of the whole subscription when rg is "*".
func (c *Client) ListGroups(ctx context.Context, rg string) ([]*Group, error) {
	return list[Group](ctx, c, c.listPath(rg, arm.GroupType))
}

// listPath is the path of a list of resources of one type.
func (c *Client) listPath(rg, kind string) string {
	if rg == "*" {
		return "/subscriptions/" + url.PathEscape(c.cfg.SubscriptionID) + "/providers/" + kind
	}
	return c.ResourceGroupPath(rg) + "/providers/" + kind
}

// PatchTags replaces the tags of a group.
func (c *Client) PatchTags(ctx context.Context, rg, name string, tags map[string]string) (*Group, error) {
	var g Group
	return &g, c.Do(ctx, Call{Method: http.MethodPatch, Path: c.GroupPath(rg, name), Body: map[string]any{"tags": tags}}, &g)
}

// PatchGroup changes what of a group can change while it runs; body is as the API takes it.
func (c *Client) PatchGroup(ctx context.Context, rg, name string, body any) (*Group, error) {
	var g Group
	return &g, c.Do(ctx, Call{Method: http.MethodPatch, Path: c.GroupPath(rg, name), Body: body}, &g)
}

// DeleteGroupWithin asks for a group's deletion with another grace period, in seconds, than the group's own; nil keeps
// that. A group that does not exist is a not-found error.
func (c *Client) DeleteGroupWithin(ctx context.Context, rg, name string, grace *int64) error {
	query := url.Values{}
	if grace != nil {
		query.Set("gracePeriodSeconds", strconv.FormatInt(*grace, 10))
	}
	_, err := c.deleteGroup(ctx, rg, name, query)
	return err
}

// deleteGroup asks for a deletion and gives the status of the answer.
func (c *Client) deleteGroup(ctx context.Context, rg, name string, query url.Values) (int, error) {
	resp, err := c.send(ctx, request{method: http.MethodDelete, path: c.GroupPath(rg, name), query: query})
	if err != nil {
		return 0, err
	}
	if err := resp.Body.Close(); err != nil {
		return 0, fmt.Errorf("read answer: %w", err)
	}
	if resp.StatusCode == http.StatusNoContent {
		return 0, fault.New(fault.NotFound, "", "The container group '%s' does not exist in resource group '%s'. 'spillway ps' lists those that do.", name, c.rgName(rg))
	}
	return resp.StatusCode, nil
}

// DeleteGroup asks for a group's deletion and, with wait, returns when nothing is left of it. A group that does not
// exist is a not-found error.
func (c *Client) DeleteGroup(ctx context.Context, rg, name string, wait bool) error {
	status, err := c.deleteGroup(ctx, rg, name, nil)
	if err == nil && status == http.StatusAccepted && wait {
		return c.awaitGone(ctx, rg, name)
	}
	return err
}

func (c *Client) rgName(rg string) string {
	if rg == "" {
		return c.cfg.ResourceGroup
	}
	return rg
}

// awaitGone returns when a watch says that the group is no more.
func (c *Client) awaitGone(ctx context.Context, rg, name string) error {
	for {
		w, err := c.Watch(ctx, WatchOptions{ResourceGroup: rg, Name: name})
		if err != nil {
			return err
		}
		gone, err := sawDelete(w)
		_ = w.Close()
		if gone || ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && fault.KindOf(err) != fault.Gone {
			select { // the platform is restarting
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
}

// sawDelete reads a watch of one group until the group is gone.
func sawDelete(w *Watch) (bool, error) {
	there := false
	for {
		e, err := w.Next()
		switch {
		case err != nil:
			return false, err
		case e.Type == Deleted, e.Type == Bookmark && !there:
			return true, nil
		case e.Type == Added:
			there = true
		}
	}
}

// Start starts a stopped or ended group.
func (c *Client) Start(ctx context.Context, rg, name string) error {
	return c.action(ctx, rg, name, "start")
}

// Stop stops a group; it returns when the group is down, or the platform has given up waiting.
func (c *Client) Stop(ctx context.Context, rg, name string) error {
	return c.action(ctx, rg, name, "stop")
}

// Restart starts all containers of a group afresh.
func (c *Client) Restart(ctx context.Context, rg, name string) error {
	return c.action(ctx, rg, name, "restart")
}

func (c *Client) action(ctx context.Context, rg, name, verb string) error {
	return c.Do(ctx, Call{Method: http.MethodPost, Path: c.GroupPath(rg, name) + "/" + verb}, nil)
}

// Stats measures a group now.
func (c *Client) Stats(ctx context.Context, rg, name string) (*host.Stats, error) {
	var s host.Stats
	return &s, c.Do(ctx, Call{Method: http.MethodGet, Path: c.GroupPath(rg, name) + "/stats"}, &s)
}

// GroupStats is what one group uses.
type GroupStats struct {
	Name  string     `json:"name"`
	Stats host.Stats `json:"stats"`
}

// ListStats measures every running group of a resource group now.
func (c *Client) ListStats(ctx context.Context, rg string) ([]GroupStats, error) {
	var list struct {
		Value []GroupStats `json:"value"`
	}
	err := c.Do(ctx, Call{Method: http.MethodGet, Path: c.ResourceGroupPath(rg) + "/providers/Microsoft.ContainerInstance/containerGroupStats"}, &list)
	return list.Value, err
}

// Healthy says whether the platform answers.
func (c *Client) Healthy(ctx context.Context) error {
	return c.Do(ctx, Call{Method: http.MethodGet, Path: "/healthz"}, nil)
}

// WaitFor watches a group until done says so. It follows the group over restarts of the platform.
func (c *Client) WaitFor(ctx context.Context, rg, name string, done func(*Group) (bool, error)) (*Group, error) {
	for {
		g, err := c.waitOnce(ctx, rg, name, done)
		if err == nil || ctx.Err() != nil || !errors.Is(err, errRewatch) {
			return g, err
		}
	}
}

// errRewatch says that a watch ended for a reason of the connection, not of the group.
var errRewatch = errors.New("watch again")

func (c *Client) waitOnce(ctx context.Context, rg, name string, done func(*Group) (bool, error)) (*Group, error) {
	w, err := c.Watch(ctx, WatchOptions{ResourceGroup: rg, Name: name})
	if err != nil {
		return nil, err
	}
	defer w.Close()
	there := false
	for {
		e, err := w.Next()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errRewatch, err)
		}
		if e.Type == Deleted || e.Type == Bookmark && !there {
			return nil, fault.New(fault.NotFound, "", "The container group '%s' does not exist in resource group '%s'. 'spillway ps' lists those that do.", name, c.rgName(rg))
		}
		if e.Object == nil {
			continue
		}
		there = true
		if ok, err := done(e.Object); ok || err != nil {
			return e.Object, err
		}
	}
}
