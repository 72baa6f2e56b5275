package virtualnode

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
)

// mirror is what the platform has of this node's groups, by the pods' uids. A watch keeps it: nothing is polled.
type mirror struct {
	platform *client.Client
	rg       string
	mine     func(g *client.Group) bool
	changed  func(uid string)
	log      *slog.Logger

	mu     sync.Mutex // guards the rest
	groups map[string]*client.Group
	gone   map[string]*client.Group // as they were last, until the pod is finished
	synced chan struct{}
	once   sync.Once
}

func newMirror(n *Node, changed func(uid string)) *mirror {
	return &mirror{platform: n.platform, rg: n.cfg.ResourceGroup, mine: n.mine, changed: changed, log: n.log,
		groups: map[string]*client.Group{}, gone: map[string]*client.Group{}, synced: make(chan struct{})}
}

// get gives the group of a pod, and whether it is gone.
func (m *mirror) get(uid string) (g *client.Group, gone bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if g := m.groups[uid]; g != nil {
		return g, false
	}
	g = m.gone[uid]
	return g, g != nil
}

// forget drops what is remembered of a group that is gone.
func (m *mirror) forget(uid string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.gone, uid)
}

// put takes over the answer to a change, when nothing newer is known.
func (m *mirror) put(uid string, g *client.Group) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if old := m.groups[uid]; old == nil || old.Properties.Generation < g.Properties.Generation {
		m.groups[uid] = g
		delete(m.gone, uid)
	}
}

// uids are the pods that have a group.
func (m *mirror) uids() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []string
	for uid := range m.groups {
		out = append(out, uid)
	}
	return out
}

// watchPause is how long a watch that broke waits before it begins again.
const watchPause = 500 * time.Millisecond

// run keeps the mirror until ctx ends. A platform that is away leaves it as it was.
func (m *mirror) run(ctx context.Context) {
	revision := ""
	for ctx.Err() == nil {
		next, err := m.follow(ctx, revision)
		revision = next
		if fault.KindOf(err) == fault.Gone {
			revision = ""
			continue
		}
		if err != nil && ctx.Err() == nil {
			m.log.Warn("watch of the platform broke", "error", err)
		}
		pause(ctx, watchPause)
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// follow reads one watch to its end and gives the revision from which to go on.
func (m *mirror) follow(ctx context.Context, revision string) (string, error) {
	w, err := m.platform.Watch(ctx, client.WatchOptions{ResourceGroup: m.rg, Revision: revision})
	if err != nil {
		return revision, err
	}
	defer w.Close()
	var listed map[string]bool
	if revision == "" {
		listed = map[string]bool{}
	}
	for {
		e, err := w.Next()
		if err != nil {
			return revision, err
		}
		if e.Revision != "" {
			revision = e.Revision
		}
		if e.Type == client.Bookmark {
			if listed != nil {
				m.retain(listed)
				listed = nil
			}
			m.once.Do(func() { close(m.synced) })
			continue
		}
		if e.Object == nil || !m.mine(e.Object) {
			continue
		}
		uid := e.Object.Tags[tagUID]
		if listed != nil {
			listed[uid] = true
		}
		m.take(uid, e)
	}
}

func (m *mirror) take(uid string, e client.Event) {
	m.mu.Lock()
	if e.Type == client.Deleted {
		delete(m.groups, uid)
		m.gone[uid] = e.Object
	} else if old := m.groups[uid]; old == nil || old.Properties.Generation <= e.Object.Properties.Generation {
		m.groups[uid] = e.Object
		delete(m.gone, uid)
	}
	m.mu.Unlock()
	m.changed(uid)
}

// retain drops groups that a fresh list does not have: they went while nobody watched.
func (m *mirror) retain(listed map[string]bool) {
	m.mu.Lock()
	var dropped []string
	for uid, g := range m.groups {
		if !listed[uid] {
			delete(m.groups, uid)
			m.gone[uid] = g
			dropped = append(dropped, uid)
		}
	}
	m.mu.Unlock()
	for _, uid := range dropped {
		m.changed(uid)
	}
}
