package hostlink

import (
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// clearing is what a host that has come back has to end before it is ready: groups that were started elsewhere while it
// was away. The client's lock guards it.
type clearing struct {
	told bool            // the server has said on this connection which groups are the host's
	left map[string]bool // uids of others that still run
}

// begin starts anew: on another connection another server may say something else.
func (c *Client) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clearing = clearing{}
}

// clear notes which groups are to end, of all that the host runs; the lock is held.
func (c *Client) clear(keep map[string]bool) {
	if c.clearing.told {
		return // groups that leave a host in use do not keep it from anything
	}
	c.clearing = clearing{told: true, left: map[string]bool{}}
	for uid, s := range c.statuses {
		if !keep[uid] && !over(&s) {
			c.clearing.left[uid] = true
		}
	}
	c.Changed()
}

// follow notes that a group has ended; the lock is held.
func (c *Client) follow(s *group.Status) {
	if c.clearing.left[s.UID] && over(s) {
		if delete(c.clearing.left, s.UID); len(c.clearing.left) == 0 {
			c.Changed()
		}
	}
}

func over(s *group.Status) bool { return s.Gone || s.State.Ended() }

// describe is what the host says of itself, and that it is not ready while it clears up.
func (c *Client) describe() host.Host {
	h := c.cfg.Local.Describe()
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.State == host.Ready && (!c.clearing.told || len(c.clearing.left) > 0) {
		h.State, h.Reason = host.NotReady, "It stops what was started elsewhere while it was away."
	}
	return h
}
