// Package store is what the control plane remembers: keys with values and revisions, changed in atomic commits and
// watched from any revision.
//
// It must never know what the values mean. Implementations: mem (tests), etcd (a cluster or the embedded member), and
// sealed, which encrypts the values of another store. Each passes storetest. Start reading at Store; keys.go is the
// layout.
package store

import (
	"context"
	"errors"
)

// Errors that callers tell apart.
var (
	ErrNotFound  = errors.New("key does not exist")
	ErrConflict  = errors.New("a key has changed meanwhile")
	ErrCompacted = errors.New("the revision is no longer kept")
	ErrFenced    = errors.New("another server leads")
)

// CodeFenced is the code of the error that a caller gets whose write was refused because another server leads. Nothing was
// written: it may be sent again.
const CodeFenced = "ServerNotLeading"

// Entry is a key with its value.
type Entry struct {
	Key      string
	Value    []byte
	Revision int64 // of the commit that wrote it
}

// Op is one step of a commit.
type Op struct {
	Key   string
	Value []byte
	Kind  Kind
	// If is the revision that the key must have: Absent, Any, or the revision that was read.
	If int64
}

// Kind says what a step does.
type Kind int

// The kinds of steps. Check writes nothing; it only demands If.
const (
	Put Kind = iota
	Delete
	Check
)

// Values of Op.If that are no revision.
const (
	Absent int64 = 0  // the key must not exist
	Any    int64 = -1 // it does not matter
	Exists int64 = -2 // the key must exist
)

// Page is a part of a list.
type Page struct {
	Entries  []Entry
	Revision int64  // of the store when the page was read
	Continue string // "" on the last page
}

// Change is one step that a watch saw.
type Change struct {
	Entry          // Value is nil for a deletion
	Deleted  bool  // the key is gone
	Revision int64 // of the commit
}

// Store keeps entries. All methods are safe for concurrent use; commits are linearizable and durable when they
// return.
type Store interface {
	// Get reads a key. Errors: ErrNotFound.
	Get(ctx context.Context, key string) (Entry, error)
	// List reads keys that begin with prefix, in order, at most limit (0 = all), after the key in from ("" = start).
	List(ctx context.Context, prefix string, limit int, from string) (Page, error)
	// Commit does all ops at once or none, in one durable write, and gives the new revision. Errors: ErrConflict.
	Commit(ctx context.Context, ops ...Op) (int64, error)
	// Watch sends every change of keys that begin with prefix, made after revision, in order, until ctx ends or the
	// store closes; then the channel closes. Changes of one commit come together. Errors: ErrCompacted.
	Watch(ctx context.Context, prefix string, after int64) (<-chan []Change, error)
}
