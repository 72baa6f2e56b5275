package sealed

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/store/mem"
	"spillway.dev/spillway/internal/store/storetest"
)

func open(t *testing.T, inner store.Store) *Store {
	t.Helper()
	key, err := LoadKey(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(inner, key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, mem.New()) })
}

func TestNothingReadableInside(t *testing.T) {
	inner := mem.New()
	s := open(t, inner)
	if _, err := s.Commit(t.Context(), store.Op{Key: "a", Value: []byte("canary"), If: store.Absent}); err != nil {
		t.Fatal(err)
	}
	raw, err := inner.Get(t.Context(), "a")
	if err != nil || bytes.Contains(raw.Value, []byte("canary")) {
		t.Errorf("the inner store holds %q, %v; want ciphertext", raw.Value, err)
	}
	if _, err := inner.Commit(t.Context(), store.Op{Key: "b", Value: raw.Value, If: store.Absent}); err != nil {
		t.Fatal(err)
	}
	if e, err := s.Get(t.Context(), "b"); err == nil {
		t.Errorf("Get of a value moved to another key = %q, want an error", e.Value)
	}
	if e, err := open(t, inner).Get(t.Context(), "a"); err == nil {
		t.Errorf("Get with another key file = %q, want an error", e.Value)
	}
}

func TestKeyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	first, err := LoadKey(path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := LoadKey(path)
	if err != nil || !bytes.Equal(first, second) {
		t.Errorf("LoadKey twice = %x, %x, %v; want one key", first, second, err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key file = %v, %v; want 0600", info.Mode(), err)
	}
	if err := os.WriteFile(path, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadKey(path); err == nil {
		t.Error("LoadKey(damaged) = nil, want an error")
	}
}
