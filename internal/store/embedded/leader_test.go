package embedded

import (
	"context"
	"errors"
	"testing"
	"time"

	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/store/etcd"
	"spillway.dev/spillway/internal/store/storetest"
)

func TestLeadership(t *testing.T) {
	m := start(t, t.TempDir())
	defer m.Close()
	s := etcd.New(m.Client())
	if _, err := s.Leader(t.Context()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("leader before any election: %v, want none", err)
	}
	first, err := s.Campaign(t.Context(), "one", 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if who, err := s.Leader(t.Context()); who != "one" || err != nil || !first.Holds() {
		t.Errorf("leader = %q, %v, holds %t; want one", who, err, first.Holds())
	}
	old := first.Fence(s)
	if _, err := old.Commit(t.Context(), store.Op{Key: "/k", Value: []byte("1"), If: store.Absent}); err != nil {
		t.Errorf("commit of the leader: %v", err)
	}
	if _, err := old.Commit(t.Context(), store.Op{Key: "/k", Value: []byte("2"), If: store.Absent}); !errors.Is(err, store.ErrConflict) {
		t.Errorf("commit of the leader against a key that is there: %v, want a conflict", err)
	}
	next := make(chan *etcd.Leadership, 1)
	go func() {
		l, err := s.Campaign(t.Context(), "two", 2*time.Second)
		if err != nil {
			t.Error(err)
		}
		next <- l
	}()
	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := s.Campaign(short, "three", 2*time.Second); err == nil {
		t.Error("two leaders at a time")
	}
	first.Resign()
	second := <-next
	if second.Term() <= first.Term() || first.Holds() || !second.Holds() {
		t.Errorf("terms %d and %d, the first holds %t, the second %t", first.Term(), second.Term(), first.Holds(), second.Holds())
	}
	if _, err := old.Commit(t.Context(), store.Op{Key: "/k", Value: []byte("3"), If: store.Any}); !errors.Is(err, store.ErrFenced) {
		t.Errorf("commit of a former leader: %v, want ErrFenced", err)
	}
	if e, err := s.Get(t.Context(), "/k"); err != nil || string(e.Value) != "1" {
		t.Errorf("/k = %q, %v; want what the leader wrote", e.Value, err)
	}
	select {
	case <-first.Lost():
	case <-time.After(5 * time.Second):
		t.Error("the first leader never heard that it is over")
	}
	fence := second.Fence(s)
	storetest.Run(t, func(*testing.T) store.Store { return fence })
	second.Resign()
}

// TestWatchLeader: whoever watches hears that another may lead, and whoever asks then is told who does.
func TestWatchLeader(t *testing.T) {
	m := start(t, t.TempDir())
	defer m.Close()
	s := etcd.New(m.Client())
	changed, ended := make(chan struct{}, 16), make(chan error, 1)
	ctx, end := context.WithCancel(t.Context())
	go func() { ended <- s.WatchLeader(ctx, func() { changed <- struct{}{} }) }()
	leads := func(when, want string) {
		t.Helper()
		select {
		case <-changed:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: nothing is told", when)
		}
		if who, err := s.Leader(t.Context()); who != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q leads, %v, want %q", when, who, err, want)
		}
	}
	leads("at first", "")
	for _, name := range []string{"one", "two"} {
		l, err := s.Campaign(t.Context(), name, 2*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		leads(name+" is elected", name)
		l.Resign()
		leads(name+" resigns", "")
	}
	end()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ends with %v", err)
	}
}
