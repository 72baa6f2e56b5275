package etcd

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/store"
)

// Leadership is a won election. It is not mutual exclusion by itself: a process that was stopped does not know that it
// lost. Whatever it writes has to go through Fence, and whatever it promises has to be asked of Holds first.
type Leadership struct {
	store    *Store
	election *concurrency.Election
	session  *concurrency.Session
	key      string
	ttl      time.Duration
	end      context.CancelFunc
	term     int64
	// confirmed is when the store was heard of last, by this process's monotonic clock.
	confirmed atomic.Int64
	began     time.Time
	over      atomic.Bool // given up, or found lost
}

// Campaign waits until this process leads; value is what the others hear of the leader. ttl is how long the leadership
// outlives a process that died; etcd rounds it up to seconds and to its own election time.
func (s *Store) Campaign(ctx context.Context, value string, ttl time.Duration) (*Leadership, error) {
	seconds := max(int64((ttl+time.Second-1)/time.Second), 1)
	lease, err := s.client.Grant(ctx, seconds)
	if err != nil {
		return nil, fmt.Errorf("take part in the election: %w", err)
	}
	l := &Leadership{store: s, ttl: time.Duration(lease.TTL) * time.Second, began: time.Now()}
	var life context.Context
	life, l.end = context.WithCancel(context.WithoutCancel(ctx))
	if err := l.keep(life, lease.ID); err != nil {
		l.end()
		return nil, err
	}
	if l.session, err = concurrency.NewSession(s.client, concurrency.WithLease(lease.ID), concurrency.WithContext(life)); err != nil {
		l.end()
		return nil, fmt.Errorf("take part in the election: %w", err)
	}
	l.election = concurrency.NewElection(l.session, store.Leaders)
	won := make(chan error, 1)
	campaign, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { won <- l.election.Campaign(campaign, value) }()
	select {
	case err = <-won:
	case <-l.session.Done():
		cancel()
		err = errors.Join(errors.New("the lease has expired"), <-won)
	}
	if err != nil {
		l.leave()
		return nil, fmt.Errorf("election: %w", err)
	}
	l.key, l.term = l.election.Key(), l.election.Rev()
	return l, nil
}

// keep renews the lease and notes when that was confirmed.
func (l *Leadership) keep(ctx context.Context, id clientv3.LeaseID) error {
	answers, err := l.store.client.KeepAlive(ctx, id)
	if err != nil {
		return fmt.Errorf("keep the leader's lease: %w", err)
	}
	l.confirmed.Store(int64(time.Since(l.began)))
	go func() {
		for range answers {
			l.confirmed.Store(int64(time.Since(l.began)))
		}
	}()
	return nil
}

// Term is the revision with which the election was won: it grows from leader to leader.
func (l *Leadership) Term() int64 { return l.term }

// Lost is closed when the leadership is over for certain.
func (l *Leadership) Lost() <-chan struct{} { return l.session.Done() }

// Holds says whether nobody else can lead now: the store has confirmed the lease within two thirds of its time.
func (l *Leadership) Holds() bool {
	select {
	case <-l.session.Done():
		return false
	default:
		return !l.over.Load() && time.Since(l.began)-time.Duration(l.confirmed.Load()) < l.ttl*2/3
	}
}

// resignTime bounds the farewell of a leader: others wait no longer than the lease for one who cannot say it.
const resignTime = time.Second

// Resign gives the leadership up, so that another need not wait for the lease to expire.
func (l *Leadership) Resign() { l.leave() }

func (l *Leadership) leave() {
	l.over.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), resignTime)
	defer cancel()
	_, _ = l.store.client.Revoke(ctx, l.session.Lease()) // else it expires
	l.end()
}

// Leader is what the present leader said of itself. Errors: not-found, when there is none.
func (s *Store) Leader(ctx context.Context) (value string, err error) {
	resp, err := s.client.Get(ctx, store.Leaders, clientv3.WithFirstCreate()...)
	if err != nil {
		return "", fmt.Errorf("ask for the leader: %w", err)
	}
	if len(resp.Kvs) == 0 {
		return "", store.ErrNotFound
	}
	return string(resp.Kvs[0].Value), nil
}

// WatchLeader says whenever another may lead, and once before: as soon as it would miss nothing. It ends with an error.
func (s *Store) WatchLeader(ctx context.Context, changed func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for resp := range s.client.Watch(clientv3.WithRequireLeader(ctx), store.Leaders+"/", clientv3.WithPrefix(), clientv3.WithCreatedNotify()) {
		if err := resp.Err(); err != nil {
			return fmt.Errorf("watch who leads: %w", err)
		}
		changed()
	}
	return fmt.Errorf("watch who leads: %w", ctx.Err())
}

// Candidates are what all that take part in the election said of themselves, the leader first.
func (s *Store) Candidates(ctx context.Context) ([]string, error) {
	resp, err := s.client.Get(ctx, store.Leaders+"/", clientv3.WithPrefix(), clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
	if err != nil {
		return nil, fmt.Errorf("ask for the candidates: %w", err)
	}
	var out []string
	for _, kv := range resp.Kvs {
		out = append(out, string(kv.Value))
	}
	return out, nil
}

// Fence is a store whose commits succeed only while the leadership lasts: the store itself compares, so that a leader
// who was stopped for a while, and does not know of its successor, changes nothing.
func (l *Leadership) Fence(inner store.Store) store.Store { return &fenced{inner, l} }

type fenced struct {
	store.Store
	leader *Leadership
}

// Commit implements store.Store. Errors: store.ErrFenced besides those of the store.
func (f *fenced) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	guarded := make([]store.Op, 0, len(ops)+1)
	guarded = append(append(guarded, ops...), store.Op{Key: f.leader.key, Kind: store.Check, If: f.leader.term})
	revision, err := f.Store.Commit(ctx, guarded...)
	if !errors.Is(err, store.ErrConflict) {
		return revision, err
	}
	e, getErr := f.leader.store.Get(ctx, f.leader.key)
	if errors.Is(getErr, store.ErrNotFound) || getErr == nil && e.Revision != f.leader.term {
		f.leader.over.Store(true)
		f.leader.end()
		return 0, errors.Join(store.ErrFenced, fault.New(fault.Unavailable, store.CodeFenced, "Another server leads now. Try again."))
	}
	return 0, err
}
