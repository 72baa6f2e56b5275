package embedded

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/store/etcd"
	"spillway.dev/spillway/internal/store/storetest"
)

func start(t *testing.T, dir string) *Member {
	t.Helper()
	m, err := Start(t.Context(), dir)
	if err != nil {
		t.Fatalf("Start(%s) = %v", dir, err)
	}
	return m
}

func TestConformance(t *testing.T) {
	m := start(t, t.TempDir())
	defer m.Close()
	s := etcd.New(m.Client())
	storetest.Run(t, func(*testing.T) store.Store { return s })

	rev, err := s.Commit(t.Context(), store.Op{Key: "/c", Value: []byte("1"), If: store.Any})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Client().Compact(t.Context(), rev); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Watch(t.Context(), "/c", rev-2); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("Watch(before compaction) = %v, want ErrCompacted", err)
	}
}

func TestRestartKeepsAllAndIsQuick(t *testing.T) {
	dir := t.TempDir()
	m := start(t, dir)
	s := etcd.New(m.Client())
	for i := range 50 {
		if _, err := s.Commit(t.Context(), store.Op{Key: fmt.Sprintf("/k/%02d", i), Value: []byte("v"), If: store.Absent}); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Fatalf("Close = %v", err)
	}
	began := time.Now()
	m = start(t, dir)
	defer m.Close()
	page, err := etcd.New(m.Client()).List(t.Context(), "/k/", 0, "")
	if err != nil || len(page.Entries) != 50 {
		t.Errorf("after a restart List = %d entries, %v; want 50", len(page.Entries), err)
	}
	t.Logf("restart took %v", time.Since(began))
}

func BenchmarkCommit(b *testing.B) {
	m, err := Start(b.Context(), b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	defer m.Close()
	s := etcd.New(m.Client())
	value := make([]byte, 2000)
	for i := 0; b.Loop(); i++ {
		if _, err := s.Commit(b.Context(), store.Op{Key: fmt.Sprintf("/k/%d", i), Value: value, If: store.Absent}); err != nil {
			b.Fatal(err)
		}
	}
}
