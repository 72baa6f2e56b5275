package place

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

func named(uid string, g *group.Group) *group.Group {
	g.UID, g.Ref = uid, group.Ref{Subscription: "s", Name: uid}
	return g
}

// retry tries all that can be tried and gives the uids that were placed.
func retry(q *Queue) (uids []string) {
	for more := true; more; {
		var placed []Placed
		placed, more = q.Retry(8, 8)
		for _, p := range placed {
			uids = append(uids, p.Group.UID)
		}
	}
	return uids
}

func fleetOf(n int, q *Queue, v *View) {
	for i := range n {
		v.SetHost(plainHost(fmt.Sprintf("h%d", i), nil))
	}
	retry(q)
}

func TestQueueRetriesWhatAChangeHelps(t *testing.T) {
	v := NewView(Policies{})
	q := NewQueue(v)
	fleetOf(1, q, v)
	v.Take(named("full", wanted(2000, gb)))
	q.Wait(named("large", wanted(2000, 4*gb)), false)
	q.Wait(named("small", wanted(500, gb)), false)
	q.Wait(named("other", &group.Group{Zones: []string{"9"}, Spec: wanted(100, gb).Spec}), false)
	if got := retry(q); len(got) != 0 {
		t.Errorf("Retry without a change placed %v", got)
	}
	if r, waits := q.Why("large"); !waits || r.String() != "h0: 0 of 2 CPU are free" {
		t.Errorf("Why = %v, %t", r, waits)
	}
	v.Take(named("more", wanted(0, gb)))
	v.Release("full")
	if got := fmt.Sprint(retry(q)); got != "[small other]" {
		t.Errorf("Retry placed %v, want small and other: a host without a zone takes any", got)
	}
	v.SetHost(plainHost("h1", nil))
	if got := fmt.Sprint(retry(q)); got != "[large]" || q.Len() != 0 {
		t.Errorf("Retry placed %v, %d wait", got, q.Len())
	}
}

func TestQueueRetriesForAffinity(t *testing.T) {
	v := NewView(Policies{})
	q := NewQueue(v)
	fleetOf(2, q, v)
	beside := named("beside", wanted(100, gb))
	beside.Spec.Placement = &group.Placement{Affinity: []group.Affinity{{Match: []group.Expression{{Key: "app", Operator: group.In, Values: []string{"db"}}}, Topology: group.TopologyHost}}}
	if d := v.Take(beside); d.Host != "" || d.Refusal.String() != "2 hosts: 2 are where the group's affinity does not lead" {
		t.Errorf("Take = %+v", d)
	}
	q.Wait(beside, false)
	if got := retry(q); len(got) != 0 {
		t.Errorf("Retry placed %v", got)
	}
	db := named("db", wanted(100, gb))
	db.Spec.Labels = map[string]string{"app": "db"}
	at := v.Take(db).Host
	if got := fmt.Sprint(retry(q)); got != "[beside]" || v.HostOf("beside") != at {
		t.Errorf("Retry placed %v on %s, want beside on %s", got, v.HostOf("beside"), at)
	}
}

// TestNobodyIsOvertakenForEver has small groups come as fast as others go, in front of a large one.
func TestNobodyIsOvertakenForEver(t *testing.T) {
	v := NewView(Policies{})
	q := NewQueue(v)
	fleetOf(2, q, v)
	var running []string
	n := 0
	small := func() {
		for {
			uid := fmt.Sprintf("small%d", n)
			if v.Take(named(uid, wanted(1000, gb))).Host == "" {
				return
			}
			running, n = append(running, uid), n+1
		}
	}
	small()
	q.Wait(named("large", wanted(2000, gb)), false)
	for turn := range 100 {
		v.Release(running[0])
		running = running[1:]
		if got := retry(q); len(got) == 1 {
			if turn < overtakes-1 || turn > overtakes+4 {
				t.Errorf("large was placed after %d turns", turn)
			}
			return
		}
		small()
	}
	t.Errorf("large still waits after %d others were given room", n)
}

func TestLeavingGivesTheKeptHostUp(t *testing.T) {
	v := NewView(Policies{})
	q := NewQueue(v)
	fleetOf(1, q, v)
	v.Take(named("a", wanted(1000, gb)))
	q.Wait(named("large", wanted(2000, gb)), false)
	for i := range overtakes {
		v.Take(named(fmt.Sprint("x", i), wanted(10, 0)))
		v.Release(fmt.Sprint("x", i))
	}
	retry(q)
	if d := v.Take(named("b", wanted(100, gb))); d.Host != "" || d.Refusal.String() != "h0: it is kept for a group that has waited longer" {
		t.Errorf("Take beside a kept host = %+v", d)
	}
	q.Leave("large")
	q.Leave("large")
	if d := v.Take(named("b", wanted(100, gb))); d.Host != "h0" {
		t.Errorf("Take after leaving = %+v", d)
	}
}

// TestQueueIsFair lets random things happen: what fits is placed by the end of a round, oldest first among equals, and
// capacity holds.
func TestQueueIsFair(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v := NewView(Policies{})
		v.limits.small = rapid.SampledFrom([]int{0, 32}).Draw(t, "small")
		q := NewQueue(v)
		o := &oracle{Policies{}, map[string]host.Host{}, map[string]*group.Group{}}
		waiting := map[string]*group.Group{}
		n := 0
		t.Repeat(map[string]func(*rapid.T){
			"host": func(t *rapid.T) {
				h := drawHost(t, fmt.Sprintf("h%03d", rapid.IntRange(0, 9).Draw(t, "host")))
				o.hosts[h.Name] = h
				v.SetHost(h)
			},
			"group": func(t *rapid.T) {
				n++
				g := drawGroup(t, fmt.Sprint("g", n))
				if d := v.Take(g); d.Host == "" {
					q.Wait(g, false)
					waiting[g.UID] = g
				} else {
					placed := *g
					placed.Host = d.Host
					o.groups[g.UID] = &placed
				}
			},
			"end": func(t *rapid.T) {
				for _, uid := range slices.Sorted(maps.Keys(o.groups)) {
					if rapid.IntRange(0, 3).Draw(t, "ends") == 0 {
						v.Release(uid)
						delete(o.groups, uid)
					}
				}
			},
			"leave": func(t *rapid.T) {
				for _, uid := range slices.Sorted(maps.Keys(waiting)) {
					if rapid.IntRange(0, 9).Draw(t, "leaves") == 0 {
						q.Leave(uid)
						delete(waiting, uid)
					}
				}
			},
			"": func(t *rapid.T) {
				for more := true; more; {
					var placed []Placed
					placed, more = q.Retry(rapid.IntRange(1, 4).Draw(t, "limit"), rapid.IntRange(1, 4).Draw(t, "urgent"))
					for _, p := range placed {
						if waiting[p.Group.UID] == nil || !o.feasible(p.Group, o.hosts[p.Host]) {
							t.Fatalf("%s was placed on %s, which does not take it", p.Group.UID, p.Host)
						}
						delete(waiting, p.Group.UID)
						copied := *p.Group
						copied.Host = p.Host
						o.groups[copied.UID] = &copied
					}
				}
				if q.Len() != len(waiting) {
					t.Fatalf("%d wait, want %d", q.Len(), len(waiting))
				}
				for uid, g := range waiting {
					for name, h := range o.hosts {
						if held := v.machines[v.byName[name]].held; o.feasible(g, h) && (held == 0 || held == q.byUID[uid].number) {
							t.Fatalf("%s waits, but fits on %s", uid, name)
						}
					}
				}
			},
		})
	})
}

// TestQueueBoundsUrgentGroups: no more urgent groups get room in a call than may, and the others are not kept waiting by them.
func TestQueueBoundsUrgentGroups(t *testing.T) {
	v := NewView(Policies{})
	q := NewQueue(v)
	for i := range 5 {
		q.Wait(named(fmt.Sprint("urgent", i), wanted(100, gb/4)), true)
	}
	q.Wait(named("other", wanted(100, gb/4)), false)
	v.SetHost(plainHost("h0", nil))
	for i, want := range []string{"[urgent0 urgent1 other]", "[urgent2 urgent3]", "[urgent4]"} {
		placed, more := q.Retry(8, 2)
		var got []string
		for _, p := range placed {
			got = append(got, p.Group.UID)
		}
		if fmt.Sprint(got) != want || more != (i < 2) {
			t.Errorf("call %d placed %v and says %t, want %s", i, got, more, want)
		}
	}
}
