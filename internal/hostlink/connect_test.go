package hostlink

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// witness is a control plane that writes down in which order it hears of connections.
type witness struct {
	*testing.T
	mu     sync.Mutex // guards heard
	heard  []string
	refuse error
}

func (w *witness) note(what string, l host.Link) {
	if r := l.(*remote); r.connecting.TryLock() {
		w.Errorf("%s is told while the opposite could be", what)
		r.connecting.Unlock()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.heard = append(w.heard, what)
}

func (w *witness) Connect(l host.Link, uid string) error {
	w.note("connect "+uid, l)
	return w.refuse
}
func (w *witness) Disconnect(l host.Link, _ time.Time, _ error) {
	w.note("disconnect "+l.(*remote).id.UID, l)
}
func (w *witness) Report(string, group.Status) {}
func (w *witness) Beat(string) time.Duration   { return 0 }

func (w *witness) want(heard ...string) {
	w.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if !slices.Equal(w.heard, heard) {
		w.Errorf("the control plane heard %q, want %q", w.heard, heard)
	}
}

// calling is a connection of the host h1.
func calling(s *Server, uid string) *remote {
	gone, end := context.WithCancelCause(context.Background())
	return &remote{server: s, id: Identity{Name: "h1", UID: uid}, out: newOutbox(), gone: gone, end: end, finished: make(chan struct{})}
}

// TestConnectionsComeOneAfterTheOther: a host that connects anew is not mixed up with what it was before. The end of the
// old connection that came later would take the new one away; the beginning of one that has ended would never be undone.
func TestConnectionsComeOneAfterTheOther(t *testing.T) {
	w := &witness{T: t}
	s := &Server{cfg: ServerConfig{Control: w}, hosts: map[string]*remote{}}
	first, second := calling(s, "1"), calling(s, "2")
	s.enter(first)
	if err := first.connect(); err != nil {
		t.Error(err)
	}
	go func() {
		<-first.gone.Done()
		s.leave(first, context.Cause(first.gone))
	}()
	s.enter(second)
	w.want("connect 1", "disconnect 1")
	if err := first.connect(); err == nil {
		t.Error("a connection that has ended was made known")
	}
	w.refuse = errors.New("removed")
	if err := second.connect(); !errors.Is(err, w.refuse) {
		t.Errorf("a refused host's connection goes on: %v", err)
	}
	s.leave(second, w.refuse)
	w.want("connect 1", "disconnect 1", "connect 2", "disconnect 2")
	if len(s.hosts) != 0 {
		t.Errorf("connected hosts that are left: %v", s.hosts)
	}
}
