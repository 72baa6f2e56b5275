package controller

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/store/mem"
)

func putSpot(t *testing.T, c *Controller, name string, gb int64, policy group.RestartPolicy) {
	t.Helper()
	req := sized(gb)
	req.Spec.Priority, req.Spec.RestartPolicy = group.PrioritySpot, policy
	if _, err := c.Put(t.Context(), ref(name), req); err != nil {
		t.Fatal(err)
	}
	await(t, c, name, group.Running)
}

func TestSpotGroupsGiveWay(t *testing.T) {
	c, _ := start(t, mem.New())
	withResourceGroup(t, c)
	small(t, c, "h1", 4)
	putSpot(t, c, "back", 2, group.RestartAlways)
	putSpot(t, c, "never", 2, group.RestartNever)
	putSized(t, c, "regular", 3)
	soon(t, c, "regular")
	await(t, c, "never", group.Stopped)
	for _, name := range []string{"back", "never"} {
		v := mustGet(t, c, name)
		if e := v.Group.Events[0]; e.Name != eventEvicted || e.Type != group.Warning || !strings.Contains(e.Message, "'regular'") {
			t.Errorf("events of %s are %+v", name, v.Group.Events)
		}
	}
	awaitView(t, c, "back", "its wait", func(v arm.View) bool { return v.Group.Desired == group.Run && v.Group.Host == "" })
	if _, err := c.Delete(t.Context(), ref("regular"), nil); err != nil {
		t.Fatal(err)
	}
	if v := soon(t, c, "back"); v.Group.Epoch != 2 || v.Group.Evicted != nil {
		t.Errorf("it came back as %+v", v.Group)
	}
	if v := mustGet(t, c, "never"); v.State() != group.Stopped || v.Group.Epoch != 1 {
		t.Errorf("the group that never starts twice is %s in epoch %d", v.State(), v.Group.Epoch)
	}
	if res, err := c.Start(t.Context(), ref("never")); err != nil || res.View.Group.Evicted != nil {
		t.Errorf("Start = %+v, %v", res.View.Group, err)
	}
	soon(t, c, "never")
	checkBooks(t, c)
}

// checkBooks finds that the fleet's view agrees with the groups, and that nothing is promised twice.
func checkBooks(t *testing.T, c *Controller) {
	t.Helper()
	eventually(t, "that the books are right", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		used := map[string]group.Resources{}
		for _, e := range c.idx.groups {
			if e.holds() {
				used[e.group.Host] = used[e.group.Host].Add(e.group.Spec.Total())
			}
		}
		for name := range c.links {
			if c.idx.fleet.Used(name) != used[name] || used[name].Memory > c.describe(name).Capacity.Memory {
				return false
			}
		}
		return len(c.idx.claims) == 0 && len(c.idx.reserved) == 0
	})
}

// TestNobodyStealsRoomThatIsMade has others come while the victims still stop.
func TestNobodyStealsRoomThatIsMade(t *testing.T) {
	c, _ := start(t, mem.New())
	withResourceGroup(t, c)
	h := small(t, c, "h1", 4)
	putSpot(t, c, "s1", 2, group.RestartAlways)
	putSpot(t, c, "s2", 2, group.RestartAlways)
	h.Slow(300 * time.Millisecond)
	putSized(t, c, "regular", 4)
	eventually(t, "the eviction", func() bool { return mustGet(t, c, "s1").Group.Evicted != nil })
	if v := mustGet(t, c, "regular"); v.Status.Reason != "FailedPlacement: 2 Spot groups stop to make room" {
		t.Errorf("the regular group says %q", v.Status.Reason)
	}
	var thieves sync.WaitGroup
	for i := range 10 {
		thieves.Go(func() {
			if res, err := c.Put(context.WithoutCancel(t.Context()), ref(fmt.Sprint("thief", i)), sized(1)); err != nil || res.View.Group.Host != "" {
				t.Errorf("Put = %+v, %v", res.View.Group, err)
			}
		})
	}
	if _, err := c.Start(t.Context(), ref("s2")); err == nil {
		t.Error("a group that stops for another was started")
	}
	if _, err := c.Stop(t.Context(), ref("s2")); err != nil {
		t.Error(err)
	}
	soon(t, c, "regular")
	thieves.Wait()
	awaitView(t, c, "s1", "its wait", func(v arm.View) bool { return v.Group.Host == "" && v.Group.Desired == group.Run })
	if v := mustGet(t, c, "s2"); v.State() != group.Stopped || v.Group.Evicted != nil {
		t.Errorf("the group that was asked to stop is %s: %+v", v.State(), v.Group)
	}
	checkBooks(t, c)
}

// TestEvictionsAreGivenUp: without a claimant, or without the host, the victims come back.
func TestEvictionsAreGivenUp(t *testing.T) {
	for name, act := range map[string]func(t *testing.T, c *Controller){
		"deleted": func(t *testing.T, c *Controller) {
			if _, err := c.Delete(t.Context(), ref("regular"), nil); err != nil {
				t.Fatal(err)
			}
		},
		"smaller": func(t *testing.T, c *Controller) {
			small(t, c, "h2", 1)
			if _, err := c.Put(t.Context(), ref("regular"), sized(1)); err != nil {
				t.Fatal(err)
			}
		},
		"cordoned": func(t *testing.T, c *Controller) {
			small(t, c, "h2", 4)
			if _, err := c.Cordon(t.Context(), "h1", true); err != nil {
				t.Fatal(err)
			}
			soon(t, c, "regular")
			if _, err := c.Cordon(t.Context(), "h1", false); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, _ := start(t, mem.New())
			withResourceGroup(t, c)
			h := small(t, c, "h1", 2)
			putSpot(t, c, "s1", 1, group.RestartAlways)
			h.Slow(200 * time.Millisecond)
			putSized(t, c, "regular", 2)
			eventually(t, "the eviction", func() bool { return mustGet(t, c, "s1").Group.Evicted != nil })
			act(t, c)
			if name == "smaller" {
				soon(t, c, "regular")
			}
			awaitView(t, c, "s1", "the return", func(v arm.View) bool { return v.Group.Epoch == 2 && v.State() == group.Running })
			checkBooks(t, c)
		})
	}
}

// dying is a store that fails for ever after some more commits, before or after the last one took effect.
type dying struct {
	store.Store
	mu    sync.Mutex
	left  int
	after bool
}

var errDead = errors.New("the server is dead")

func (s *dying) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.left--; s.left < 0 {
		return 0, errDead
	}
	revision, err := s.Store.Commit(ctx, ops...)
	if s.left == 0 && s.after {
		return 0, errDead
	}
	return revision, err
}

// TestEvictionSurvivesCrashes lets the server die at each of its commits; the next one goes on, and everybody ends up
// where they belong.
func TestEvictionSurvivesCrashes(t *testing.T) {
	for left := range 6 {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d,%t", left, after), func(t *testing.T) {
				t.Parallel()
				s := mem.New()
				c, stop := start(t, s)
				withResourceGroup(t, c)
				h := small(t, c, "h1", 4)
				putSpot(t, c, "s1", 2, group.RestartAlways)
				putSpot(t, c, "s2", 2, group.RestartOnFailure)
				stop()
				h.Close()

				dead := &dying{Store: s, left: left, after: after}
				c, stop = start(t, dead)
				h = small(t, c, "h1", 4)
				_, err := c.Put(t.Context(), ref("regular"), sized(3))
				time.Sleep(50 * time.Millisecond)
				stop()
				h.Close()

				c, _ = start(t, s)
				small(t, c, "h1", 4)
				if err != nil { // it was promised nothing
					if _, err := c.Put(t.Context(), ref("regular"), sized(3)); err != nil {
						t.Fatal(err)
					}
				}
				soon(t, c, "regular")
				for _, name := range []string{"s1", "s2"} {
					awaitView(t, c, name, "its wait", func(v arm.View) bool { return v.Group.Host == "" && v.Group.Desired == group.Run })
				}
				if _, err := c.Delete(t.Context(), ref("regular"), nil); err != nil {
					t.Fatal(err)
				}
				for _, name := range []string{"s1", "s2"} {
					if v := soon(t, c, name); v.Group.Epoch != 2 || len(v.Group.Events) == 0 || v.Group.Events[0].Count != 1 {
						t.Errorf("%s came back as %+v", name, v.Group)
					}
				}
				checkBooks(t, c)
			})
		}
	}
}

// TestManyOfBothKinds lets regular and Spot groups race for room: at rest the regular ones that fit run.
func TestManyOfBothKinds(t *testing.T) {
	c, _ := start(t, mem.New())
	withResourceGroup(t, c)
	for i := range 3 {
		small(t, c, fmt.Sprint("h", i), 8).Slow(5 * time.Millisecond)
	}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			req := sized(1 + int64(i%3))
			if i%4 > 0 {
				req.Spec.Priority = group.PrioritySpot
			}
			if _, err := c.Put(context.WithoutCancel(t.Context()), ref(fmt.Sprint("g", i)), req); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for i := range 40 {
		if i%4 == 0 {
			await(t, c, fmt.Sprint("g", i), group.Running)
		}
	}
	checkBooks(t, c)
	for _, v := range c.List(Filter{}) {
		if _, err := c.Delete(t.Context(), v.Group.Ref, nil); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "the end of all", func() bool { return len(c.List(Filter{})) == 0 })
	checkBooks(t, c)
}

// TestLostGroupsWaitBeforeOthers: the groups of a lost host come first, and push Spot groups out.
func TestLostGroupsWaitBeforeOthers(t *testing.T) {
	c := fleet(t)
	join(t, c, "h1").Change(func(d *host.Host) { d.Capacity.Memory = 4 << 30 })
	c.Heard("h1")
	putSized(t, c, "web", 2)
	putSized(t, c, "other", 2)
	await(t, c, "web", group.Running)
	putSized(t, c, "young", 2)
	link, _ := c.Host("h1")
	c.Disconnect(link, time.Now(), errors.New("test"))
	awaitView(t, c, "web", "its wait", func(v arm.View) bool {
		return strings.HasPrefix(v.Status.Reason, "FailedPlacement: 1 hosts: 1 is lost") || strings.HasPrefix(v.Status.Reason, "FailedPlacement: h1: it is lost")
	})
	if n := queued(c); n != 3 {
		t.Errorf("%d groups wait", n)
	}
	small(t, c, "h2", 4)
	for _, name := range []string{"web", "other"} {
		awaitView(t, c, name, "room", func(v arm.View) bool { return v.Group.Host == "h2" && v.Group.Epoch == 2 })
	}
	if v := mustGet(t, c, "young"); v.Group.Host != "" {
		t.Errorf("the young group went first, to %s", v.Group.Host)
	}
	c.Connect(link)
	soon(t, c, "young")
	checkBooks(t, c)
}

// TestDrainingGoesOn moves groups off a host when another has room, until the host takes groups again.
func TestDrainingGoesOn(t *testing.T) {
	c, _ := start(t, mem.New())
	withResourceGroup(t, c)
	small(t, c, "h1", 4)
	putSized(t, c, "a", 2)
	putSized(t, c, "b", 2)
	await(t, c, "a", group.Running)
	await(t, c, "b", group.Running)
	if _, err := c.Drain(t.Context(), "h1"); err == nil {
		t.Fatal("Drain without another host found one")
	}
	two := small(t, c, "h2", 2)
	eventually(t, "one has moved", func() bool {
		return (mustGet(t, c, "a").Group.Host == "h2") != (mustGet(t, c, "b").Group.Host == "h2")
	})
	if _, err := c.Cordon(t.Context(), "h1", false); err != nil {
		t.Fatal(err)
	}
	if n := queued(c); n != 0 {
		t.Errorf("%d groups wait although the host takes groups again", n)
	}
	two.Change(func(d *host.Host) { d.Capacity.Memory = 4 << 30 })
	c.Heard("h2")
	checkBooks(t, c)
}
