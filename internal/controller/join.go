package controller

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/store"
)

// Lives of join tokens.
const (
	DefaultTokenLife = time.Hour
	MaxTokenLife     = 7 * 24 * time.Hour
)

// JoinToken lets one host join, once.
type JoinToken struct {
	ID      string    `json:"id"`
	Hash    []byte    `json:"hash"` // of the secret: the store cannot give tokens away
	Host    string    `json:"host,omitempty"`
	Pool    string    `json:"pool,omitempty"`
	Expires time.Time `json:"expires"`
}

// CreateToken makes a token and gives its secret, which nobody can ask for again.
func (c *Controller) CreateToken(ctx context.Context, t JoinToken, life time.Duration) (JoinToken, string, error) {
	if life == 0 {
		life = DefaultTokenLife
	}
	if life < 0 || life > MaxTokenLife {
		return t, "", fault.New(fault.Invalid, "InvalidTokenLife", "A token cannot be good for %s: at most %s.", life, MaxTokenLife)
	}
	var raw [24]byte
	_, _ = rand.Read(raw[:])
	secret := hex.EncodeToString(raw[8:])
	sum := sha256.Sum256([]byte(secret))
	t.ID, t.Hash, t.Expires = hex.EncodeToString(raw[:8]), sum[:], c.cfg.Now().UTC().Add(life)
	value, err := encode(t)
	if err != nil {
		return t, "", err
	}
	_, err = c.cfg.Store.Commit(ctx, store.Op{Key: store.JoinTokenKey(t.ID), Value: value, If: store.Absent})
	return t, t.ID + "." + secret, err
}

// Joining is a host that wants to join. Sign makes its certificate.
type Joining struct {
	Token string
	Name  string
	Sign  func(uid string) (certPEM []byte, serial string, err error)
}

// errUnchanged ends a change that has nothing to do.
var errUnchanged = errors.New("nothing to change")

// Join takes a host into the fleet: the token is used up and the name taken in one commit. Errors: denied (unknown,
// used or expired token), conflict (a name that is taken).
func (c *Controller) Join(ctx context.Context, j Joining) ([]byte, error) {
	t, used, err := c.openToken(ctx, j.Token)
	if err != nil {
		return nil, err
	}
	if t.Host != "" && t.Host != j.Name {
		return nil, fault.New(fault.Denied, "JoinTokenForeign", "The join token is for the host '%s', not for '%.80s'.", t.Host, j.Name)
	}
	r := hostRecord{UID: newID(), Joined: c.cfg.Now().UTC(), Pool: t.Pool}
	cert, serial, err := j.Sign(r.UID)
	if err != nil {
		return nil, err
	}
	r.Serial = serial
	value, err := encode(r)
	if err != nil {
		return nil, err
	}
	key := store.HostKey(j.Name)
	revision, err := c.cfg.Store.Commit(ctx, store.Op{Key: key, Value: value, If: store.Absent},
		store.Op{Key: store.JoinTokenKey(t.ID), Kind: store.Delete, If: used})
	if errors.Is(err, store.ErrConflict) {
		if _, getErr := c.cfg.Store.Get(ctx, key); getErr == nil {
			return nil, fault.New(fault.Conflict, "HostNameTaken", "A host with the name '%s' has joined already. Choose another name with --name, or remove that host with 'spillway host rm %s'.", j.Name, j.Name)
		}
		return nil, badToken()
	}
	if err != nil {
		return nil, fmt.Errorf("store host %s: %w", j.Name, err)
	}
	c.cfg.Log.Info("host joined", "host", j.Name, "uid", r.UID, "pool", r.Pool)
	return cert, c.apply(store.Change{Entry: store.Entry{Key: key, Value: value, Revision: revision}, Revision: revision})
}

func badToken() error {
	return fault.New(fault.Denied, "JoinTokenInvalid", "The join token is unknown, expired, or was used before. Make another with 'spillway token create'.")
}

// openToken finds a token that is good now, and the revision of its record.
func (c *Controller) openToken(ctx context.Context, text string) (JoinToken, int64, error) {
	var t JoinToken
	id, secret, ok := strings.Cut(text, ".")
	if !ok || len(id) != 16 || strings.Trim(id, "0123456789abcdef") != "" {
		return t, 0, badToken()
	}
	e, err := c.cfg.Store.Get(ctx, store.JoinTokenKey(id))
	if errors.Is(err, store.ErrNotFound) {
		return t, 0, badToken()
	}
	if err != nil {
		return t, 0, fmt.Errorf("read join token: %w", err)
	}
	if err := json.Unmarshal(e.Value, &t); err != nil {
		return t, 0, fmt.Errorf("read join token %s: %w", id, err)
	}
	sum := sha256.Sum256([]byte(secret))
	if subtle.ConstantTimeCompare(sum[:], t.Hash) != 1 || !c.cfg.Now().Before(t.Expires) {
		return t, 0, badToken()
	}
	return t, e.Revision, nil
}

// Admit says whether a host may connect: it has joined, was not removed, and its name was not given to another since.
func (c *Controller) Admit(name, uid string) error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.admits(name, uid)
}

// admits is Admit with the lock held.
func (c *Controller) admits(name, uid string) error {
	if r := c.idx.hosts[name]; r == nil || r.UID == "" || r.UID != uid {
		return fault.New(fault.Denied, "HostUnknown", "the host %s is not of this fleet: it was removed, or its name was given to another", name)
	}
	return nil
}

// changeHost writes the record of a host anew that is connected or has joined. Errors: not-found, also when it is removed
// meanwhile.
func (c *Controller) changeHost(ctx context.Context, name string, edit func(*hostRecord) error) error {
	return c.editHost(ctx, name, func(r *hostRecord) error {
		if _, connected := c.Host(name); r.revision == store.Absent && !connected {
			return noHost(name)
		}
		return edit(r)
	})
}

// editHost writes a host's record anew, or the first one.
func (c *Controller) editHost(ctx context.Context, name string, edit func(*hostRecord) error) error {
	key := store.HostKey(name)
	for range maxAttempts {
		c.mu.RLock()
		var r hostRecord
		if old := c.idx.hosts[name]; old != nil {
			r = *old
		}
		c.mu.RUnlock()
		if err := edit(&r); errors.Is(err, errUnchanged) {
			return nil
		} else if err != nil {
			return err
		}
		value, err := encode(r)
		if err != nil {
			return err
		}
		revision, err := c.cfg.Store.Commit(ctx, store.Op{Key: key, Value: value, If: r.revision})
		if err == nil {
			return c.apply(store.Change{Entry: store.Entry{Key: key, Value: value, Revision: revision}, Revision: revision})
		}
		if !errors.Is(err, store.ErrConflict) {
			return fmt.Errorf("store host %s: %w", name, err)
		}
		e, err := c.cfg.Store.Get(ctx, key)
		if errors.Is(err, store.ErrNotFound) {
			return noHost(name)
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", key, err)
		}
		if err := c.apply(store.Change{Entry: e, Revision: e.Revision}); err != nil {
			return err
		}
	}
	return fault.New(fault.Conflict, "", "The host '%s' is being changed by others. Try again.", name)
}

// RemoveHost forgets a host that has joined: its certificate is good for nothing from then on. Errors: not-found;
// conflict, while it has groups.
func (c *Controller) RemoveHost(ctx context.Context, name string) (host.Host, error) {
	c.mu.RLock()
	r, h := c.idx.hosts[name], host.Host{}
	known := r != nil && r.UID != ""
	if known {
		h, _ = c.known(name)
	}
	left := 0
	for _, e := range c.idx.byHost[name] {
		if e.group.Desired == group.Delete || e.holds() {
			left++
		}
	}
	c.mu.RUnlock()
	if !known {
		return h, noHost(name)
	}
	if left > 0 {
		return h, fault.New(fault.Conflict, "HostInUse", "The host '%s' has %d groups. Move them away first with 'spillway host drain %s'.", name, left, name)
	}
	key := store.HostKey(name)
	revision, err := c.cfg.Store.Commit(ctx, store.Op{Key: key, Kind: store.Delete, If: r.revision})
	if errors.Is(err, store.ErrConflict) {
		return h, fault.New(fault.Conflict, "", "The host '%s' is being changed by others. Try again.", name)
	}
	if err != nil {
		return h, fmt.Errorf("remove host %s: %w", name, err)
	}
	h.Name = name
	c.cfg.Log.Info("host removed", "host", name, "uid", r.UID)
	return h, c.bury(key, revision)
}
