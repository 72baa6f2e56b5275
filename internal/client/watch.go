package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"spillway.dev/spillway/internal/arm"
)

// Types of watch events.
const (
	Added    = "ADDED"
	Modified = "MODIFIED"
	Deleted  = "DELETED"
	Bookmark = "BOOKMARK"
)

// maxEventLine bounds one line of a watch, in bytes.
const maxEventLine = 16 << 20

// WatchOptions choose what is watched.
type WatchOptions struct {
	ResourceGroup string // "" = the configuration's; "*" = the whole subscription
	Name          string // "" = all groups
	Revision      string // resume after it; "" = current state first
}

// Event is one line of a watch of groups, EventOf of any resource.
type Event = EventOf[Group]

// EventOf is one line of a watch.
type EventOf[T any] struct {
	Type     string `json:"type"`
	Object   *T     `json:"object"`
	Revision string `json:"revision"` // resume point after this event
}

// Watch is an open watch of groups, WatchOf of any resource.
type Watch = WatchOf[Group]

// WatchOf is an open watch.
type WatchOf[T any] struct {
	body io.ReadCloser
	scan *bufio.Scanner
	stop context.CancelFunc
}

// Watch opens a watch. Errors: gone, when the revision is too old.
func (c *Client) Watch(ctx context.Context, opt WatchOptions) (*Watch, error) {
	path := c.listPath(opt.ResourceGroup, arm.GroupType)
	if opt.Name != "" {
		path = c.GroupPath(opt.ResourceGroup, opt.Name)
	}
	return openWatch[Group](ctx, c, path, opt.Revision)
}

// WatchServiceAddresses opens a watch of the service addresses of a resource group, of the whole subscription when rg is
// "*"; with a revision it goes on after it. Errors: gone, when the revision is too old.
func (c *Client) WatchServiceAddresses(ctx context.Context, rg, revision string) (*WatchOf[ServiceAddress], error) {
	return openWatch[ServiceAddress](ctx, c, c.listPath(rg, arm.AddressType), revision)
}

func openWatch[T any](ctx context.Context, c *Client, path, revision string) (*WatchOf[T], error) {
	query := url.Values{"watch": {"true"}}
	if revision != "" {
		query.Set("revision", revision)
	}
	ctx, stop := context.WithCancel(ctx)
	resp, err := c.send(ctx, request{method: http.MethodGet, path: path, query: query})
	if err != nil {
		stop()
		return nil, err
	}
	scan := bufio.NewScanner(resp.Body)
	scan.Buffer(make([]byte, 0, 32<<10), maxEventLine)
	return &WatchOf[T]{body: resp.Body, scan: scan, stop: stop}, nil
}

// Next waits for the next event; io.EOF when the platform ended the watch.
func (w *WatchOf[T]) Next() (EventOf[T], error) {
	for w.scan.Scan() {
		if len(w.scan.Bytes()) == 0 {
			continue
		}
		var e EventOf[T]
		if err := json.Unmarshal(w.scan.Bytes(), &e); err != nil {
			return EventOf[T]{}, fmt.Errorf("read watch event: %w", err)
		}
		return e, nil
	}
	if err := w.scan.Err(); err != nil {
		return EventOf[T]{}, fmt.Errorf("read watch: %w", err)
	}
	return EventOf[T]{}, io.EOF
}

// Close ends the watch.
func (w *WatchOf[T]) Close() error {
	w.stop()
	return w.body.Close()
}
