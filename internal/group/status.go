package group

import (
	"slices"
	"time"
)

// State is the state of a whole group as users see it.
type State string

// Group states. Succeeded and Failed are ends: every container has finished and none will be started again.
const (
	Pending   State = "Pending"
	Running   State = "Running"
	Succeeded State = "Succeeded"
	Failed    State = "Failed"
	Stopped   State = "Stopped"
)

// ContainerState is the state of one container.
type ContainerState string

// Container states.
const (
	Waiting    ContainerState = "Waiting"
	Started    ContainerState = "Running"
	Terminated ContainerState = "Terminated"
)

// Provisioning says how far the platform has come with what was asked.
type Provisioning string

// Provisioning states that Spillway reports.
const (
	ProvisioningPending   Provisioning = "Pending"
	ProvisioningCreating  Provisioning = "Creating"
	ProvisioningSucceeded Provisioning = "Succeeded"
	ProvisioningFailed    Provisioning = "Failed"
	ProvisioningDeleting  Provisioning = "Deleting"
)

// Status is what a host reports of one group. Its only writer is the agent of that host.
type Status struct {
	UID        string            `json:"uid"`
	Generation int64             `json:"generation"` // of the group that this status answers
	Epoch      int64             `json:"epoch"`
	State      State             `json:"state"`
	IP         string            `json:"ip,omitempty"`       // address in the virtual network
	PublicIP   string            `json:"publicIP,omitempty"` // address out of the public range, when there is one
	Gone       bool              `json:"gone,omitempty"`     // nothing of the group is left on the host
	Reason     string            `json:"reason,omitempty"`   // why it is Pending or Failed, one sentence
	Init       []ContainerStatus `json:"init,omitempty"`
	Containers []ContainerStatus `json:"containers,omitempty"`
	Ephemeral  []ContainerStatus `json:"ephemeral,omitempty"`
	Events     []Event           `json:"events,omitempty"`
	Started    time.Time         `json:"started,omitzero"`  // first work of this epoch: metering begins
	Finished   time.Time         `json:"finished,omitzero"` // all containers at an end: metering ends
}

// All are the statuses of every container of the group.
func (s *Status) All() []ContainerStatus { return slices.Concat(s.Init, s.Containers, s.Ephemeral) }

// ContainerStatus is what a host reports of one container.
type ContainerStatus struct {
	Name         string     `json:"name"`
	RestartCount int        `json:"restartCount"`
	Ready        bool       `json:"ready"`
	Began        bool       `json:"began,omitempty"` // runs, and has passed its startup probe
	Image        string     `json:"image,omitempty"` // repository@digest that runs
	Current      Moment     `json:"current"`
	Previous     *Moment    `json:"previous,omitempty"`
	Events       []Event    `json:"events,omitempty"`
	BackoffUntil *time.Time `json:"backoffUntil,omitempty"`
}

// Moment is a container state with its facts.
type Moment struct {
	State    ContainerState `json:"state"`
	Start    time.Time      `json:"start,omitzero"`
	Finish   time.Time      `json:"finish,omitzero"`
	ExitCode *int           `json:"exitCode,omitempty"` // nil: not terminated, or unknown
	Signal   int            `json:"signal,omitempty"`
	Detail   string         `json:"detail,omitempty"`  // Completed, Error, OOMKilled, CrashLoopBackOff: …
	Message  string         `json:"message,omitempty"` // termination message
}

// Ready says whether the group runs and every container of it takes work.
func (s *Status) Ready() bool {
	for _, c := range s.Containers {
		if !c.Ready {
			return false
		}
	}
	return s.State == Running
}

// Event types.
const (
	Normal  = "Normal"
	Warning = "Warning"
)

// Event is something that happened to a group or container; equal ones are counted.
type Event struct {
	Count   int       `json:"count"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Name    string    `json:"name"`
	Message string    `json:"message"`
	Type    string    `json:"type"`
}

// AddEvent appends an event, or counts it when the newest one of that name says the same. Beyond MaxEvents the oldest
// is dropped.
func AddEvent(events []Event, now time.Time, kind, name, message string) []Event {
	for i := len(events) - 1; i >= 0; i-- {
		if e := &events[i]; e.Name == name && e.Message == message && e.Type == kind {
			e.Count++
			e.Last = now
			return events
		}
	}
	events = append(events, Event{Count: 1, First: now, Last: now, Name: name, Message: message, Type: kind})
	if len(events) > MaxEvents {
		events = append(events[:0], events[len(events)-MaxEvents:]...)
	}
	return events
}

// Ended says whether the state is one that no restart follows.
func (s State) Ended() bool { return s == Succeeded || s == Failed || s == Stopped }
