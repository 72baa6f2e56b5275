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

// Event is one line of a watch.
type Event struct {
	Type     string `json:"type"`
	Object   *Group `json:"object"`
	Revision string `json:"revision"` // resume point after this event
}

// Watch is an open watch.
type Watch struct {
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
	query := url.Values{"watch": {"true"}}
	if opt.Revision != "" {
		query.Set("revision", opt.Revision)
	}
	ctx, stop := context.WithCancel(ctx)
	resp, err := c.send(ctx, request{method: http.MethodGet, path: path, query: query})
	if err != nil {
		stop()
		return nil, err
	}
	scan := bufio.NewScanner(resp.Body)
	scan.Buffer(make([]byte, 0, 32<<10), maxEventLine)
	return &Watch{body: resp.Body, scan: scan, stop: stop}, nil
}

// Next waits for the next event; io.EOF when the platform ended the watch.
func (w *Watch) Next() (Event, error) {
	for w.scan.Scan() {
		if len(w.scan.Bytes()) == 0 {
			continue
		}
		var e Event
		if err := json.Unmarshal(w.scan.Bytes(), &e); err != nil {
			return Event{}, fmt.Errorf("read watch event: %w", err)
		}
		return e, nil
	}
	if err := w.scan.Err(); err != nil {
		return Event{}, fmt.Errorf("read watch: %w", err)
	}
	return Event{}, io.EOF
}

// Close ends the watch.
func (w *Watch) Close() error {
	w.stop()
	return w.body.Close()
}
