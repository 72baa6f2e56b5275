// Package etcd is the store on an etcd client: an embedded member or a cluster. It must never interpret values. Start
// at New.
package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"spillway.dev/spillway/internal/store"
)

// Store implements store.Store.
type Store struct {
	client *clientv3.Client
}

var _ store.Store = (*Store)(nil)

// New makes a store of a client, which stays the caller's to close.
func New(client *clientv3.Client) *Store { return &Store{client: client} }

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	resp, err := s.client.Get(ctx, key)
	if err != nil {
		return store.Entry{}, fmt.Errorf("get %s: %w", key, err)
	}
	if len(resp.Kvs) == 0 {
		return store.Entry{}, store.ErrNotFound
	}
	return store.Entry{Key: key, Value: resp.Kvs[0].Value, Revision: resp.Kvs[0].ModRevision}, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, limit int, from string) (store.Page, error) {
	start := prefix
	if from >= prefix && from != "" {
		start = from + "\x00"
	}
	resp, err := s.client.Get(ctx, start, clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(int64(limit)))
	if err != nil {
		return store.Page{}, fmt.Errorf("list %s: %w", prefix, err)
	}
	page := store.Page{Revision: resp.Header.Revision, Entries: make([]store.Entry, 0, len(resp.Kvs))}
	for _, kv := range resp.Kvs {
		page.Entries = append(page.Entries, store.Entry{Key: string(kv.Key), Value: kv.Value, Revision: kv.ModRevision})
	}
	if resp.More {
		page.Continue = page.Entries[len(page.Entries)-1].Key
	}
	return page, nil
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	var conditions []clientv3.Cmp
	var steps []clientv3.Op
	for _, op := range ops {
		switch {
		case op.If == store.Exists:
			conditions = append(conditions, clientv3.Compare(clientv3.CreateRevision(op.Key), ">", 0))
		case op.If != store.Any:
			conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(op.Key), "=", op.If))
		}
		switch op.Kind {
		case store.Put:
			steps = append(steps, clientv3.OpPut(op.Key, string(op.Value)))
		case store.Delete:
			steps = append(steps, clientv3.OpDelete(op.Key))
		}
	}
	resp, err := s.client.Txn(ctx).If(conditions...).Then(steps...).Commit()
	if err != nil {
		return 0, fmt.Errorf("commit: %w", err)
	}
	if !resp.Succeeded {
		return 0, store.ErrConflict
	}
	return resp.Header.Revision, nil
}

// Watch implements store.Store.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) (<-chan []store.Change, error) {
	ctx, cancel := context.WithCancel(ctx)
	in := s.client.Watch(clientv3.WithRequireLeader(ctx), prefix, clientv3.WithPrefix(), clientv3.WithRev(after+1), clientv3.WithCreatedNotify())
	first, ok := <-in // created, or refused
	if !ok || first.Err() != nil {
		cancel()
		return nil, watchError(ctx, first.Err())
	}
	// A compacted revision is only told after the creation: ask for the compaction at once.
	if _, err := s.client.Get(ctx, prefix, clientv3.WithRev(after), clientv3.WithKeysOnly(), clientv3.WithLimit(1)); err != nil && after > 0 {
		cancel()
		return nil, watchError(ctx, err)
	}
	out := make(chan []store.Change)
	go func() {
		defer cancel()
		defer close(out)
		for resp := range in {
			if resp.Err() != nil {
				return
			}
			for _, changes := range commits(resp.Events) {
				select {
				case <-ctx.Done():
					return
				case out <- changes:
				}
			}
		}
	}()
	return out, nil
}

func watchError(ctx context.Context, err error) error {
	if errors.Is(err, rpctypes.ErrCompacted) {
		return store.ErrCompacted
	}
	if err == nil {
		err = ctx.Err()
	}
	return fmt.Errorf("watch: %w", err)
}

// commits groups events by the commit that made them.
func commits(events []*clientv3.Event) [][]store.Change {
	var out [][]store.Change
	for _, e := range events {
		c := store.Change{
			Entry:   store.Entry{Key: string(e.Kv.Key), Value: e.Kv.Value, Revision: e.Kv.ModRevision},
			Deleted: e.Type == clientv3.EventTypeDelete, Revision: e.Kv.ModRevision,
		}
		if n := len(out); n > 0 && out[n-1][0].Revision == c.Revision {
			out[n-1] = append(out[n-1], c)
			continue
		}
		out = append(out, []store.Change{c})
	}
	return out
}
