package controller

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/store"
)

// maxNetworkID is the largest VXLAN network id.
const maxNetworkID = 1<<24 - 1

// applyNetworkID takes over a network's number. It never changes.
func (c *Controller) applyNetworkID(ch store.Change) error {
	if ch.Deleted {
		return nil
	}
	id, err := strconv.ParseUint(string(ch.Value), 10, 24)
	if err != nil {
		return fmt.Errorf("read %s: %w", ch.Key, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idx.networks[strings.TrimPrefix(ch.Key, store.NetworkIDs)] = uint32(id)
	return nil
}

// numberNetwork gives a group its network's number on all hosts, which is written down before it is used. Numbers are
// counted, not hashed, so that no two networks ever share one; they are not given again.
func (c *Controller) numberNetwork(ctx context.Context, g *group.Group) error {
	if !c.cfg.Network.IsValid() {
		return nil
	}
	key := store.NetworkIDKey(g.Ref.Subscription, g.Spec.NetworkName())
	for range maxAttempts {
		c.mu.RLock()
		id, ok := c.idx.networks[strings.TrimPrefix(key, store.NetworkIDs)]
		highest := uint32(0)
		if !ok {
			for _, n := range c.idx.networks {
				highest = max(highest, n)
			}
		}
		c.mu.RUnlock()
		if ok {
			g.NetworkID = id
			return nil
		}
		if highest == maxNetworkID {
			return fault.New(fault.Exhausted, "", "There are %d networks already, as many as there can be.", maxNetworkID)
		}
		if err := c.takeNetworkID(ctx, key, highest+1); err != nil {
			return err
		}
	}
	return busy(g.Ref)
}

// numberOld gives running groups from a time when there was one host their networks' numbers.
func (c *Controller) numberOld(ctx context.Context) error {
	c.mu.RLock()
	var old []group.Ref
	for _, e := range c.idx.groups {
		if e.group.NetworkID == 0 && e.group.Desired == group.Run {
			old = append(old, e.group.Ref)
		}
	}
	c.mu.RUnlock()
	for _, ref := range old {
		_, err := c.change(ctx, ref, func(e *entry) (*group.Group, error) {
			if e.group.NetworkID != 0 || e.group.Desired != group.Run {
				return nil, nil
			}
			g := *e.group
			return &g, nil // numbered as it is written
		})
		if err != nil && fault.KindOf(err) != fault.NotFound {
			return err
		}
	}
	return nil
}

// takeNetworkID writes one number down, or reads the one that another has written.
func (c *Controller) takeNetworkID(ctx context.Context, key string, id uint32) error {
	c.numbering.Lock()
	defer c.numbering.Unlock()
	c.mu.RLock()
	taken := false
	for _, n := range c.idx.networks {
		taken = taken || n == id
	}
	c.mu.RUnlock()
	if taken {
		return nil // look again
	}
	value := []byte(strconv.FormatUint(uint64(id), 10))
	revision, err := c.cfg.Store.Commit(ctx, store.Op{Key: key, Value: value, If: store.Absent})
	e := store.Entry{Key: key, Value: value, Revision: revision}
	if errors.Is(err, store.ErrConflict) {
		e, err = c.cfg.Store.Get(ctx, key)
	}
	if err != nil {
		return fmt.Errorf("number network %s: %w", key, err)
	}
	return c.applyNetworkID(store.Change{Entry: e, Revision: e.Revision})
}
