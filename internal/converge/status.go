package converge

import (
	"spillway.dev/spillway/internal/group"
)

// Status is what users see of a group.
func Status(g *group.Group, m *Memory) group.Status {
	s := group.Status{UID: m.UID, Generation: m.Generation, Epoch: m.Epoch, State: state(g, m), Gone: m.Gone, Reason: m.Reason,
		Events: append([]group.Event(nil), m.Events...), Started: m.Started, Finished: m.Finished}
	if m.Slot != nil {
		s.IP, s.PublicIP = m.Slot.IP, m.Slot.Public
	}
	for _, c := range m.Containers {
		cs := group.ContainerStatus{Name: c.Name, RestartCount: c.Restarts, Ready: c.Ready && c.Phase == Running, Began: c.Begun && c.Phase == Running, Image: c.Image,
			Current: c.Current, Previous: c.Previous, Events: append([]group.Event(nil), c.Events...)}
		if waiting := c.waiting(g.Spec.RestartPolicy); waiting != "" && g.Desired == group.Run && m.Outcome == "" {
			if cs.Current.State == group.Terminated {
				previous := cs.Current
				cs.Previous = &previous
			}
			cs.Current = group.Moment{State: group.Waiting, Detail: waiting}
			if until := c.Backoff.Until; !until.IsZero() && c.Phase != Starting {
				cs.BackoffUntil = &until
			}
		}
		if c.Ephemeral {
			s.Ephemeral = append(s.Ephemeral, cs)
		} else if c.Init {
			s.Init = append(s.Init, cs)
		} else {
			s.Containers = append(s.Containers, cs)
		}
	}
	return s
}

// waiting says why a container does not run though it should, "" when it runs or is done.
func (c *Container) waiting(policy group.RestartPolicy) string {
	switch {
	case c.Phase == Idle && c.WaitReason != "":
		return c.WaitReason
	case c.Phase == Idle && c.Attempt == 0, c.Phase == Starting && c.Attempt == 1:
		return "ContainerCreating"
	case (c.Phase == Idle || c.Phase == Exited && c.restarts(policy) || c.Phase == Starting) && !c.Backoff.Until.IsZero():
		return "CrashLoopBackOff: Back-off restarting failed"
	}
	return ""
}

func state(g *group.Group, m *Memory) group.State {
	if m.Outcome != "" {
		return m.Outcome
	}
	if g.Desired != group.Run && m.Slot == nil && !m.Volumes {
		return group.Stopped
	}
	for _, c := range m.Containers {
		if !c.Init && !c.Ephemeral && c.Attempt > 0 && (c.Phase != Starting || c.Attempt > 1) {
			return group.Running
		}
	}
	return group.Pending
}
