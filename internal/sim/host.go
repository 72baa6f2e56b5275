// Package sim is a host without containers: it takes groups, "runs" them by a rule and reports what a real host would.
//
// It lets the control plane run whole in one process, in tests. It must never be wired into the platform itself. Start
// at NewHost.
package sim

import (
	"context"
	"fmt"
	"io"
	"maps"
	"strconv"
	"strings"
	"sync"
	"time"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/service"
)

// Behaviour is what one start of a container does.
type Behaviour struct {
	RunFor   time.Duration // 0 = until it is stopped
	ExitCode int
	// Waiting keeps the container from starting at all, with this as its reason: ErrImagePull and the like.
	Waiting string
}

// Rule chooses the behaviour of a start; run counts from 0.
type Rule func(g *group.Group, c *group.Container, run int) Behaviour

// FromCommand reads the behaviour out of the container's command: run=100ms exit=3 wait=ErrImagePull.
func FromCommand(_ *group.Group, c *group.Container, _ int) Behaviour {
	var b Behaviour
	for _, word := range c.Command {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "run":
			b.RunFor, _ = time.ParseDuration(value)
		case "exit":
			b.ExitCode, _ = strconv.Atoi(value)
		case "wait":
			b.Waiting = value
		}
	}
	return b
}

// Host implements host.Link.
type Host struct {
	desc   host.Host
	rule   Rule
	report func(group.Status)

	mu     sync.Mutex // guards the rest
	groups map[string]*run
	routes map[string]service.Route
	span   host.Overlay
	names  map[string]host.Named // by uid
	images map[string]host.Image
	wg     sync.WaitGroup
	serial int

	stopTime time.Duration // that groups take to stop
	noLease  bool          // fenced groups must not run
	closed   bool
}

var _ host.Link = (*Host)(nil)

// NewHost makes a host with two cores and 64 GB. report gets every status; rule nil means FromCommand.
func NewHost(name string, rule Rule, report func(group.Status)) *Host {
	if rule == nil {
		rule = FromCommand
	}
	return &Host{
		rule: rule, report: report, groups: map[string]*run{}, routes: map[string]service.Route{}, names: map[string]host.Named{}, images: map[string]host.Image{},
		desc: host.Host{
			Name: name, Pool: "default", Capacity: group.Resources{MilliCPU: 2000, Memory: 64 << 30},
			Isolation: []group.Isolation{group.IsolationShared}, Spaces: true, Version: "sim", Runtime: "sim",
		},
	}
}

// Change edits what the host says of itself.
func (h *Host) Change(edit func(*host.Host)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	edit(&h.desc)
}

// Slow has groups take some time to stop.
func (h *Host) Slow(stop time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopTime = stop
}

// Lease gives the host a lease, or takes it away: then its fenced groups end.
func (h *Host) Lease(held bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.noLease == !held {
		return
	}
	h.noLease = !held
	for _, r := range h.groups {
		r.poke()
	}
}

func (h *Host) leaseless() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.noLease
}

// Live are the groups of which something runs, with their epochs.
func (h *Host) Live() map[string]int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]int64{}
	for uid, r := range h.groups {
		if r.live {
			out[uid] = r.last.Epoch
		}
	}
	return out
}

// Statuses are the newest of all groups.
func (h *Host) Statuses() []group.Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []group.Status
	for _, r := range h.groups {
		if r.last.UID != "" {
			out = append(out, r.last)
		}
	}
	return out
}

// Describe implements host.Link.
func (h *Host) Describe() host.Host {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.desc
}

// Assign implements host.Link.
func (h *Host) Assign(g *group.Group) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.groups[g.UID]
	if r == nil && h.closed {
		return
	}
	if r == nil {
		h.serial++
		r = &run{host: h, serial: h.serial, logs: map[string]*log{}, wake: make(chan struct{}, 1)}
		h.groups[g.UID] = r
		h.wg.Go(r.loop)
	}
	if r.want == nil || g.Generation > r.want.Generation {
		r.want = g
		r.poke()
	}
}

// Retain implements host.Link.
func (h *Host) Retain(uids map[string]bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for uid, r := range h.groups {
		if !uids[uid] && r.want.Desired != group.Delete {
			g := *r.want
			g.Desired = group.Delete
			g.Generation++
			r.want = &g
			r.poke()
		}
	}
}

// address is that of the group with a number: of the host's blocks, in a fleet that has a network over all hosts.
func (h *Host) address(serial int) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range h.span.Blocks {
		size := 1 << (32 - b.Bits())
		if serial >= size {
			serial -= size
			continue
		}
		a := b.Addr()
		for range serial {
			a = a.Next()
		}
		return a.String()
	}
	return fmt.Sprintf("10.200.%d.%d", serial/250, serial%250+1)
}

// Span implements host.Link.
func (h *Host) Span(o host.Overlay) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.desc.Overlay = o.Version
	if len(h.span.Blocks) == 0 && len(o.Blocks) > 0 { // groups that waited for an address have one
		for _, r := range h.groups {
			r.poke()
		}
	}
	h.span.Join(o)
}

// Overlay is what the host has been told of the network over all hosts.
func (h *Host) Overlay() host.Overlay {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.span
}

// Name implements host.Link.
func (h *Host) Name(u host.Names) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(h.names, u.Full, host.Changes[host.Named]{Set: u.Set, Gone: u.Gone}, func(n host.Named) string { return n.UID })
}

// change does to a map by uid what an update says.
func change[T any](m map[string]T, full bool, u host.Changes[T], uid func(T) string) {
	if full {
		clear(m)
	}
	for _, name := range u.Gone {
		delete(m, name)
	}
	for _, v := range u.Set {
		m[uid(v)] = v
	}
}

// Names are those of groups on other hosts, as the host has been told.
func (h *Host) Names() map[string]host.Named {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.names)
}

// Serve implements host.Link.
func (h *Host) Serve(u service.Update) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change(h.routes, u.Full, host.Changes[service.Route]{Set: u.Set, Gone: u.Gone}, func(r service.Route) string { return r.UID })
}

// Routes are the service addresses that the host carries, by uid.
func (h *Host) Routes() map[string]service.Route {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.routes)
}

// Status implements host.Link.
func (h *Host) Status(uid string) (group.Status, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.groups[uid]
	if r == nil || r.last.UID == "" {
		return group.Status{}, false
	}
	return r.last, true
}

// Count is how many groups the host has.
func (h *Host) Count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.groups)
}

// Close ends all groups without a word and waits for them.
func (h *Host) Close() {
	h.mu.Lock()
	h.closed = true
	for _, r := range h.groups {
		r.closed = true
		r.poke()
	}
	h.mu.Unlock()
	h.wg.Wait()
}

// container finds a container of a group. Errors: not-found.
func (h *Host) container(uid, name string) (*log, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r := h.groups[uid]; r != nil {
		if l := r.logs[name]; l != nil {
			return l, nil
		}
	}
	return nil, fault.New(fault.NotFound, "ContainerNotFound", "The container '%s' does not exist or was never started.", name)
}

// Logs implements host.Link.
func (h *Host) Logs(ctx context.Context, uid, container string, opt host.LogOptions, w io.Writer) error {
	l, err := h.container(uid, container)
	if err != nil {
		return err
	}
	return l.write(ctx, opt, w)
}

// Exec implements host.Link with a few built-in commands: echo, cat, exit, size.
func (h *Host) Exec(ctx context.Context, uid, container string, req host.ExecRequest, s host.Streams) (int, error) {
	l, err := h.container(uid, container)
	if err != nil {
		return 0, err
	}
	if l.ended() {
		return 0, fault.New(fault.Conflict, "ContainerNotRunning", "The container '%s' is not running.", container)
	}
	switch req.Command[0] {
	case "echo":
		_, err = fmt.Fprintln(s.Stdout, strings.Join(req.Command[1:], " "))
	case "cat":
		if s.Stdin != nil {
			_, err = io.Copy(s.Stdout, s.Stdin)
		}
	case "exit":
		code, _ := strconv.Atoi(req.Command[1])
		_, err = fmt.Fprintln(s.Stderr, "exit", code)
		return code, err
	case "size":
		size := req.Size
		select {
		case size = <-s.Resize:
		case <-ctx.Done():
		}
		_, err = fmt.Fprintf(s.Stdout, "%dx%d\n", size.Rows, size.Cols)
	default:
		_, err = fmt.Fprintf(s.Stderr, "%s: not found\n", req.Command[0])
		return 127, err
	}
	return 0, err
}

// Attach implements host.Link: stdin comes back on stdout until it or the container ends.
func (h *Host) Attach(ctx context.Context, uid, container string, s host.Streams) error {
	l, err := h.container(uid, container)
	if err != nil {
		return err
	}
	copied := make(chan error, 1)
	go func() {
		if s.Stdin == nil {
			return
		}
		_, err := io.Copy(s.Stdout, s.Stdin)
		copied <- err
	}()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case err := <-copied:
		return err
	case <-l.done:
		return nil
	}
}

// Forward implements host.Link: the port gives back what it gets.
func (h *Host) Forward(_ context.Context, _ string, _ int, s host.Streams) error {
	_, err := io.Copy(s.Stdout, s.Stdin)
	return err
}

// Stats implements host.Link.
func (h *Host) Stats(_ context.Context, uid string) (host.Stats, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	r := h.groups[uid]
	if r == nil {
		return host.Stats{}, fault.New(fault.NotFound, "", "The group is not on this host.")
	}
	s := host.Stats{Time: time.Now()}
	for _, c := range r.last.Containers {
		s.Containers = append(s.Containers, host.ContainerStats{Name: c.Name, CPUNanos: 1_000_000, Memory: 1 << 20, Pids: 1})
	}
	return s, nil
}
