package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// linkOf finds the host of a group. Errors: conflict, while it has none; unavailable.
func (a *api) linkOf(g *group.Group) (host.Link, error) {
	if g.Host == "" {
		return nil, fault.New(fault.Conflict, "ContainerGroupWaiting", "The container group '%s' is on no host: it waits for room, or was stopped while it waited. See its events.", g.Ref.Name)
	}
	if l, ok := a.Controller.Host(g.Host); ok {
		return l, nil
	}
	return nil, fault.New(fault.Unavailable, "HostNotConnected", "The host '%s' of container group '%s' is not connected. Try again when it is back.", g.Host, g.Ref.Name)
}

// target finds the group and the link that a container call is about. Errors: not-found.
func (a *api) target(c *call) (arm.View, host.Link, error) {
	v, err := a.Controller.Get(c.ref())
	if err != nil {
		return v, nil, err
	}
	name := c.params["container"]
	for _, list := range [][]group.Container{v.Group.Spec.Containers, v.Group.Spec.InitContainers, v.Group.Spec.Ephemeral} {
		for i := range list {
			if list[i].Name == name {
				link, err := a.linkOf(v.Group)
				return v, link, err
			}
		}
	}
	return v, nil, fault.New(fault.NotFound, "ContainerNotFound", "The container '%.80s' does not exist in container group '%s'.", name, v.Group.Ref.Name)
}

// started says whether a container of this name has ever run in the present epoch.
func started(v arm.View, name string) bool {
	if v.Status == nil {
		return false
	}
	for _, s := range v.Status.All() {
		if s.Name == name && (!s.Current.Start.IsZero() || s.Previous != nil) {
			return true
		}
	}
	return false
}

// logs answers {"content"} as Azure does or, in Spillway's version with stream or follow, plain text as it comes.
func (a *api) logs(c *call) error {
	v, link, err := a.target(c)
	homeless := err != nil && v.Group != nil && v.Group.Host == "" && fault.KindOf(err) == fault.Conflict
	if err != nil && !homeless {
		return err
	}
	opt, push, err := c.logOptions()
	if err != nil {
		return err
	}
	name := c.params["container"]
	if homeless && !push { // it has not started, and has no log yet
		return c.answer(http.StatusOK, map[string]string{"content": ""})
	}
	if push {
		return a.pushLogs(c, link, v, opt)
	}
	opt.LimitBytes = group.MaxLogAnswer
	var buf bytes.Buffer
	err = link.Logs(c.r.Context(), v.Group.UID, name, opt, &tailBuffer{max: group.MaxLogAnswer, buf: &buf})
	if err != nil && (fault.KindOf(err) != fault.NotFound || started(v, name)) {
		return err
	}
	return c.answer(http.StatusOK, map[string]string{"content": buf.String()}) // empty before the first start
}

// tailBuffer keeps the last max bytes.
type tailBuffer struct {
	max int
	buf *bytes.Buffer
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.buf.Write(p)
	if over := t.buf.Len() - t.max; over > 0 {
		t.buf.Next(over)
	}
	return len(p), nil
}

// logOptions reads the query. push: the answer is text that comes bit by bit.
func (c *call) logOptions() (opt host.LogOptions, push bool, err error) {
	flag := func(name string) bool {
		s := c.query(name)
		on, parseErr := strconv.ParseBool(s)
		if s != "" && parseErr != nil && err == nil {
			err = fault.New(fault.Invalid, "InvalidQueryParameterValue", "The query parameter '%s' must be true or false, got %s.", name, quoted(s))
		}
		return on
	}
	opt.Timestamps, opt.Follow, opt.Previous = flag("timestamps"), flag("follow"), flag("previous")
	push = flag("stream") || opt.Follow
	if s := c.query("tail"); s != "" {
		n, parseErr := strconv.ParseInt(s, 10, 32)
		if parseErr != nil || n < 0 {
			return opt, push, fault.New(fault.Invalid, "InvalidQueryParameterValue", "The query parameter 'tail' must be a whole number from 0, got %s.", quoted(s))
		}
		if opt.Tail = int(n); n == 0 {
			opt.Tail = -1
		}
	}
	if s := c.query("since"); s != "" {
		t, parseErr := time.Parse(time.RFC3339Nano, s)
		if parseErr != nil {
			return opt, push, fault.New(fault.Invalid, "InvalidQueryParameterValue", "The query parameter 'since' must be a time such as 2026-01-02T15:04:05Z, got %s.", quoted(s))
		}
		opt.Since = t
	}
	if s := c.query("limitBytes"); s != "" {
		n, parseErr := strconv.ParseInt(s, 10, 64)
		if parseErr != nil || n < 1 {
			return opt, push, fault.New(fault.Invalid, "InvalidQueryParameterValue", "The query parameter 'limitBytes' must be a whole number above 0, got %s.", quoted(s))
		}
		opt.LimitBytes = n
	}
	own := push || opt.Previous || !opt.Since.IsZero() || opt.LimitBytes > 0
	if err == nil && own && !c.version.Superset {
		err = fault.New(fault.Invalid, "InvalidQueryParameter", "The query parameters stream, follow, since, previous and limitBytes do not exist in api-version %s. They exist in api-version %s.", c.version.Name, arm.Superset)
	}
	return opt, push, err
}

// pushLogs sends a log as it grows. A follower of a container that has not started yet waits for it.
func (a *api) pushLogs(c *call, link host.Link, v arm.View, opt host.LogOptions) error {
	done, err := a.openStream()
	if err != nil {
		return err
	}
	defer done()
	name := c.params["container"]
	if opt.Follow && !opt.Previous && !started(v, name) {
		c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		c.w.WriteHeader(http.StatusOK)
		_ = http.NewResponseController(c.w).Flush() // a caller that is gone ends its context
		if err := a.awaitStart(c.r.Context(), v.Group.Ref, name); err != nil {
			return nil
		}
		if v, err = a.Controller.Get(v.Group.Ref); err != nil {
			return nil
		}
		link, _ = a.linkOf(v.Group)
	}
	out := &flushWriter{w: c.w, control: http.NewResponseController(c.w)}
	if link == nil { // a group that waits for room has written nothing
		_, _ = out.Write(nil)
		return nil
	}
	err = link.Logs(c.r.Context(), v.Group.UID, name, opt, out)
	if err != nil && !out.wrote && c.w.Header().Get("Content-Type") == "" {
		return err
	}
	if !out.wrote {
		_, _ = out.Write(nil) // sends the headers of an empty log
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		a.Log.Debug("log stream ended", "group", v.Group.Ref.Name, "container", name, "error", err)
	}
	return nil
}

// awaitStart waits until a container has run, or the group has ended without.
func (a *api) awaitStart(ctx context.Context, ref group.Ref, name string) error {
	return a.Controller.Await(ctx, ref, func(v arm.View, deleted bool) bool {
		return deleted || started(v, name) || v.State().Ended()
	})
}

// flushWriter sends each write at once.
type flushWriter struct {
	w       http.ResponseWriter
	control *http.ResponseController
	wrote   bool
}

func (f *flushWriter) Write(p []byte) (int, error) {
	if !f.wrote {
		f.wrote = true
		if f.w.Header().Get("Content-Type") == "" {
			f.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		}
	}
	return push(f.w, f.control, p, writeLimit)
}

var _ io.Writer = (*flushWriter)(nil)
