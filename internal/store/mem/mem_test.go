package mem

import (
	"errors"
	"testing"

	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Store { return New() })
}

func TestCompacted(t *testing.T) {
	s := New()
	for range 3 {
		if _, err := s.Commit(t.Context(), store.Op{Key: "a", If: store.Any}); err != nil {
			t.Fatal(err)
		}
	}
	s.Compact(3)
	if _, err := s.Watch(t.Context(), "", 2); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("Watch(2) = %v, want ErrCompacted", err)
	}
	if _, err := s.Watch(t.Context(), "", 3); err != nil {
		t.Errorf("Watch(3) = %v, want nil", err)
	}
}
