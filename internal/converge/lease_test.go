package converge

import (
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/group"
)

// TestLeaseLost walks a fenced group through the loss of its host's lease: it is killed, held back, and started again.
func TestLeaseLost(t *testing.T) {
	now := time.Unix(1000, 0)
	g := &group.Group{UID: "u", Epoch: 1, Desired: group.Run, Spec: group.Spec{RestartPolicy: group.RestartAlways, Containers: []group.Container{{Name: "c", Image: "i"}}}}
	m := &Memory{UID: "u", Volumes: true, Slot: &Slot{ID: "s1"}}
	m.Reset(g)
	m.Volumes = true
	c := m.Container("c")
	c.ImageReady = true
	step := func(what string, want ...Step) {
		t.Helper()
		steps, _ := Plan(g, m, now)
		if len(steps) != len(want) || len(want) > 0 && steps[0] != want[0] {
			t.Fatalf("%s: steps %v, want %v", what, steps, want)
		}
		for _, s := range steps {
			m.Begin(s, now, time.Second)
		}
	}
	start := Step{Start, "c"}
	step("at first", start)
	m.Ran(&g.Spec.Containers[0], now, 0)
	now = now.Add(time.Minute)
	code := 137
	m.Ended("c", End{At: now, Code: &code, Signal: 9, LeaseLost: true}, g.Spec.RestartPolicy)
	if !strings.HasPrefix(c.Current.Detail, "LeaseLost") || len(c.Events) == 0 || c.Events[len(c.Events)-1].Name != "LeaseLost" {
		t.Errorf("the end is %q, with events %+v", c.Current.Detail, c.Events)
	}
	step("after its end", Step{Clean, "c"})
	m.Cleaned("c", g.Spec.RestartPolicy, g.Desired)
	step("cleaned", start)
	m.Held("c", "LeaseLost: no contact", now.Add(time.Second))
	step("held back")
	if s := Status(g, m); s.Containers[0].Current.State != group.Waiting || s.Containers[0].Current.Detail != "LeaseLost: no contact" {
		t.Errorf("status while it is held back: %+v", s.Containers[0].Current)
	}
	now = now.Add(time.Second)
	step("tried again", start)
	m.Ran(&g.Spec.Containers[0], now, 0)
	if c.Attempt != 2 || c.Restarts != 1 || c.Backoff.Pause != 0 || c.WaitReason != "" {
		t.Errorf("after the loss of a lease: %+v", c)
	}
	never := *g
	never.Spec.RestartPolicy = group.RestartNever
	m.Ended("c", End{At: now, Code: &code, LeaseLost: true}, never.Spec.RestartPolicy)
	m.Cleaned("c", never.Spec.RestartPolicy, never.Desired)
	if _, _ = Plan(&never, m, now); m.Outcome != group.Failed {
		t.Errorf("outcome of a group that restarts never = %q", m.Outcome)
	}
}
