package hostlink

import (
	"context"
	"encoding/json"
	"fmt"
	"sync"
	"time"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/service"
)

// remote is the server's end of a connected host. It implements host.Link.
type remote struct {
	server *Server
	id     Identity
	out    *outbox
	gone   context.Context // ends with the connection
	end    context.CancelCauseFunc

	connecting sync.Mutex    // held while the control plane is told that the host is there, or not there any more; taken before mu
	finished   chan struct{} // closed when it has been told of the end

	mu       sync.Mutex // guards what follows
	describe host.Host
	heard    time.Time
	left     bool // Disconnect knows when it was heard last
	statuses map[string]group.Status
	asked    map[int64]chan answer
	nextAsk  int64
}

var _ host.Link = (*remote)(nil)

// Assign implements host.Link.
func (r *remote) Assign(g *group.Group) { r.out.assign(g) }

// Retain implements host.Link.
func (r *remote) Retain(uids map[string]bool) {
	list := make([]string, 0, len(uids))
	for uid := range uids {
		list = append(list, uid)
	}
	r.out.put(&down{Retain: &retain{UIDs: list}})
}

// Serve implements host.Link.
func (r *remote) Serve(u service.Update) { r.out.addServe(u) }

// Span implements host.Link.
func (r *remote) Span(o host.Overlay) { r.out.addSpan(o) }

// Name implements host.Link.
func (r *remote) Name(u host.Names) { r.out.addNames(u) }

// Status implements host.Link.
func (r *remote) Status(uid string) (group.Status, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.statuses[uid]
	return s, ok
}

// Describe implements host.Link.
func (r *remote) Describe() host.Host {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.describe
}

// away is what callers are told when a host cannot be asked.
func (r *remote) away() error {
	return fault.New(fault.Unavailable, "HostNotConnected", "The host '%s' is not connected any more. Try again when 'spillway host ls' shows it ready.", r.id.Name)
}

// askTime bounds how long a host may think about a question.
const askTime = 10 * time.Second

// ask puts a question and reads the answer into value.
func (r *remote) ask(ctx context.Context, q ask, value any) error {
	reply := make(chan answer, 1)
	r.mu.Lock()
	r.nextAsk++
	q.ID = r.nextAsk
	r.asked[q.ID] = reply
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.asked, q.ID)
		r.mu.Unlock()
	}()
	r.out.put(&down{Ask: &q})
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-r.gone.Done():
		return r.away()
	case <-time.After(askTime):
		return fault.New(fault.Unavailable, "HostNotAnswering", "The host '%s' has not answered within %s. Try again.", r.id.Name, askTime)
	case a := <-reply:
		if a.Error != nil || value == nil {
			return a.Error.err()
		}
		if err := json.Unmarshal(a.Value, value); err != nil {
			return fmt.Errorf("answer of host %s: %w", r.id.Name, err)
		}
		return nil
	}
}

func (r *remote) answered(a answer) {
	r.mu.Lock()
	reply := r.asked[a.ID]
	r.mu.Unlock()
	if reply != nil {
		select {
		case reply <- a:
		default: // answered already
		}
	}
}

// Stats implements host.Link.
func (r *remote) Stats(ctx context.Context, uid string) (host.Stats, error) {
	var s host.Stats
	err := r.ask(ctx, ask{Kind: askStats, Name: uid}, &s)
	return s, err
}

// Images implements host.Images.
func (r *remote) Images(ctx context.Context) ([]host.Image, error) {
	var list []host.Image
	err := r.ask(ctx, ask{Kind: askImages}, &list)
	return list, err
}

// RemoveImage implements host.Images.
func (r *remote) RemoveImage(ctx context.Context, ref string) error {
	return r.ask(ctx, ask{Kind: askRemove, Name: ref}, nil)
}
