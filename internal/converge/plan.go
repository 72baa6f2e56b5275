package converge

import (
	"slices"
	"time"

	"spillway.dev/spillway/internal/group"
)

// Action is a kind of step.
type Action string

// Actions. Those of a container name it; the others are for the whole group. Every one is idempotent.
const (
	Pull    Action = "pull"    // make the container's image available
	Volumes Action = "volumes" // prepare the group's volumes
	Claim   Action = "claim"   // take a slot and join the network
	Start   Action = "start"   // begin the container's next run
	Stop    Action = "stop"    // run the stop hook and send the stop signal
	Kill    Action = "kill"    // end the container now
	Clean   Action = "clean"   // remove the remains of the container's last run
	Release Action = "release" // give up slot and volumes
	Forget  Action = "forget"  // remove everything of the group, logs too
)

// Step is one thing to do, with everything decided.
type Step struct {
	Action    Action
	Container string
}

// Plan gives the steps to do now, and when to ask again if nothing happens before (zero: not by time). Steps that are
// under way are not given again.
func Plan(g *group.Group, m *Memory, now time.Time) ([]Step, time.Time) {
	p := &planner{g: g, m: m, now: now}
	p.plan()
	return p.steps, p.wake
}

type planner struct {
	g     *group.Group
	m     *Memory
	now   time.Time
	steps []Step
	wake  time.Time
}

func (p *planner) plan() {
	p.killLate()
	if p.m.busy || p.m.Gone {
		return
	}
	switch {
	case p.g.Desired != group.Run:
		p.wind()
	case p.m.Epoch != p.g.Epoch:
		// A new epoch begins when nothing of the old one runs; the agent resets the memory then.
		p.stopAll("Stopping container for an update")
	case p.m.Outcome != "":
		p.finish()
	default:
		p.run()
	}
}

// NeedsReset says whether the memory belongs to an older epoch of which nothing is left to stop or to clean.
func NeedsReset(g *group.Group, m *Memory) bool {
	if m.Epoch == g.Epoch || m.Gone || m.busy || g.Desired != group.Run {
		return false
	}
	for _, c := range m.Containers {
		if c.alive() || c.Phase == Exited || c.cleaning {
			return false
		}
	}
	return true
}

func (p *planner) add(action Action, container string) {
	p.steps = append(p.steps, Step{action, container})
}

func (p *planner) at(t time.Time) {
	if !t.IsZero() && (p.wake.IsZero() || t.Before(p.wake)) {
		p.wake = t
	}
}

// due says whether a pause is over, and asks to be woken when it is not.
func (p *planner) due(b Backoff) bool {
	if b.Until.After(p.now) {
		p.at(b.Until)
		return false
	}
	return true
}

// killLate kills what has outlived its grace period.
func (p *planner) killLate() {
	for _, c := range p.m.Containers {
		if c.Phase != Stopping || c.Killed {
			continue
		}
		if c.KillAt.After(p.now) {
			p.at(c.KillAt)
			continue
		}
		p.add(Kill, c.Name)
	}
}

// stopAll stops whatever runs, applications before sidecars, and cleans up after what has ended. It says whether all
// is quiet.
func (p *planner) stopAll(why string) bool {
	quiet := true
	apps := false
	for _, c := range p.m.Containers {
		apps = apps || c.alive() && !c.Sidecar
	}
	for i := len(p.m.Containers) - 1; i >= 0; i-- {
		c := p.m.Containers[i]
		switch c.Phase {
		case Running:
			if !c.Sidecar || !apps {
				c.StopFor = why
				p.add(Stop, c.Name)
			}
		case Exited:
			p.clean(c)
		}
		quiet = quiet && !c.alive() && c.Phase != Exited && !c.cleaning
	}
	return quiet
}

func (p *planner) clean(c *Container) {
	if step := (Step{Clean, c.Name}); !c.cleaning && !slices.Contains(p.steps, step) {
		p.steps = append(p.steps, step)
	}
}

// wind takes a group down: stopped or deleted.
func (p *planner) wind() {
	if !p.stopAll("Stopping container") {
		return
	}
	switch {
	case p.m.Slot != nil || p.m.Volumes:
		p.add(Release, "")
	case p.g.Desired == group.Delete:
		p.add(Forget, "")
	}
}

// finish cleans up after a group that has come to its end: it costs nothing from here on, its logs stay.
func (p *planner) finish() {
	if p.stopAll("Stopping container: the group has finished") && (p.m.Slot != nil || p.m.Volumes) {
		p.add(Release, "")
	}
}

// run brings the group's containers up and keeps them so.
func (p *planner) run() {
	p.pull()
	if !p.m.Volumes || p.m.Slot == nil {
		// Nothing is claimed before the first image is here: a group that waits for a registry holds nothing.
		if !p.anyStartable() || !p.due(p.m.Retry) {
			return
		}
		if p.m.Slot == nil {
			p.add(Claim, "")
		}
		if !p.m.Volumes {
			p.add(Volumes, "")
		}
		// The steps of one plan are done in order and each may fail: what follows is planned afterwards.
		return
	}
	for _, c := range p.m.Containers {
		if !p.advance(c) {
			return
		}
	}
	p.conclude()
}

func (p *planner) pull() {
	for _, c := range p.m.Containers {
		if !c.ImageReady && !c.pulling && c.Phase == Idle && p.due(c.ImageRetry) {
			p.add(Pull, c.Name)
		}
	}
}

func (p *planner) anyStartable() bool {
	for _, c := range p.m.Containers {
		if c.Ephemeral {
			continue
		}
		if c.Init || len(p.g.Spec.InitContainers) == 0 {
			if c.ImageReady {
				return true
			}
		}
		if c.Init && !c.ImageReady {
			return false
		}
	}
	return false
}

// advance moves one container on and says whether the next one may go on too: init containers hold back those behind
// them until they are done, sidecars until they have begun.
func (p *planner) advance(c *Container) bool {
	switch c.Phase {
	case Idle:
		if c.ImageReady && p.due(c.Backoff) {
			p.add(Start, c.Name)
		}
	case Running:
		if c.Replace {
			c.StopFor = "Container definition changed, will be restarted: stopping container"
			p.add(Stop, c.Name)
		}
	case Exited:
		p.clean(c)
	}
	if !c.Init {
		return true
	}
	if c.Sidecar {
		return c.Phase == Running && c.Begun || c.Phase == Exited && c.Begun
	}
	return c.Phase == Done
}

// restarts says whether the policy starts a container again after how its last run ended.
func (c *Container) restarts(policy group.RestartPolicy) bool {
	if c.Replace || c.Sidecar {
		return true
	}
	if c.Ephemeral {
		return false
	}
	failed := c.Current.ExitCode == nil || *c.Current.ExitCode != 0
	switch policy {
	case group.RestartNever:
		return false
	case group.RestartOnFailure:
		return failed
	}
	// Always is OnFailure for an init container: one that has done its work is done.
	return failed || !c.Init
}

// conclude decides the group's outcome once every application container is done.
func (p *planner) conclude() {
	outcome := group.Succeeded
	for _, c := range p.m.Containers {
		if c.Sidecar || c.Ephemeral {
			continue
		}
		if c.Phase != Done {
			return
		}
		if c.Current.ExitCode == nil || *c.Current.ExitCode != 0 {
			outcome = group.Failed
		}
	}
	p.m.Outcome, p.m.Finished = outcome, p.now
	p.finish()
}
