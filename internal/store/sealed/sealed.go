// Package sealed encrypts the values of another store at rest: AES-256-GCM, bound to the key under which a value is
// stored, so that values cannot be swapped.
//
// Secrets of groups, principals and signing keys all pass through here; what is on the disk is ciphertext. Lose the
// key file and the store is lost. Start at New.
package sealed

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"spillway.dev/spillway/internal/store"
)

// format is the first byte of every sealed value; another number will be another cipher.
const format = 1

const keySize = 32

// Store implements store.Store.
type Store struct {
	inner store.Store
	aead  cipher.AEAD
}

var _ store.Store = (*Store)(nil)

// LoadKey reads the key file, and makes it when it does not exist. Its mode is 0600.
func LoadKey(path string) ([]byte, error) {
	key, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return makeKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("read encryption key: %w", err)
	}
	if len(key) != keySize {
		return nil, fmt.Errorf("encryption key %s has %d bytes, want %d; restore it from a backup", path, len(key), keySize)
	}
	return key, nil
}

// makeKey writes a new key so that a crash leaves either all of it or none.
func makeKey(path string) ([]byte, error) {
	key := make([]byte, keySize)
	if _, err := rand.Read(key); err != nil {
		return nil, fmt.Errorf("make encryption key: %w", err)
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make encryption key: %w", err)
	}
	_, err = f.Write(key)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return nil, fmt.Errorf("write encryption key: %w", err)
	}
	return key, nil
}

// New wraps a store.
func New(inner store.Store, key []byte) (*Store, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("use encryption key: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("use encryption key: %w", err)
	}
	return &Store{inner: inner, aead: aead}, nil
}

func (s *Store) seal(key string, value []byte) ([]byte, error) {
	n := s.aead.NonceSize()
	out := make([]byte, 1+n, 1+n+len(value)+s.aead.Overhead())
	out[0] = format
	if _, err := rand.Read(out[1:]); err != nil {
		return nil, fmt.Errorf("seal %s: %w", key, err)
	}
	return s.aead.Seal(out, out[1:1+n], value, []byte(key)), nil
}

func (s *Store) open(e *store.Entry) error {
	n := s.aead.NonceSize()
	if len(e.Value) < 1+n || e.Value[0] != format {
		return fmt.Errorf("open %s: the value is not sealed in format %d", e.Key, format)
	}
	plain, err := s.aead.Open(nil, e.Value[1:1+n], e.Value[1+n:], []byte(e.Key))
	if err != nil {
		return fmt.Errorf("open %s: %w; the encryption key does not belong to this store", e.Key, err)
	}
	e.Value = plain
	return nil
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	e, err := s.inner.Get(ctx, key)
	if err != nil {
		return e, err
	}
	return e, s.open(&e)
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string, limit int, from string) (store.Page, error) {
	page, err := s.inner.List(ctx, prefix, limit, from)
	if err != nil {
		return page, err
	}
	for i := range page.Entries {
		if err := s.open(&page.Entries[i]); err != nil {
			return store.Page{}, err
		}
	}
	return page, nil
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	sealed := make([]store.Op, len(ops))
	for i, op := range ops {
		if op.Kind == store.Put {
			value, err := s.seal(op.Key, op.Value)
			if err != nil {
				return 0, err
			}
			op.Value = value
		}
		sealed[i] = op
	}
	return s.inner.Commit(ctx, sealed...)
}

// Watch implements store.Store. A value that cannot be opened ends the watch.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) (<-chan []store.Change, error) {
	ctx, cancel := context.WithCancel(ctx)
	in, err := s.inner.Watch(ctx, prefix, after)
	if err != nil {
		cancel()
		return nil, err
	}
	out := make(chan []store.Change)
	go func() {
		defer cancel()
		defer close(out)
		for changes := range in {
			for i := range changes {
				if !changes[i].Deleted && s.open(&changes[i].Entry) != nil {
					return
				}
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
