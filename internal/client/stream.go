package client

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/coder/websocket"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/stream"
)

func (c *Client) containerPath(rg, name, container string) string {
	return c.GroupPath(rg, name) + "/containers/" + url.PathEscape(container)
}

// Target names a container. An empty Container is the group's only or first one.
type Target struct {
	ResourceGroup string
	Group         string
	Container     string
}

// resolve fills in the container's name.
func (c *Client) resolve(ctx context.Context, t Target) (Target, error) {
	if t.Container != "" {
		return t, nil
	}
	g, err := c.GetGroup(ctx, t.ResourceGroup, t.Group)
	if err != nil {
		return t, err
	}
	t.Container = g.Properties.Containers[0].Name
	return t, nil
}

// Logs writes a container's log to w; with Follow until the container or ctx ends.
func (c *Client) Logs(ctx context.Context, t Target, opt host.LogOptions, w io.Writer) error {
	t, err := c.resolve(ctx, t)
	if err != nil {
		return err
	}
	query := url.Values{"stream": {"true"}}
	if opt.Tail != 0 {
		query.Set("tail", strconv.Itoa(max(opt.Tail, 0)))
	}
	if !opt.Since.IsZero() {
		query.Set("since", opt.Since.UTC().Format(time.RFC3339Nano))
	}
	if opt.LimitBytes > 0 {
		query.Set("limitBytes", strconv.FormatInt(opt.LimitBytes, 10))
	}
	for name, on := range map[string]bool{"timestamps": opt.Timestamps, "follow": opt.Follow, "previous": opt.Previous} {
		if on {
			query.Set(name, "true")
		}
	}
	resp, err := c.send(ctx, request{method: http.MethodGet, path: c.containerPath(t.ResourceGroup, t.Group, t.Container) + "/logs", query: query})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil && ctx.Err() == nil {
		return fmt.Errorf("read log: %w", err)
	}
	return ctx.Err()
}

// Exec runs a command in a container and gives its exit code.
func (c *Client) Exec(ctx context.Context, t Target, req host.ExecRequest, s host.Streams) (int, error) {
	t, err := c.resolve(ctx, t)
	if err != nil {
		return 0, err
	}
	body := map[string]any{"command": req.Command, "tty": req.TTY, "stdin": req.Stdin, "terminalSize": map[string]any{"rows": req.Size.Rows, "cols": req.Size.Cols}}
	return c.interact(ctx, c.containerPath(t.ResourceGroup, t.Group, t.Container)+"/exec", body, s)
}

// Forward connects to a port of a group, as its own programs see it, until one side closes.
func (c *Client) Forward(ctx context.Context, rg, name string, port int, s io.ReadWriter) error {
	_, err := c.interact(ctx, c.GroupPath(rg, name)+"/portForward", map[string]int{"port": port}, host.Streams{Stdin: s, Stdout: s})
	return err
}

// Attach connects to a container's standard streams until it ends.
func (c *Client) Attach(ctx context.Context, t Target, s host.Streams) error {
	t, err := c.resolve(ctx, t)
	if err != nil {
		return err
	}
	_, err = c.interact(ctx, c.containerPath(t.ResourceGroup, t.Group, t.Container)+"/attach", nil, s)
	return err
}

// interact asks for a ticket, opens the WebSocket and carries the streams.
func (c *Client) interact(ctx context.Context, path string, body any, s host.Streams) (int, error) {
	var ticket struct {
		URI      string `json:"webSocketUri"`
		Password string `json:"password"`
	}
	if err := c.Do(ctx, Call{Method: http.MethodPost, Path: path, Body: body}, &ticket); err != nil {
		return 0, err
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	conn, err := c.dial(ctx, ticket.URI)
	if err != nil {
		return 0, err
	}
	defer conn.CloseNow()
	if err := conn.Write(ctx, websocket.MessageText, []byte(ticket.Password)); err != nil {
		return 0, fmt.Errorf("open stream: %w", err)
	}
	go sendInput(ctx, conn, s)
	return receive(ctx, conn, s)
}

func (c *Client) dial(ctx context.Context, uri string) (*websocket.Conn, error) {
	tlsConfig := c.tls.Clone()
	tlsConfig.NextProtos = []string{"http/1.1"} // a WebSocket needs it
	transport := &http.Transport{TLSClientConfig: tlsConfig, TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}}
	conn, resp, err := websocket.Dial(ctx, uri, &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: transport}, Subprotocols: []string{stream.Protocol},
	})
	if err != nil {
		if resp != nil && resp.StatusCode >= 400 {
			return nil, &fault.Error{Kind: fault.ForStatus(resp.StatusCode), Status: resp.StatusCode, Message: fmt.Sprintf("The platform refused the stream: %s.", resp.Status)}
		}
		return nil, c.unreachable(err)
	}
	conn.SetReadLimit(stream.MaxFrame)
	return conn, nil
}

// sendInput carries stdin and resizes until ctx ends. It may outlive the stream by one blocked read of stdin.
func sendInput(ctx context.Context, conn *websocket.Conn, s host.Streams) {
	if s.Resize != nil {
		go func() {
			for {
				select {
				case <-ctx.Done():
					return
				case size, ok := <-s.Resize:
					if !ok || conn.Write(ctx, websocket.MessageBinary, stream.MakeResize(size)) != nil {
						return
					}
				}
			}
		}()
	}
	if s.Stdin == nil {
		return
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := s.Stdin.Read(buf)
		if n > 0 && conn.Write(ctx, websocket.MessageBinary, stream.Make(stream.Stdin, buf[:n])) != nil {
			return
		}
		if err != nil {
			_ = conn.Write(ctx, websocket.MessageBinary, stream.Make(stream.StdinClosed, nil)) // the reader sees a broken stream
			return
		}
	}
}

// receive carries output until the exit frame.
func receive(ctx context.Context, conn *websocket.Conn, s host.Streams) (int, error) {
	for {
		_, message, err := conn.Read(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			if errors.Is(err, io.EOF) {
				err = errors.New("the platform has closed it")
			}
			return 0, fault.New(fault.Unavailable, "", "The stream broke off: %v. The command may still run in the container.", err)
		}
		f, err := stream.Parse(message)
		if err != nil {
			return 0, fmt.Errorf("read stream: %w", err)
		}
		var w io.Writer
		switch f.Channel {
		case stream.Stdout:
			w = s.Stdout
		case stream.Stderr:
			w = s.Stderr
		case stream.Exit:
			_ = conn.Close(websocket.StatusNormalClosure, "") // the result is already here
			return f.Result.ExitCode, resultError(f.Result)
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(f.Data); err != nil {
			return 0, fmt.Errorf("write output: %w", err)
		}
	}
}

func resultError(r stream.Result) error {
	if r.Error == nil {
		return nil
	}
	e := fault.New(fault.Conflict, r.Error.Code, "%s", r.Error.Message)
	for _, k := range []fault.Kind{fault.Invalid, fault.NotFound, fault.Denied, fault.Unavailable, fault.Internal} {
		if k.Row().Code == r.Error.Code {
			e.Kind = k
		}
	}
	return e
}

// lines reads newline-delimited JSON; a line with "error" ends it as that error.
func lines(body io.Reader, each func(json.RawMessage) error) error {
	dec := json.NewDecoder(body)
	for {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			if err == io.EOF {
				return nil
			}
			return fmt.Errorf("read progress: %w", err)
		}
		var failed struct {
			Error *stream.Error `json:"error"`
		}
		if json.Unmarshal(raw, &failed) == nil && failed.Error != nil {
			return resultError(stream.Result{Error: failed.Error})
		}
		if err := each(raw); err != nil {
			return err
		}
	}
}
