package converge

import (
	"fmt"
	"strings"
	"time"

	"spillway.dev/spillway/internal/group"
)

// Begin marks a step as under way.
func (m *Memory) Begin(s Step, now time.Time, grace time.Duration) {
	c := m.Container(s.Container)
	switch s.Action {
	case Volumes, Claim, Release, Forget:
		m.busy = true
	case Pull:
		c.pulling = true
	case Start:
		c.Phase = Starting
		c.Attempt++
	case Stop:
		c.Phase, c.KillAt, c.Ready = Stopping, now.Add(grace), false
		c.event(now, group.Normal, "Killing", fmt.Sprintf("%s %s", c.StopFor, c.Name))
	case Kill:
		c.Killed = true
	case Clean:
		c.cleaning = true
	}
}

func (c *Container) event(now time.Time, kind, name, message string) {
	c.Events = group.AddEvent(c.Events, now, kind, name, message)
}

// Event records something about a container (or, with an empty name, the group).
func (m *Memory) Event(now time.Time, container, kind, name, message string) {
	if c := m.Container(container); c != nil {
		c.event(now, kind, name, message)
		return
	}
	m.Events = group.AddEvent(m.Events, now, kind, name, message)
}

// Prepared records the end of Volumes or Claim.
func (m *Memory) Prepared(a Action, now time.Time, err error) {
	m.busy = false
	if err == nil {
		m.Reason = ""
		if a == Volumes {
			m.Volumes = true
		}
		return
	}
	name := "FailedMount"
	if a == Claim {
		name = "FailedCreateSandbox"
	}
	m.Retry.Next(now)
	m.Reason = err.Error()
	m.Event(now, "", group.Warning, name, err.Error())
}

// Claimed records the slot.
func (m *Memory) Claimed(slot Slot, now time.Time) {
	m.busy = false
	m.Slot = &slot
	m.Reason = ""
	if m.Started.IsZero() {
		m.Started = now
	}
}

// Postponed ends a step for the whole group that could not be done now, through no fault of the group.
func (m *Memory) Postponed(until time.Time) {
	m.busy = false
	m.Retry.Until = until
}

// PullStarted records that a pull is really needed.
func (m *Memory) PullStarted(name, ref string, now time.Time) {
	if m.Started.IsZero() {
		m.Started = now
	}
	m.Container(name).event(now, group.Normal, "Pulling", fmt.Sprintf("pulling image %q", ref))
}

// ImageFound records that a container's image is on the host. fetched tells that it had to be pulled.
func (m *Memory) ImageFound(name, resolved string, fetched bool, now time.Time) {
	c := m.Container(name)
	c.pulling, c.ImageReady, c.Image, c.ImageRetry, c.WaitReason = false, true, resolved, Backoff{}, ""
	if fetched {
		c.event(now, group.Normal, "Pulled", fmt.Sprintf("Successfully pulled image %q", resolved))
	}
}

// ImageForbidden records that an image is not here and may not be asked for.
func (m *Memory) ImageForbidden(name, ref string, now time.Time) {
	c := m.Container(name)
	c.pulling = false
	c.ImageRetry.Next(now)
	c.WaitReason = fmt.Sprintf("ErrImageNeverPull: Container image %q is not present with pull policy of Never", ref)
	c.event(now, group.Warning, "ErrImageNeverPull", fmt.Sprintf("Container image %q is not present with pull policy of Never", ref))
}

// ImageMissed records that a pull failed; it is tried again after a growing pause.
func (m *Memory) ImageMissed(name, ref string, now time.Time, err error) {
	c := m.Container(name)
	c.pulling = false
	c.ImageRetry.Next(now)
	c.WaitReason = "ImagePullBackOff: " + err.Error()
	c.event(now, group.Warning, "Failed", fmt.Sprintf("Failed to pull image %q: %v", ref, err))
	c.event(now, group.Normal, "BackOff", fmt.Sprintf("Back-off pulling image %q", ref))
}

// Ran records that a container's program has been executed. probes tell which it has to pass first.
func (m *Memory) Ran(spec *group.Container, started time.Time, oomBefore int64) {
	c := m.Container(spec.Name)
	c.Phase, c.Spec, c.Replace = Running, spec.Image, false
	if c.Current.State == group.Terminated {
		moment := c.Current
		c.Previous = &moment
	}
	c.Current = group.Moment{State: group.Started, Start: started}
	c.Begun, c.Ready = spec.Startup == nil, spec.Startup == nil && spec.Readiness == nil
	c.KillAt, c.StopFor, c.Killed, c.OOMBefore, c.WaitReason = time.Time{}, "", false, oomBefore, ""
	if c.Attempt > 1 {
		c.Restarts++
	}
	c.event(started, group.Normal, "Created", "Created container")
	c.event(started, group.Normal, "Started", "Started container")
}

// Held records that a container may not start now, through no fault of its own.
func (m *Memory) Held(name, why string, until time.Time) {
	c := m.Container(name)
	c.Phase, c.WaitReason = Idle, why
	c.Attempt--
	c.Backoff.Until = until
}

// End is how a run ended.
type End struct {
	At      time.Time
	Code    *int // nil: unknown
	Signal  int
	OOMs    int64  // processes killed for want of memory, counted since the cgroup exists
	Message string // termination message
	// LeaseLost: it was killed because its host had no lease any more.
	LeaseLost bool
	Failure   string // why the program could not be executed; then Code is the conventional one
}

// Ended records the end of a run and decides, by policy, whether another follows.
func (m *Memory) Ended(name string, e End, policy group.RestartPolicy) {
	c := m.Container(name)
	start := c.Current.Start
	if e.Failure != "" {
		if c.Current.State == group.Terminated {
			moment := c.Current
			c.Previous = &moment
		}
		if c.Attempt > 1 {
			c.Restarts++
		}
		start = e.At
		c.event(e.At, group.Warning, "Failed", "Error: "+e.Failure)
	}
	c.Current = group.Moment{State: group.Terminated, Start: start, Finish: e.At, ExitCode: e.Code, Signal: e.Signal,
		Message: e.Message, Detail: detail(c, e)}
	c.Phase, c.Ready, c.Begun = Exited, false, c.Begun && c.Sidecar
	if c.Current.Detail == "OOMKilled" {
		c.event(e.At, group.Warning, "OOMKilling", "Container used more memory than its limit and was killed")
	}
	if e.LeaseLost {
		c.event(e.At, group.Warning, "LeaseLost", "Container was killed: its host had lost contact with the servers, and the group is fenced")
	}
	if !c.restarts(policy) || c.Replace || e.LeaseLost {
		return // a run that makes room for another has not failed, nor has one whose host was cut off
	}
	if e.At.Sub(start) >= group.BackoffReset {
		c.Backoff = Backoff{}
	}
	// The first restart is immediate, later ones wait (Kubernetes' meaning of the back-off).
	if c.Attempt > 1 || c.Backoff.Pause > 0 {
		c.Backoff.Next(e.At)
		c.event(e.At, group.Warning, "BackOff", "Back-off restarting failed container")
	}
}

func detail(c *Container, e End) string {
	switch {
	case e.Failure != "":
		return "StartError: " + e.Failure
	case e.LeaseLost:
		return "LeaseLost: the host had lost contact with the servers, and the group is fenced"
	case e.OOMs > c.OOMBefore:
		return "OOMKilled"
	case e.Code == nil:
		return "ExitCodeUnknown: the container ended while nothing on the host could see it"
	case *e.Code == 0:
		return "Completed"
	}
	return "Error"
}

// Cleaned records that the remains of a run are gone: the container is idle again, or done.
func (m *Memory) Cleaned(name string, policy group.RestartPolicy, desired group.Desired) {
	c := m.Container(name)
	c.cleaning = false
	if c.Phase != Exited {
		return
	}
	c.Phase = Done
	if desired == group.Run && m.Outcome == "" && c.restarts(policy) {
		c.Phase = Idle
	}
	if c.Init && !c.Sidecar && c.Phase == Done && desired == group.Run && (c.Current.ExitCode == nil || *c.Current.ExitCode != 0) {
		// A failed init container that is not run again is the end of the group.
		m.Outcome, m.Finished = group.Failed, c.Current.Finish
	}
}

// Released records that slot and volumes are gone.
func (m *Memory) Released(now time.Time) {
	m.busy = false
	m.Slot, m.Volumes = nil, false
	if m.Finished.IsZero() {
		m.Finished = now
	}
}

// Failed records that Release or Forget did not work; it is tried again after a pause.
func (m *Memory) Failed(now time.Time, err error) {
	m.busy = false
	m.Retry.Next(now)
	m.Reason = err.Error()
}

// Forgotten records that nothing of the group is left.
func (m *Memory) Forgotten() { m.busy, m.Gone = false, true }

// Unwell asks for a container to be stopped because a probe or hook says so; the policy decides what follows.
func (m *Memory) Unwell(name, why string) Step {
	c := m.Container(name)
	c.StopFor = why
	return Step{Stop, name}
}

// Begun records that a startup probe has passed.
func (m *Memory) Begun(name string, ready bool) {
	c := m.Container(name)
	c.Begun, c.Ready = true, ready
}

// SetReady records what the readiness probe says.
func (m *Memory) SetReady(name string, ready bool) { m.Container(name).Ready = ready }

// Progress records how far a layer of a pull is: one event per layer, counted up.
func (m *Memory) Progress(name, layer, message string, now time.Time) {
	c := m.Container(name)
	if c == nil {
		return
	}
	for i := range c.Events {
		if e := &c.Events[i]; e.Name == "PullingLayer" && strings.HasPrefix(e.Message, layer) {
			e.Count++
			e.Last, e.Message = now, message
			return
		}
	}
	c.event(now, group.Normal, "PullingLayer", message)
}

// CleanFailed records that the remains of a run are still there; removing them is tried again.
func (m *Memory) CleanFailed(name string) { m.Container(name).cleaning = false }

// Evict ends a group for good that used more of the disk than it may.
func (m *Memory) Evict(why string, now time.Time) {
	if m.Outcome != "" {
		return
	}
	m.Outcome, m.Finished, m.Reason = group.Failed, now, why
	m.Event(now, "", group.Warning, "Evicted", why)
}
