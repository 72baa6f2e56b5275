package converge

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"spillway.dev/spillway/internal/group"
)

// machine is a world in which anything may happen: steps fail or take long, programs end, owners change their minds.
type machine struct {
	*world
	*rapid.T
	live    map[string]int // processes of each container
	runs    map[string]int // begun in this epoch
	pending []Step         // steps under way
	calm    bool           // nothing fails any more
}

func newMachine(t *rapid.T) *machine {
	var inits, containers []string
	for i := range rapid.IntRange(0, 3).Draw(t, "inits") {
		kind := rapid.SampledFrom([]string{"init", "side"}).Draw(t, "kind")
		inits = append(inits, fmt.Sprintf("%s-%d", kind, i))
	}
	for i := range rapid.IntRange(1, 3).Draw(t, "containers") {
		containers = append(containers, fmt.Sprintf("app-%d", i))
	}
	policy := rapid.SampledFrom([]group.RestartPolicy{group.RestartNever, group.RestartOnFailure, group.RestartAlways}).Draw(t, "policy")
	m := &machine{world: newWorld(policy, inits, containers), T: t, live: map[string]int{}, runs: map[string]int{}}
	for i := range m.g.Spec.InitContainers {
		if m.g.Spec.InitContainers[i].Sidecar && rapid.Bool().Draw(t, "startup") {
			m.g.Spec.InitContainers[i].Startup = &group.Probe{}
		}
	}
	return m
}

// plan asks for steps, as the agent does, and puts them under way.
func (m *machine) plan() {
	if NeedsReset(m.g, m.m) {
		m.m.Reset(m.g)
		m.runs = map[string]int{}
		// A pull of the old epoch may still be under way; asking for the same image again costs nothing.
		m.pending = slices.DeleteFunc(m.pending, func(s Step) bool { return s.Action == Pull })
		if m.total() != 0 {
			m.Fatalf("a new epoch begins with %v alive", m.live)
		}
	}
	steps, _ := Plan(m.g, m.m, m.now)
	for _, s := range steps {
		if slices.Contains(m.pending, s) && s.Action != Kill {
			m.Fatalf("%v is given again while it is under way", s)
		}
		m.m.Begin(s, m.now, m.g.Spec.Grace())
		switch s.Action {
		case Start:
			m.starting(s.Container)
			if !m.finish(s, !m.calm && rapid.IntRange(0, 5).Draw(m.T, "start fails") == 0) {
				return
			}
		case Claim, Forget: // done at once by the agent; what follows is planned again when they fail
			if m.finish(s, !m.calm && s.Action == Claim && rapid.IntRange(0, 5).Draw(m.T, "fails") == 0); s.Action == Forget && m.total() != 0 {
				m.Fatalf("forgotten with %v alive", m.live)
			}
			return
		default:
			m.pending = append(m.pending, s)
		}
	}
}

func (m *machine) total() (n int) {
	for _, k := range m.live {
		n += k
	}
	return n
}

// starting checks what must hold whenever a program is about to be executed.
func (m *machine) starting(name string) {
	m.runs[name]++
	switch c := m.m.Container(name); {
	case m.live[name] != 0:
		m.Fatalf("%s is started while it runs", name)
	case m.g.Desired != group.Run:
		m.Fatalf("%s is started though the group should %s", name, m.g.Desired)
	case m.m.Outcome != "":
		m.Fatalf("%s is started though the group has %s", name, m.m.Outcome)
	case m.m.Slot == nil || !m.m.Volumes || !c.ImageReady:
		m.Fatalf("%s is started without slot, volumes or image", name)
	case m.g.Spec.RestartPolicy == group.RestartNever && m.runs[name] > 1 && !c.Sidecar:
		m.Fatalf("%s runs %d times, the policy is Never", name, m.runs[name])
	}
	for _, c := range m.m.Containers {
		if c.Name == name {
			break
		}
		if !c.Init {
			continue
		}
		if c.Sidecar && !c.Begun {
			m.Fatalf("%s is started before the sidecar %s has begun", name, c.Name)
		}
		if !c.Sidecar && (c.Phase != Done || c.Current.ExitCode == nil || *c.Current.ExitCode != 0) {
			m.Fatalf("%s is started before %s has done its work", name, c.Name)
		}
	}
}

// finish ends a step; it is false when what follows has to be planned again.
func (m *machine) finish(s Step, fails bool) bool {
	word := string(s.Action)
	if s.Container != "" {
		word += " " + s.Container
	}
	m.fail = map[string]error{}
	if fails {
		m.fail[word] = fmt.Errorf("it fails")
	}
	switch s.Action {
	case Clean:
		if fails {
			m.m.CleanFailed(s.Container)
			return false
		}
		if m.live[s.Container] != 0 {
			m.Fatalf("%s is cleaned up while it runs", s.Container)
		}
	case Release:
		if m.total() != 0 {
			m.Fatalf("released with %v alive", m.live)
		}
		if fails {
			m.m.Failed(m.now, fmt.Errorf("it fails"))
			return false
		}
	case Start:
		if !fails {
			m.live[s.Container]++
		}
	}
	m.do(s)
	return !fails
}

// proceed ends one of the steps under way.
func (m *machine) proceed() {
	if len(m.pending) == 0 {
		return
	}
	i := 0
	if !m.calm {
		i = rapid.IntRange(0, len(m.pending)-1).Draw(m.T, "which")
	}
	s := m.pending[i]
	m.pending = slices.Delete(m.pending, i, i+1)
	switch s.Action {
	case Stop:
		if m.live[s.Container] > 0 && (m.calm || rapid.Bool().Draw(m.T, "obeys")) {
			m.end(s.Container, 0)
		}
	case Kill:
		if m.live[s.Container] > 0 {
			m.end(s.Container, 137)
		}
	default:
		if m.m.Container(s.Container) == nil && s.Container != "" {
			return
		}
		m.finish(s, !m.calm && rapid.IntRange(0, 3).Draw(m.T, "fails") == 0)
	}
}

func (m *machine) end(name string, code int) {
	m.live[name] = 0
	m.pending = slices.DeleteFunc(m.pending, func(s Step) bool { return s.Container == name && (s.Action == Stop || s.Action == Kill) })
	m.exit(name, code)
}

// happen is one thing out of all that may happen.
func (m *machine) happen() {
	switch rapid.IntRange(0, 9).Draw(m.T, "event") {
	case 0, 1, 2:
		m.proceed()
	case 3:
		m.now = m.now.Add(time.Duration(rapid.IntRange(0, 400).Draw(m.T, "seconds")) * time.Second)
	case 4, 5:
		for _, c := range m.m.Containers {
			if m.live[c.Name] > 0 && (c.Phase == Running || c.Phase == Stopping) && rapid.Bool().Draw(m.T, "ends") {
				m.end(c.Name, rapid.SampledFrom([]int{0, 0, 1, 137}).Draw(m.T, "code"))
				break
			}
		}
	case 6:
		for _, c := range m.m.Containers {
			if c.Phase == Running && !c.Begun {
				m.m.Begun(c.Name, true)
			}
		}
	case 7:
		if m.g.Desired != group.Delete {
			m.g.Desired = rapid.SampledFrom([]group.Desired{group.Run, group.Run, group.Stop}).Draw(m.T, "desired")
			m.g.Generation++
			if m.g.Desired == group.Run {
				m.g.Epoch++
			}
		}
	case 8:
		for _, c := range m.m.Containers {
			if c.Phase == Running && rapid.IntRange(0, 3).Draw(m.T, "unwell") == 0 {
				step := m.m.Unwell(c.Name, "probe")
				m.m.Begin(step, m.now, m.g.Spec.Grace())
				m.pending = append(m.pending, step)
				break
			}
		}
	case 9:
		if rapid.IntRange(0, 9).Draw(m.T, "evict") == 0 && m.g.Desired == group.Run && m.m.Epoch == m.g.Epoch {
			m.m.Evict("disk", m.now)
		}
	}
}

// rest lets everything go well until nothing is left to do.
func (m *machine) rest() {
	m.calm = true
	for range 400 {
		m.plan()
		for len(m.pending) > 0 {
			m.proceed()
		}
		for _, c := range m.m.Containers {
			if c.Phase == Running && !c.Begun {
				m.m.Begun(c.Name, true)
			}
			if c.Init && !c.Sidecar && m.live[c.Name] > 0 && c.Phase == Running {
				m.end(c.Name, 0)
			}
		}
		m.now = m.now.Add(time.Minute)
	}
}

func TestAnythingMayHappen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t)
		for range rapid.IntRange(5, 120).Draw(t, "events") {
			m.plan()
			m.happen()
		}
		m.rest()
		switch state := Status(m.g, m.m).State; m.g.Desired {
		case group.Stop:
			if state != group.Stopped && !state.Ended() || m.total() != 0 || m.m.Slot != nil || m.m.Volumes {
				t.Fatalf("a group that should be stopped is %s, %v alive, slot %v", state, m.live, m.m.Slot)
			}
		case group.Run:
			if m.m.Outcome == "" && (state != group.Running || m.total() == 0) {
				t.Fatalf("a group that should run is %s, %v alive", state, m.live)
			}
			if m.m.Outcome != "" && (m.total() != 0 || m.m.Slot != nil) {
				t.Fatalf("a group that has %s has %v alive, slot %v", m.m.Outcome, m.live, m.m.Slot)
			}
		}
		m.g.Desired = group.Delete
		m.rest()
		if !m.m.Gone || m.total() != 0 {
			t.Fatalf("a deleted group is not gone: %v alive, %+v", m.live, m.m)
		}
	})
}
