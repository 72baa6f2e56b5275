package place

import (
	"fmt"
	"testing"
	"time"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

func spot(g *group.Group) *group.Group {
	g.Spec.Priority = group.PrioritySpot
	return g
}

func TestQueueGoesByRankAndAge(t *testing.T) {
	v := NewView(Policies{})
	q := NewQueue(v)
	born := func(uid string, second int64, g *group.Group) *group.Group {
		g.Created = time.Unix(second, 0)
		return named(uid, g)
	}
	q.Wait(born("spot", 1, spot(wanted(100, gb))), false)
	q.Wait(born("young", 3, wanted(100, gb)), false)
	q.Wait(born("lost", 4, wanted(100, gb)), true)
	q.Wait(born("old", 2, wanted(100, gb)), false)
	if got := fmt.Sprint(q.Look(3), q.Look(3)); got != "[lost old young] [spot lost old]" {
		t.Errorf("Look = %s", got)
	}
	v.SetHost(plainHost("h0", nil))
	if got := fmt.Sprint(retry(q)); got != "[lost old young spot]" {
		t.Errorf("Retry placed %s", got)
	}
}

func TestPausedGroupsAreLeftAlone(t *testing.T) {
	v := NewView(Policies{})
	q := NewQueue(v)
	g := named("a", wanted(100, gb))
	q.Wait(g, false)
	q.Pause("a")
	v.SetHost(plainHost("h0", nil))
	if got := retry(q); len(got) != 0 {
		t.Errorf("Retry placed %v", got)
	}
	q.Wait(g, false)
	if got := fmt.Sprint(retry(q)); got != "[a]" {
		t.Errorf("Retry placed %v", got)
	}
}

func TestSpotGroupsLeaveForRegularOnes(t *testing.T) {
	v := NewView(Policies{})
	q := NewQueue(v)
	fleetOf(2, q, v)
	for i, cpu := range []int64{2000, 1500} {
		v.Take(named(fmt.Sprint("s", i), spot(wanted(cpu, gb))))
	}
	q.Wait(named("spot", spot(wanted(1000, gb))), false)
	q.Wait(named("large", wanted(1500, gb)), false)
	if got := retry(q); len(got) != 0 {
		t.Fatalf("Retry placed %v", got)
	}
	out := q.Evict(8)
	if len(out) != 1 || out[0].Group.UID != "large" || fmt.Sprint(out[0].Victims) != "[s1]" || q.Len() != 1 {
		t.Fatalf("Evict = %+v, %d wait", out, q.Len())
	}
	at, victim := out[0].Host, out[0].Victims[0]
	if d := v.Take(named("thief", wanted(500, gb))); d.Host != "" {
		t.Errorf("the room that becomes free was given to another on %s", d.Host)
	}
	if v.TakeOn(at, out[0].Group) {
		t.Error("the group took room that the Spot group still has")
	}
	there := *out[0].Group
	there.Host = at
	v.Assign(&there)
	v.Release(victim)
	if got := retry(q); len(got) != 0 {
		t.Errorf("Retry placed %v in kept room", got)
	}
	if !v.TakeOn(at, out[0].Group) || v.HostOf("large") != at {
		t.Error("the group did not get the room")
	}
	if out := q.Evict(8); len(out) != 0 {
		t.Errorf("Evict = %+v once nobody has to", out)
	}
}

// TestEndingNeighboursMakeSpotGroupsSuffice: what a regular group leaves and what a Spot group would leave add up.
func TestEndingNeighboursMakeSpotGroupsSuffice(t *testing.T) {
	v := NewView(Policies{})
	q := NewQueue(v)
	fleetOf(1, q, v)
	v.Take(named("regular", wanted(1000, gb)))
	v.Take(named("s", spot(wanted(1000, gb))))
	q.Wait(named("large", wanted(2000, gb)), false)
	retry(q)
	if out := q.Evict(8); len(out) != 0 {
		t.Fatalf("Evict = %+v", out)
	}
	v.Release("regular")
	retry(q)
	if out := q.Evict(8); len(out) != 1 || fmt.Sprint(out[0].Victims) != "[s]" {
		t.Errorf("Evict = %+v", out)
	}
}

func TestNever(t *testing.T) {
	v := NewView(Policies{})
	v.SetHost(plainHost("h0", func(h *host.Host) { h.State, h.Cordoned = host.NotReady, true }))
	strong := wanted(100, gb)
	strong.Spec.Isolation = group.IsolationGVisor
	for _, test := range []struct {
		g    *group.Group
		want bool
	}{{wanted(2000, 4*gb), false}, {wanted(2001, gb), true}, {strong, true}} {
		if got := v.Never(test.g); got != test.want {
			t.Errorf("Never(%v) = %t", test.g.Spec.Total(), got)
		}
	}
}
