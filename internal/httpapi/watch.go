package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

// Timing of watches.
const (
	watchBeat  = 30 * time.Second // a quiet watch sends a bookmark, so that both ends know it lives
	writeLimit = 30 * time.Second // a reader that takes longer for one batch is cut off and comes back
)

// line is one line of a watch.
type line struct {
	Type     string `json:"type"`
	Object   any    `json:"object,omitempty"`
	Revision string `json:"revision,omitempty"`
}

// watchGroups sends groups.
func (a *api) watchGroups(c *call, filter controller.Filter) error {
	w, views, err := a.Controller.Watch(filter, c.query("revision"))
	if err != nil {
		return err
	}
	return watch(a, c, w, watched[arm.View]{views, func(v arm.View) any { return arm.Render(v, c.version, a.Now()) }})
}

// watched is what a watch begins with, and how it is shown.
type watched[V interface{ Ref() group.Ref }] struct {
	views  []V
	render func(V) any
}

// watch sends the current state and then every change, as newline-delimited JSON.
func watch[V interface{ Ref() group.Ref }](a *api, c *call, w *controller.Watcher[V], what watched[V]) error {
	done, err := a.openStream()
	if err != nil {
		return err
	}
	defer done()
	c.w.Header().Set("Content-Type", "application/x-ndjson")
	c.w.WriteHeader(http.StatusOK)
	out := &lineWriter{c: c, control: http.NewResponseController(c.w)}
	for _, v := range what.views {
		out.add(line{Type: controller.Added, Object: what.render(v)})
	}
	if c.query("revision") == "" {
		out.add(line{Type: "BOOKMARK", Revision: w.Revision()})
	}
	for out.flush() {
		ctx, cancel := context.WithTimeout(c.r.Context(), watchBeat)
		events, err := w.Next(ctx)
		cancel()
		switch {
		case c.r.Context().Err() != nil, fault.KindOf(err) == fault.Gone:
			return nil // the reader is gone, or too slow: it reads the current state again
		case errors.Is(err, context.DeadlineExceeded):
			out.add(line{Type: "BOOKMARK", Revision: w.Revision()})
		}
		for _, e := range events {
			out.add(line{Type: e.Type, Object: what.render(e.View), Revision: w.RevisionOf(e.Seq)})
		}
	}
	return nil
}

// lineWriter sends lines in batches.
type lineWriter struct {
	c       *call
	control *http.ResponseController
	buf     []byte
}

// add queues a value as one line.
func (l *lineWriter) add(v any) {
	data, err := json.Marshal(v)
	if err != nil { // plain structs always marshal
		return
	}
	l.buf = append(append(l.buf, data...), '\n')
}

// flush sends what is queued; false when the reader is gone.
func (l *lineWriter) flush() bool {
	_, err := push(l.c.w, l.control, l.buf, writeLimit)
	l.buf = l.buf[:0]
	return err == nil
}

// push sends one batch at once and gives the reader so long to take it. What comes later may come whenever it does: a
// deadline that stays set would cut a quiet stream off.
func push(w io.Writer, control *http.ResponseController, batch []byte, limit time.Duration) (int, error) {
	_ = control.SetWriteDeadline(time.Now().Add(limit)) // not every writer has deadlines
	n, err := w.Write(batch)
	if err == nil {
		err = control.Flush()
	}
	_ = control.SetWriteDeadline(time.Time{})
	return n, err
}

// openStream counts a stream; done ends it. Errors: exhausted.
func (a *api) openStream() (done func(), err error) {
	if a.streams.Add(1) > maxStreams {
		a.streams.Add(-1)
		return nil, fault.New(fault.Exhausted, "", "The platform carries %d streams already. Close some and try again.", maxStreams)
	}
	return func() { a.streams.Add(-1) }, nil
}
