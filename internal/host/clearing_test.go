package host

import (
	"slices"
	"testing"

	"spillway.dev/spillway/internal/group"
)

func TestClearing(t *testing.T) {
	t.Parallel()
	running := func(uid string) group.Status { return group.Status{UID: uid, State: group.Running} }
	var c Clearing
	ready := func(want bool) {
		t.Helper()
		if h := c.Describe(Host{State: Ready}); (h.State == Ready) != want || (h.Reason == "") != want {
			t.Fatalf("the host is %s (%q), want ready %v", h.State, h.Reason, want)
		}
	}
	if ready(false); c.Told() {
		t.Error("it has been told before it was")
	}
	ended := group.Status{UID: "ended", State: group.Succeeded}
	if !c.Retain(map[string]bool{"own": true}, slices.Values([]group.Status{running("own"), running("one"), running("two"), ended})) || !c.Told() {
		t.Error("the first word changes nothing")
	}
	ready(false)
	one, own := running("one"), group.Status{UID: "own", State: group.Succeeded}
	if c.Follow(&one) || c.Follow(&own) {
		t.Error("a group that runs, or is the host's own, was the last")
	}
	if c.Follow(&group.Status{UID: "one", Gone: true}) {
		t.Error("the first of two was the last")
	}
	ready(false)
	if !c.Follow(&group.Status{UID: "two", State: group.Failed}) {
		t.Error("the last was not the last")
	}
	ready(true)
	if c.Retain(nil, slices.Values([]group.Status{running("own")})) {
		t.Error("a group that leaves a host in use keeps it from something")
	}
	ready(true)
	if h := c.Describe(Host{State: Lost}); h.State != Lost {
		t.Errorf("a host that is lost says that it is %s", h.State)
	}
}
