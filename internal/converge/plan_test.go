package converge

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/group"
)

var t0 = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// world carries steps out at once and lets time pass.
type world struct {
	g     *group.Group
	m     *Memory
	now   time.Time
	did   []string
	fail  map[string]error // step → what goes wrong with it
	loops int
}

func newWorld(policy group.RestartPolicy, inits, containers []string) *world {
	g := &group.Group{UID: "u", Generation: 1, Epoch: 1, Desired: group.Run, Spec: group.Spec{RestartPolicy: policy}}
	for _, name := range inits {
		c := group.Container{Name: name, Image: "i"}
		c.Sidecar = strings.HasPrefix(name, "side")
		g.Spec.InitContainers = append(g.Spec.InitContainers, c)
	}
	for _, name := range containers {
		g.Spec.Containers = append(g.Spec.Containers, group.Container{Name: name, Image: "i"})
	}
	w := &world{g: g, m: &Memory{UID: "u"}, now: t0, fail: map[string]error{}}
	w.m.Reset(g)
	return w
}

func (w *world) spec(name string) *group.Container {
	for _, list := range [][]group.Container{w.g.Spec.InitContainers, w.g.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// settle plans and acts until there is nothing to do now; it gives when to ask again.
func (w *world) settle() time.Time {
	for range 200 {
		if NeedsReset(w.g, w.m) {
			w.m.Reset(w.g)
		}
		steps, wake := Plan(w.g, w.m, w.now)
		if len(steps) == 0 {
			return wake
		}
		for _, s := range steps {
			w.m.Begin(s, w.now, w.g.Spec.Grace())
			w.do(s)
		}
	}
	panic("the plan never comes to rest")
}

func (w *world) do(s Step) {
	word := string(s.Action)
	if s.Container != "" {
		word += " " + s.Container
	}
	w.did = append(w.did, word)
	err := w.fail[word]
	switch s.Action {
	case Pull:
		if err != nil {
			w.m.ImageMissed(s.Container, "i", w.now, err)
			return
		}
		w.m.ImageFound(s.Container, "i@d", true, w.now)
	case Volumes:
		w.m.Prepared(Volumes, w.now, err)
	case Claim:
		if err != nil {
			w.m.Prepared(Claim, w.now, err)
			return
		}
		w.m.Claimed(Slot{ID: "s1", IP: "10.0.0.2"}, w.now)
	case Start:
		if err != nil {
			code := 127
			w.m.Ended(s.Container, End{At: w.now, Code: &code, Failure: err.Error()}, w.g.Spec.RestartPolicy)
			return
		}
		w.m.Ran(w.spec(s.Container), w.now, 0)
	case Clean:
		w.m.Cleaned(s.Container, w.g.Spec.RestartPolicy, w.g.Desired)
	case Release:
		w.m.Released(w.now)
	case Forget:
		w.m.Forgotten()
	}
}

func (w *world) exit(name string, code int) {
	w.m.Ended(name, End{At: w.now, Code: &code}, w.g.Spec.RestartPolicy)
}

// took gives what was done since the last call.
func (w *world) took() []string {
	did := w.did
	w.did = nil
	return did
}

func (w *world) expect(t *testing.T, want ...string) {
	t.Helper()
	w.settle()
	if got := w.took(); !slices.Equal(got, want) {
		t.Fatalf("steps = %q, want %q", got, want)
	}
}

func TestStartsInOrder(t *testing.T) {
	w := newWorld(group.RestartAlways, []string{"one", "side", "two"}, []string{"a", "b"})
	w.expect(t, "pull one", "pull side", "pull two", "pull a", "pull b", "claim", "volumes", "start one")
	w.exit("one", 0)
	w.expect(t, "clean one", "start side", "start two")
	w.exit("two", 0)
	w.expect(t, "clean two", "start a", "start b")
}

func TestSidecarHoldsBackUntilItHasBegun(t *testing.T) {
	w := newWorld(group.RestartAlways, []string{"sidecar"}, []string{"a"})
	w.g.Spec.InitContainers[0].Startup = &group.Probe{}
	w.expect(t, "pull sidecar", "pull a", "claim", "volumes", "start sidecar")
	w.m.Begun("sidecar", true)
	w.expect(t, "start a")
}

func TestPolicies(t *testing.T) {
	for _, test := range []struct {
		policy  group.RestartPolicy
		code    int
		again   bool
		outcome group.State
	}{
		{group.RestartNever, 0, false, group.Succeeded},
		{group.RestartNever, 1, false, group.Failed},
		{group.RestartOnFailure, 0, false, group.Succeeded},
		{group.RestartOnFailure, 1, true, ""},
		{group.RestartAlways, 0, true, ""},
		{group.RestartAlways, 1, true, ""},
	} {
		w := newWorld(test.policy, nil, []string{"a"})
		w.settle()
		w.took()
		w.exit("a", test.code)
		w.settle()
		again := slices.Contains(w.took(), "start a")
		if again != test.again || w.m.Outcome != test.outcome {
			t.Errorf("%s, exit %d: restarted %t, outcome %q; want %t, %q", test.policy, test.code, again, w.m.Outcome, test.again, test.outcome)
		}
		if test.outcome != "" && (w.m.Slot != nil || w.m.Volumes) {
			t.Errorf("%s, exit %d: an ended group holds %+v", test.policy, test.code, w.m)
		}
	}
}

func TestBackoff(t *testing.T) {
	w := newWorld(group.RestartAlways, nil, []string{"a"})
	w.settle()
	pauses := []time.Duration{0, 10, 20, 40, 80, 160, 300, 300}
	for n, pause := range pauses {
		pause *= time.Second
		w.took()
		w.exit("a", 1)
		wake := w.settle()
		if pause > 0 {
			if slices.Contains(w.took(), "start a") || !wake.Equal(w.now.Add(pause)) {
				t.Fatalf("restart %d: asked to be woken after %s, want %s", n+1, wake.Sub(w.now), pause)
			}
			w.now = wake
			w.settle()
		}
		if !slices.Contains(w.took(), "start a") {
			t.Fatalf("restart %d did not come after %s", n+1, pause)
		}
	}
	w.now = w.now.Add(group.BackoffReset)
	w.exit("a", 1)
	w.settle()
	if pause := w.m.Container("a").Backoff.Pause; pause > group.BackoffBase {
		t.Errorf("after %s of running the pause is %s, want it forgotten", group.BackoffReset, pause)
	}
	if restarts := w.m.Container("a").Restarts; restarts < len(pauses) {
		t.Errorf("%d restarts are counted, want %d", restarts, len(pauses))
	}
}

func TestGraceEndsInKill(t *testing.T) {
	w := newWorld(group.RestartAlways, []string{"sidecar"}, []string{"a"})
	w.settle()
	w.took()
	w.g.Desired = group.Stop
	wake := w.settle()
	if got := w.took(); !slices.Equal(got, []string{"stop a"}) {
		t.Fatalf("steps = %q, want the application stopped before its sidecar", got)
	}
	if want := w.now.Add(w.g.Spec.Grace()); !wake.Equal(want) {
		t.Fatalf("woken at %s, want %s", wake, want)
	}
	w.now = wake
	w.expect(t, "kill a")
	w.exit("a", 137)
	w.expect(t, "clean a", "stop sidecar")
	w.exit("sidecar", 0)
	w.expect(t, "clean sidecar", "release")
	if got := Status(w.g, w.m).State; got != group.Stopped {
		t.Errorf("state %s, want Stopped", got)
	}
	w.g.Desired = group.Delete
	w.expect(t, "forget")
	if !w.m.Gone {
		t.Error("a deleted group is not gone")
	}
}

func TestImageBackoffIsPerContainer(t *testing.T) {
	w := newWorld(group.RestartNever, nil, []string{"a", "b"})
	w.fail["pull b"] = errors.New("no such image")
	wake := w.settle()
	if got := w.took(); !slices.Equal(got, []string{"pull a", "pull b", "claim", "volumes", "start a"}) {
		t.Fatalf("steps = %q, want a to run though b has no image", got)
	}
	if !wake.Equal(t0.Add(group.BackoffBase)) {
		t.Errorf("woken at %s, want after %s", wake, group.BackoffBase)
	}
	w.fail, w.now = nil, wake
	w.expect(t, "pull b", "start b")
}

func TestNewEpochRunsEverythingAfresh(t *testing.T) {
	w := newWorld(group.RestartNever, []string{"one"}, []string{"a"})
	w.settle()
	w.exit("one", 0)
	w.settle()
	w.took()
	w.g.Epoch, w.g.Generation = 2, 2
	w.settle()
	if got := w.took(); !slices.Equal(got, []string{"stop a"}) {
		t.Fatalf("steps = %q, want the old run stopped first", got)
	}
	w.exit("a", 0)
	w.expect(t, "clean a", "pull one", "pull a", "volumes", "start one")
}

func TestEvictedGroupIsOver(t *testing.T) {
	w := newWorld(group.RestartAlways, nil, []string{"a"})
	w.settle()
	w.took()
	w.m.Evict("too much disk", w.now)
	w.expect(t, "stop a")
	w.exit("a", 137)
	w.expect(t, "clean a", "release")
	if got := Status(w.g, w.m); got.State != group.Failed || got.Reason != "too much disk" {
		t.Errorf("status %s (%s), want Failed with the reason", got.State, got.Reason)
	}
	w.expect(t)
}

func TestFailedInitContainerIsTheEnd(t *testing.T) {
	w := newWorld(group.RestartNever, []string{"one"}, []string{"a"})
	w.settle()
	w.took()
	w.exit("one", 1)
	w.expect(t, "clean one", "release")
	if w.m.Outcome != group.Failed || w.m.Container("a").Attempt != 0 {
		t.Errorf("outcome %q after %d runs of a, want Failed and none", w.m.Outcome, w.m.Container("a").Attempt)
	}
}

func TestOOMIsTold(t *testing.T) {
	w := newWorld(group.RestartNever, nil, []string{"a"})
	w.settle()
	code := 137
	w.m.Ended("a", End{At: w.now, Code: &code, Signal: 9, OOMs: 1}, w.g.Spec.RestartPolicy)
	if got := w.m.Container("a").Current.Detail; got != "OOMKilled" {
		t.Errorf("detail %q, want OOMKilled", got)
	}
}
