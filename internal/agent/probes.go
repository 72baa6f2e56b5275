package agent

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"spillway.dev/spillway/internal/converge"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/probe"
)

// afterStart runs the start hook and then the probes of a run, in the background.
func (w *worker) afterStart(ctx context.Context, c *group.Container, l runLabel) {
	if c.PostStart == nil && c.Startup == nil && c.Liveness == nil && c.Readiness == nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	w.probes[c.Name] = cancel
	spec, target := *c, w.target(l.id())
	w.a.wg.Go(func() {
		if spec.PostStart != nil {
			if err := runHook(ctx, *spec.PostStart, target); err != nil && ctx.Err() == nil {
				w.unwell(l, ailment{event: "FailedPostStartHook", message: "Start hook failed: " + err.Error(), why: "FailedPostStartHook: stopping container"})
				return
			}
		}
		w.probe(ctx, &spec, l, target)
	})
}

// probe asks the startup probe until it passes, then the others side by side.
func (w *worker) probe(ctx context.Context, c *group.Container, l runLabel, t probe.Target) {
	if c.Startup != nil {
		if !w.ask(ctx, *c.Startup, t, func(v probe.Verdict, err error) bool {
			switch v {
			case probe.Healthy:
				return true
			case probe.Unhealthy:
				w.unwell(l, ailment{"Unhealthy", "Startup probe failed: " + reason(err), "Container failed startup probe, will be restarted:", c.Startup.GraceSeconds})
				return true
			}
			w.ailing(l, "Startup", err)
			return false
		}) {
			return
		}
		w.post(func() {
			if _, ok := w.current(l); ok {
				w.m.Begun(l.Name, c.Readiness == nil)
			}
		})
	}
	if c.Readiness != nil {
		w.a.wg.Go(func() {
			w.ask(ctx, *c.Readiness, t, func(v probe.Verdict, err error) bool {
				w.ailing(l, "Readiness", err)
				if v != probe.Unknown {
					w.post(func() {
						if _, ok := w.current(l); ok {
							w.m.SetReady(l.Name, v == probe.Healthy)
						}
					})
				}
				return false
			})
		})
	}
	if c.Liveness != nil {
		w.ask(ctx, *c.Liveness, t, func(v probe.Verdict, err error) bool {
			w.ailing(l, "Liveness", err)
			if v == probe.Unhealthy {
				w.unwell(l, ailment{"Unhealthy", "Liveness probe failed: " + reason(err), "Container failed liveness probe, will be restarted:", c.Liveness.GraceSeconds})
				return true
			}
			return false
		})
	}
}

// ask runs one probe until told to stop; it is false when ctx ended before.
func (w *worker) ask(ctx context.Context, p group.Probe, t probe.Target, told func(probe.Verdict, error) bool) bool {
	tally := probe.NewTally(p)
	sleep(ctx, probe.Delay(p))
	tick := time.NewTicker(probe.Period(p))
	defer tick.Stop()
	for ctx.Err() == nil {
		asking, cancel := context.WithTimeout(ctx, probe.Timeout(p))
		err := probe.Check(asking, p.Handler, t)
		cancel()
		if ctx.Err() != nil {
			return false
		}
		if told(tally.Add(err == nil), err) {
			return true
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return false
}

func reason(err error) string {
	if err == nil {
		return ""
	}
	const most = 512
	text := err.Error()
	return text[:min(len(text), most)]
}

// ailing records one failed answer.
func (w *worker) ailing(l runLabel, kind string, err error) {
	if err == nil {
		return
	}
	message := fmt.Sprintf("%s probe failed: %s", kind, reason(err))
	w.post(func() {
		if _, ok := w.current(l); ok {
			w.m.Event(time.Now(), l.Name, group.Warning, "Unhealthy", message)
		}
	})
}

// ailment is why a container is stopped by a probe or hook: the event that says so, and the one of the stop.
type ailment struct {
	event, message, why string
	grace               *int // seconds, instead of the group's
}

// unwell stops a container because of a probe or hook; the restart policy decides what follows.
func (w *worker) unwell(l runLabel, a ailment) {
	w.post(func() {
		c, ok := w.current(l)
		if !ok || c.Phase != converge.Running {
			return
		}
		w.m.Event(time.Now(), l.Name, group.Warning, a.event, a.message)
		step := w.m.Unwell(l.Name, a.why)
		patience := w.g.Spec.Grace()
		if a.grace != nil {
			patience = time.Duration(*a.grace) * time.Second
		}
		w.m.Begin(step, time.Now(), patience)
		w.stop(w.a.ctx, l.Name)
	})
}

// target says how probes reach a run.
func (w *worker) target(id string) probe.Target {
	t := probe.Target{Exec: func(ctx context.Context, command []string) (int, string, error) {
		const most = 1024
		out := &firstBytes{left: most}
		code, err := w.a.execIn(ctx, id, command, host.Streams{Stdout: out, Stderr: out})
		return code, out.String(), err
	}}
	if w.m.Slot != nil {
		if t.IP = w.m.Slot.IP; !w.m.Slot.Host {
			t.From = w.a.cfg.Network.Gateway()
		}
	}
	return t
}

// firstBytes keeps the beginning of what is written.
type firstBytes struct {
	bytes.Buffer
	left int
}

func (f *firstBytes) Write(p []byte) (int, error) {
	n := min(len(p), f.left)
	f.left -= n
	f.Buffer.Write(p[:n])
	return len(p), nil
}

// runHook runs a start or stop hook.
func runHook(ctx context.Context, h group.Handler, t probe.Target) error {
	if h.SleepSeconds > 0 {
		sleep(ctx, time.Duration(h.SleepSeconds)*time.Second)
		return nil
	}
	return probe.Check(ctx, h, t)
}
