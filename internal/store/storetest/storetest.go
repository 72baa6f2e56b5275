// Package storetest is the conformance suite that every store passes. It must never look inside a store. Start at Run.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"spillway.dev/spillway/internal/store"
)

// patience is how long a watch may take to tell of a change.
const patience = 10 * time.Second

// Run tests the stores that open makes; each test uses keys of its own, so they may share one store.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	tests := []struct {
		name string
		run  func(t *testing.T, s store.Store, prefix string)
	}{
		{"get", testGet}, {"conditions", testConditions}, {"atomic", testAtomic}, {"list", testList},
		{"watch", testWatch}, {"watch resumes", testResume}, {"one winner", testOneWinner},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.run(t, open(t), fmt.Sprintf("/test%d-%d/", i, time.Now().UnixNano()))
		})
	}
}

// put writes a key that must not exist yet or, with a value that begins with "+", may.
func put(t *testing.T, s store.Store, key, value string) int64 {
	t.Helper()
	op := store.Op{Key: key, If: store.Absent}
	if after, ok := strings.CutPrefix(value, "+"); ok {
		value, op.If = after, store.Any
	}
	op.Value = []byte(value)
	rev, err := s.Commit(t.Context(), op)
	if err != nil {
		t.Fatalf("Commit(put %s if %d) = %v", key, op.If, err)
	}
	return rev
}

func testGet(t *testing.T, s store.Store, p string) {
	if _, err := s.Get(t.Context(), p+"a"); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("Get(absent) = %v, want ErrNotFound", err)
	}
	rev := put(t, s, p+"a", "one")
	got, err := s.Get(t.Context(), p+"a")
	want := store.Entry{Key: p + "a", Value: []byte("one"), Revision: rev}
	if err != nil || !cmp.Equal(got, want) {
		t.Errorf("Get(a) = %v, %v, want %v", got, err, want)
	}
}

func testConditions(t *testing.T, s store.Store, p string) {
	rev := put(t, s, p+"a", "+one")
	tests := []struct {
		name string
		op   store.Op
		want error
	}{
		{"absent, but there", store.Op{Key: p + "a", If: store.Absent}, store.ErrConflict},
		{"old revision", store.Op{Key: p + "a", If: rev - 1}, store.ErrConflict},
		{"exists, but absent", store.Op{Key: p + "b", Kind: store.Check, If: store.Exists}, store.ErrConflict},
		{"revision of an absent key", store.Op{Key: p + "b", Kind: store.Delete, If: rev}, store.ErrConflict},
		{"exists", store.Op{Key: p + "a", Kind: store.Check, If: store.Exists}, nil},
		{"right revision", store.Op{Key: p + "a", Value: []byte("two"), If: rev}, nil},
		{"delete at any", store.Op{Key: p + "a", Kind: store.Delete, If: store.Any}, nil},
		{"absent", store.Op{Key: p + "a", Value: []byte("three"), If: store.Absent}, nil},
	}
	for _, test := range tests {
		if _, err := s.Commit(t.Context(), test.op); !errors.Is(err, test.want) {
			t.Errorf("%s: Commit = %v, want %v", test.name, err, test.want)
		}
	}
}

func testAtomic(t *testing.T, s store.Store, p string) {
	put(t, s, p+"a", "one")
	_, err := s.Commit(t.Context(), store.Op{Key: p + "b", Value: []byte("x"), If: store.Absent}, store.Op{Key: p + "a", Kind: store.Delete, If: store.Absent})
	if !errors.Is(err, store.ErrConflict) {
		t.Fatalf("Commit = %v, want ErrConflict", err)
	}
	if _, err := s.Get(t.Context(), p+"b"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Get(b) after a refused commit = %v, want ErrNotFound", err)
	}
	rev, err := s.Commit(t.Context(), store.Op{Key: p + "b", Value: []byte("x"), If: store.Absent}, store.Op{Key: p + "a", Kind: store.Delete, If: store.Exists})
	if err != nil {
		t.Fatalf("Commit = %v", err)
	}
	if e, err := s.Get(t.Context(), p+"b"); err != nil || e.Revision != rev {
		t.Errorf("Get(b) = %v, %v, want revision %d", e, err, rev)
	}
}

func testList(t *testing.T, s store.Store, p string) {
	for _, k := range []string{"b", "a", "d", "c"} {
		put(t, s, p+"x/"+k, k)
	}
	put(t, s, p+"y", "other")
	var got []string
	pages, from := 0, ""
	for {
		page, err := s.List(t.Context(), p+"x/", 3, from)
		if err != nil {
			t.Fatalf("List = %v", err)
		}
		pages++
		for _, e := range page.Entries {
			got = append(got, string(e.Value))
		}
		if from = page.Continue; from == "" {
			break
		}
	}
	if diff := cmp.Diff([]string{"a", "b", "c", "d"}, got); diff != "" || pages != 2 {
		t.Errorf("List in %d pages differs (-want +got):\n%s", pages, diff)
	}
}

// next reads one batch of a watch as text.
func next(t *testing.T, c <-chan []store.Change) []string {
	t.Helper()
	select {
	case changes, ok := <-c:
		if !ok {
			t.Fatal("the watch ended")
		}
		var out []string
		for _, ch := range changes {
			out = append(out, fmt.Sprintf("%s=%s %t", ch.Key[len(ch.Key)-1:], ch.Value, ch.Deleted))
		}
		return out
	case <-time.After(patience):
		t.Fatal("the watch told nothing")
	}
	return nil
}

func testWatch(t *testing.T, s store.Store, p string) {
	before := put(t, s, p+"a", "0")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, err := s.Watch(ctx, p, before)
	if err != nil {
		t.Fatalf("Watch = %v", err)
	}
	put(t, s, p+"a", "+1")
	if _, err := s.Commit(ctx, store.Op{Key: p + "a", Kind: store.Delete, If: store.Any}, store.Op{Key: p + "b", Value: []byte("2"), If: store.Absent}); err != nil {
		t.Fatalf("Commit = %v", err)
	}
	got := [][]string{next(t, c), next(t, c)}
	if diff := cmp.Diff([][]string{{"a=1 false"}, {"a= true", "b=2 false"}}, got); diff != "" {
		t.Errorf("watch differs (-want +got):\n%s", diff)
	}
	cancel()
	select {
	case _, ok := <-c:
		if ok {
			t.Error("the watch sent more than was changed")
		}
	case <-time.After(patience):
		t.Error("the watch did not end with its context")
	}
}

func testResume(t *testing.T, s store.Store, p string) {
	first := put(t, s, p+"a", "1")
	second := put(t, s, p+"a", "+2")
	put(t, s, p+"a", "+3")
	for after, want := range map[int64][]string{first: {"a=2 false"}, second: {"a=3 false"}} {
		c, err := s.Watch(t.Context(), p, after)
		if err != nil {
			t.Fatalf("Watch(after %d) = %v", after, err)
		}
		if diff := cmp.Diff(want, next(t, c)); diff != "" {
			t.Errorf("Watch(after %d) differs (-want +got):\n%s", after, diff)
		}
	}
}

// testOneWinner lets many writers race for one key.
func testOneWinner(t *testing.T, s store.Store, p string) {
	const writers = 16
	results := make(chan error, writers)
	for i := range writers {
		go func() {
			_, err := s.Commit(t.Context(), store.Op{Key: p + "a", Value: fmt.Appendf(nil, "%d", i), If: store.Absent})
			results <- err
		}()
	}
	won := 0
	for range writers {
		switch err := <-results; {
		case err == nil:
			won++
		case !errors.Is(err, store.ErrConflict):
			t.Errorf("Commit = %v, want nil or ErrConflict", err)
		}
	}
	if won != 1 {
		t.Errorf("%d of %d writers won, want 1", won, writers)
	}
}
