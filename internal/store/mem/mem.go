// Package mem is a store in memory, for tests and simulations. It must never be used where a restart may lose data.
// Start at New.
package mem

import (
	"context"
	"sort"
	"strings"
	"sync"

	"spillway.dev/spillway/internal/store"
)

// Store implements store.Store.
type Store struct {
	mu        sync.Mutex // guards all below
	entries   map[string]store.Entry
	revision  int64
	compacted int64
	history   [][]store.Change // one element for each revision after compacted
	wake      chan struct{}    // closed and replaced at each commit
}

var _ store.Store = (*Store)(nil)

// New makes an empty store.
func New() *Store {
	return &Store{entries: map[string]store.Entry{}, revision: 1, compacted: 1, wake: make(chan struct{})}
}

// Get implements store.Store.
func (s *Store) Get(_ context.Context, key string) (store.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[key]
	if !ok {
		return store.Entry{}, store.ErrNotFound
	}
	return e, nil
}

// List implements store.Store.
func (s *Store) List(_ context.Context, prefix string, limit int, from string) (store.Page, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for k := range s.entries {
		if strings.HasPrefix(k, prefix) && k > from {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	page := store.Page{Revision: s.revision}
	if limit > 0 && len(keys) > limit {
		keys = keys[:limit]
		page.Continue = keys[limit-1]
	}
	for _, k := range keys {
		page.Entries = append(page.Entries, s.entries[k])
	}
	return page, nil
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, op := range ops {
		e, ok := s.entries[op.Key]
		switch {
		case op.If == store.Any:
		case op.If == store.Exists && ok:
		case op.If == store.Absent && !ok:
		case op.If > 0 && ok && e.Revision == op.If:
		default:
			return 0, store.ErrConflict
		}
	}
	next := s.revision + 1
	var changes []store.Change
	for _, op := range ops {
		switch op.Kind {
		case store.Put:
			e := store.Entry{Key: op.Key, Value: append([]byte(nil), op.Value...), Revision: next}
			s.entries[op.Key] = e
			changes = append(changes, store.Change{Entry: e, Revision: next})
		case store.Delete:
			if _, ok := s.entries[op.Key]; !ok {
				continue
			}
			delete(s.entries, op.Key)
			changes = append(changes, store.Change{Entry: store.Entry{Key: op.Key, Revision: next}, Deleted: true, Revision: next})
		}
	}
	if len(changes) == 0 {
		return s.revision, nil
	}
	s.revision = next
	s.history = append(s.history, changes)
	close(s.wake)
	s.wake = make(chan struct{})
	return next, nil
}

// Compact forgets the history up to a revision.
func (s *Store) Compact(revision int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := revision - s.compacted; n > 0 && n <= int64(len(s.history)) {
		s.history = s.history[n:]
		s.compacted = revision
	}
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) (<-chan []store.Change, error) {
	s.mu.Lock()
	compacted := s.compacted
	s.mu.Unlock()
	if after < compacted {
		return nil, store.ErrCompacted
	}
	out := make(chan []store.Change)
	go func() {
		defer close(out)
		for {
			changes, wake, ok := s.next(prefix, &after)
			if !ok {
				return
			}
			if changes == nil {
				select {
				case <-ctx.Done():
					return
				case <-wake:
				}
				continue
			}
			select {
			case <-ctx.Done():
				return
			case out <- changes:
			}
		}
	}()
	return out, nil
}

// next gives the changes of the first commit after the revision that has any; none yet: a channel to wait on. It is
// not ok when the history has been compacted past the revision.
func (s *Store) next(prefix string, after *int64) ([]store.Change, <-chan struct{}, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for *after < s.revision {
		i := *after - s.compacted
		if i < 0 {
			return nil, nil, false
		}
		*after++
		var hits []store.Change
		for _, c := range s.history[i] {
			if strings.HasPrefix(c.Key, prefix) {
				hits = append(hits, c)
			}
		}
		if hits != nil {
			return hits, nil, true
		}
	}
	return nil, s.wake, true
}
