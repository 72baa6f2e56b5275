// Package converge decides what a host does next for one group. It is pure: desired, remembered and now go in, steps
// come out; no clock, no IO, no randomness, no goroutine.
//
// Plan says what to do; the methods of Memory record what has happened (observe.go); Status says what users see
// (status.go). All three look at the same Memory, which the agent keeps for each group and writes down after changes.
// Start at Plan.
package converge

import (
	"time"

	"spillway.dev/spillway/internal/group"
)

// Phase is where one container stands on its host.
type Phase string

// Phases of a container. They are passed in this order, and from Exited back to Idle when a restart follows.
const (
	Idle     Phase = "Idle"     // not running, may be started
	Starting Phase = "Starting" // a start is under way
	Running  Phase = "Running"
	Stopping Phase = "Stopping" // hook, SIGTERM, later SIGKILL
	Exited   Phase = "Exited"   // the run is over, its remains are still there
	Done     Phase = "Done"     // over for good in this epoch
)

// Memory is what a host knows of one group. Its only writer is the group's worker.
type Memory struct {
	UID        string        `json:"uid"`
	Generation int64         `json:"generation"`
	Epoch      int64         `json:"epoch"`
	Slot       *Slot         `json:"slot,omitempty"`
	Volumes    bool          `json:"volumes,omitempty"` // prepared for this epoch
	Retry      Backoff       `json:"retry,omitzero"`    // of volumes and slot
	Containers []*Container  `json:"containers,omitempty"`
	Events     []group.Event `json:"events,omitempty"`
	Started    time.Time     `json:"started,omitzero"`
	Finished   time.Time     `json:"finished,omitzero"`
	Reason     string        `json:"reason,omitempty"`
	Outcome    group.State   `json:"outcome,omitempty"` // Succeeded or Failed, once decided
	Gone       bool          `json:"gone,omitempty"`
	busy       bool          // a step for the whole group is under way
}

// Slot is the sandbox that the group holds.
type Slot struct {
	ID     string `json:"id"`
	IP     string `json:"ip"`
	Public string `json:"public,omitempty"`
	Host   bool   `json:"host,omitempty"` // in the machine's own network, IP is the machine's
}

// Backoff is a growing pause.
type Backoff struct {
	Pause time.Duration `json:"pause,omitempty"`
	Until time.Time     `json:"until,omitzero"`
}

// Next grows the pause: the base, then double, up to the limit.
func (b *Backoff) Next(now time.Time) {
	b.Pause = min(max(b.Pause*2, group.BackoffBase), group.BackoffMax)
	b.Until = now.Add(b.Pause)
}

// Container is what a host knows of one container of a group.
type Container struct {
	Name       string        `json:"name"`
	Init       bool          `json:"init,omitempty"`
	Sidecar    bool          `json:"sidecar,omitempty"`
	Ephemeral  bool          `json:"ephemeral,omitempty"` // added to the running group; runs once
	Spec       string        `json:"spec,omitempty"`      // image as asked for, of the newest run
	Replace    bool          `json:"replace,omitempty"`   // is stopped to be run anew, with another image
	Phase      Phase         `json:"phase"`
	Attempt    int           `json:"attempt"` // runs begun in this epoch; names the next run
	Restarts   int           `json:"restarts"`
	Image      string        `json:"image,omitempty"` // repository@digest
	ImageReady bool          `json:"imageReady,omitempty"`
	ImageRetry Backoff       `json:"imageRetry,omitzero"`
	Current    group.Moment  `json:"current"`
	Previous   *group.Moment `json:"previous,omitempty"`
	Backoff    Backoff       `json:"backoff,omitzero"`
	Ready      bool          `json:"ready,omitempty"`   // readiness probe, or none
	Begun      bool          `json:"begun,omitempty"`   // startup probe passed, or none
	KillAt     time.Time     `json:"killAt,omitzero"`   // end of the grace period
	StopFor    string        `json:"stopFor,omitempty"` // why it is being stopped
	Killed     bool          `json:"killed,omitempty"`
	OOMBefore  int64         `json:"oomBefore,omitempty"`  // kills for want of memory that the cgroup had counted before this run
	WaitReason string        `json:"waitReason,omitempty"` // why it does not run yet
	Events     []group.Event `json:"events,omitempty"`
	pulling    bool
	cleaning   bool
}

// Reset prepares the memory for a new epoch. Containers must not be running.
func (m *Memory) Reset(g *group.Group) {
	m.Epoch, m.Generation = g.Epoch, g.Generation
	m.Started, m.Finished, m.Reason, m.Outcome = time.Time{}, time.Time{}, "", ""
	m.Volumes, m.Retry = false, Backoff{}
	old := map[string]*Container{}
	for _, c := range m.Containers {
		old[c.Name] = c
	}
	m.Containers = nil
	add := func(spec *group.Container, init bool) {
		c := &Container{Name: spec.Name, Init: init, Sidecar: spec.Sidecar, Phase: Idle}
		if before := old[spec.Name]; before != nil {
			c.Events = before.Events
			if before.Current.State == group.Terminated {
				moment := before.Current
				c.Previous = &moment
			}
		}
		m.Containers = append(m.Containers, c)
	}
	for i := range g.Spec.InitContainers {
		add(&g.Spec.InitContainers[i], true)
	}
	for i := range g.Spec.Containers {
		add(&g.Spec.Containers[i], false)
	}
}

// Follow takes over what a group can change while it runs: containers that were added, and other images.
func (m *Memory) Follow(g *group.Group) {
	if m.Epoch != g.Epoch {
		return
	}
	for i := range g.Spec.Ephemeral {
		if name := g.Spec.Ephemeral[i].Name; m.Container(name) == nil {
			m.Containers = append(m.Containers, &Container{Name: name, Ephemeral: true, Phase: Idle})
		}
	}
	for _, list := range [][]group.Container{g.Spec.InitContainers, g.Spec.Containers} {
		for i := range list {
			c := m.Container(list[i].Name)
			if c == nil || c.Spec == "" || c.Spec == list[i].Image || c.Phase == Done {
				continue
			}
			c.Spec, c.ImageReady, c.Replace = list[i].Image, false, c.alive() || c.Phase == Exited
		}
	}
}

// Container finds a container by name.
func (m *Memory) Container(name string) *Container {
	for _, c := range m.Containers {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// alive says whether a process of the container may exist.
func (c *Container) alive() bool {
	return c.Phase == Starting || c.Phase == Running || c.Phase == Stopping
}
