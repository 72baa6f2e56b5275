package host

import (
	"iter"

	"spillway.dev/spillway/internal/group"
)

// Clearing is what a host that has come back has to end before it is ready: groups that were started elsewhere while it was away.
// It is of one connection, as another server may say something else, and begins with the zero value. Not safe for concurrent use.
type Clearing struct {
	told bool            // the server has said which groups the host's are
	left map[string]bool // uids of others that still run
}

// Told says whether the server has said which groups the host's are.
func (c *Clearing) Told() bool { return c.told }

// Retain notes what is to end, of all that the host runs, when it is told for the first time which groups are its own: those that
// leave a host in use do not keep it from anything. It says whether that changed anything.
func (c *Clearing) Retain(own map[string]bool, statuses iter.Seq[group.Status]) bool {
	if c.told {
		return false
	}
	c.told, c.left = true, map[string]bool{}
	for s := range statuses {
		if !own[s.UID] && !over(&s) {
			c.left[s.UID] = true
		}
	}
	return true
}

// Follow notes what has become of a group. It says whether it was the last that had to end.
func (c *Clearing) Follow(s *group.Status) bool {
	if !c.left[s.UID] || !over(s) {
		return false
	}
	delete(c.left, s.UID)
	return len(c.left) == 0
}

// Describe says of a host what it says of itself, and that it is not ready while it clears up.
func (c *Clearing) Describe(h Host) Host {
	if h.State == Ready && (!c.told || len(c.left) > 0) {
		h.State, h.Reason = NotReady, "It stops what was started elsewhere while it was away."
	}
	return h
}

func over(s *group.Status) bool { return s.Gone || s.State.Ended() }
