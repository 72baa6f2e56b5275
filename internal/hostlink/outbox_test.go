package hostlink

import (
	"testing"

	"spillway.dev/spillway/internal/group"
)

// TestAssignmentsStayBehindRetain: a group that comes back after it was to be taken away is not taken away.
func TestAssignmentsStayBehindRetain(t *testing.T) {
	o := newOutbox()
	o.assign(&group.Group{UID: "a", Generation: 1})
	o.put(&down{Retain: &retain{}})
	o.assign(&group.Group{UID: "a", Generation: 2})
	if list := o.take(); len(list) != 3 || list[1].Retain == nil || list[2].Assign[0].Generation != 2 {
		t.Errorf("the host is told %+v", list)
	}
}
