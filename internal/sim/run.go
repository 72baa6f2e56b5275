package sim

import (
	"time"

	"spillway.dev/spillway/internal/group"
)

// run is one group on the host: a loop that compares what is wanted with what is there.
type run struct {
	host   *Host
	serial int // tells its address
	wake   chan struct{}
	want   *group.Group    // guarded by the host's lock, as all below
	last   group.Status    // the newest report
	logs   map[string]*log // of the containers of this epoch
	closed bool
	live   bool // something of it runs

	epoch      int64 // that runs; only the loop uses it and what follows
	starts     map[string]int
	ends       map[string]time.Time
	containers []group.ContainerStatus
	started    time.Time
}

func (r *run) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// restartDelay is the pause before a container is started again.
const restartDelay = 20 * time.Millisecond

func (r *run) loop() {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		r.host.mu.Lock()
		g, closed := r.want, r.closed
		r.host.mu.Unlock()
		switch {
		case closed:
			r.stopAll()
			return
		case g.Desired == group.Delete:
			r.host.mu.Lock()
			takes := r.host.stopTime
			r.host.mu.Unlock()
			time.Sleep(takes)
			r.stopAll()
			r.host.mu.Lock()
			again := r.want != g
			if !again {
				delete(r.host.groups, g.UID)
			}
			r.host.mu.Unlock()
			if again {
				continue
			}
			r.say(g, group.Stopped, true)
			return
		case g.Desired == group.Stop:
			r.host.mu.Lock()
			takes := r.host.stopTime
			r.host.mu.Unlock()
			time.Sleep(takes)
			r.stopAll()
			r.say(g, group.Stopped, false)
		case g.Spec.Fenced() && r.host.leaseless():
			r.stopAll()
			r.epoch = 0 // it begins again when there is a lease
		case r.epoch != g.Epoch:
			r.stopAll()
			r.begin(g)
			r.say(g, r.state(g), false)
		default:
			r.step(g)
			r.say(g, r.state(g), false)
		}
		next := time.Hour
		for _, end := range r.ends {
			next = min(next, max(time.Until(end), 0))
		}
		timer.Reset(next)
		select {
		case <-r.wake:
		case <-timer.C:
		}
	}
}

// begin starts an epoch.
func (r *run) begin(g *group.Group) {
	r.epoch, r.started = g.Epoch, time.Now()
	r.starts, r.ends = map[string]int{}, map[string]time.Time{}
	r.containers = make([]group.ContainerStatus, len(g.Spec.Containers))
	for i := range g.Spec.Containers {
		r.containers[i].Name = g.Spec.Containers[i].Name
		r.start(g, i)
	}
}

func (r *run) start(g *group.Group, i int) {
	c := &g.Spec.Containers[i]
	s := &r.containers[i]
	b := r.host.rule(g, c, r.starts[c.Name])
	if b.Waiting != "" {
		s.Current = group.Moment{State: group.Waiting, Detail: b.Waiting}
		s.Events = group.AddEvent(s.Events, time.Now(), group.Warning, "Failed", "Failed to pull image \""+c.Image+"\": "+b.Waiting)
		return
	}
	if r.starts[c.Name] > 0 {
		previous := s.Current
		s.Previous = &previous
		s.RestartCount++
	}
	r.starts[c.Name]++
	s.Ready = true
	s.Current = group.Moment{State: group.Started, Start: time.Now()}
	s.Events = group.AddEvent(s.Events, time.Now(), group.Normal, "Started", "Started container")
	if b.RunFor > 0 {
		r.ends[c.Name] = time.Now().Add(b.RunFor)
	}
	r.host.mu.Lock()
	r.logs[c.Name] = newLog(c.Name)
	r.host.mu.Unlock()
}

// step ends containers whose time has come, and starts again what the policy wants.
func (r *run) step(g *group.Group) {
	now := time.Now()
	for i := range r.containers {
		s := &r.containers[i]
		end, timed := r.ends[s.Name]
		if !timed || now.Before(end) {
			continue
		}
		delete(r.ends, s.Name)
		if s.Current.State == group.Terminated { // the pause is over
			r.start(g, i)
			continue
		}
		code := r.host.rule(g, &g.Spec.Containers[i], r.starts[s.Name]-1).ExitCode
		r.end(s, code)
		policy := g.Spec.RestartPolicy
		if policy == group.RestartAlways || policy == group.RestartOnFailure && code != 0 {
			r.ends[s.Name] = now.Add(restartDelay)
		}
	}
}

func (r *run) end(s *group.ContainerStatus, code int) {
	s.Ready = false
	s.Current.State, s.Current.Finish, s.Current.ExitCode, s.Current.Detail = group.Terminated, time.Now(), &code, "Completed"
	if code != 0 {
		s.Current.Detail = "Error"
	}
	r.host.mu.Lock()
	defer r.host.mu.Unlock()
	if l := r.logs[s.Name]; l != nil && !l.ended() {
		close(l.done)
	}
}

func (r *run) stopAll() {
	r.host.mu.Lock()
	r.live = false
	r.host.mu.Unlock()
	for i := range r.containers {
		if r.containers[i].Current.State == group.Started {
			r.end(&r.containers[i], 143)
		}
	}
	r.ends = nil
}

// state sums up the containers.
func (r *run) state(g *group.Group) group.State {
	if len(r.ends) > 0 {
		return group.Running
	}
	failed := false
	for _, s := range r.containers {
		switch s.Current.State {
		case group.Waiting:
			return group.Pending
		case group.Started:
			return group.Running
		}
		failed = failed || s.Current.ExitCode != nil && *s.Current.ExitCode != 0
	}
	if failed {
		return group.Failed
	}
	return group.Succeeded
}

func (r *run) say(g *group.Group, state group.State, gone bool) {
	s := group.Status{UID: g.UID, Generation: g.Generation, Epoch: r.epoch, State: state, Gone: gone, Started: r.started}
	if gone || state == group.Stopped {
		s.Epoch = g.Epoch
	} else {
		if s.IP = r.host.address(r.serial); g.Address.IsValid() {
			s.IP = g.Address.String()
		}
	}
	for _, c := range r.containers {
		c.Events = append([]group.Event(nil), c.Events...)
		s.Containers = append(s.Containers, c)
	}
	if state.Ended() {
		s.Finished = time.Now()
	}
	r.host.mu.Lock()
	r.last, r.live = s, state == group.Running
	r.host.mu.Unlock()
	r.host.report(s)
}
