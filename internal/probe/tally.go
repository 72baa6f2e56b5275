// Package probe asks containers how they are.
//
// Tally is pure: it counts answers against thresholds with Kubernetes' meaning. Check asks once, over the network or
// through a command. The loop that joins them is the agent's. A probe never follows a redirect and never reads more
// than it needs: what answers is a tenant's program. Start at Tally.
package probe

import (
	"time"

	"spillway.dev/spillway/internal/group"
)

// Verdict is what a run of answers amounts to.
type Verdict int

// Verdicts.
const (
	Unknown Verdict = iota // not enough answers yet
	Healthy
	Unhealthy
)

// Tally counts consecutive answers of one probe.
type Tally struct {
	Success, Failure int // thresholds
	run              int // consecutive equal answers, negative for failures
	verdict          Verdict
}

// NewTally starts a count.
func NewTally(p group.Probe) *Tally {
	p = p.WithDefaults()
	return &Tally{Success: p.SuccessThreshold, Failure: p.FailureThreshold}
}

// Add counts an answer and gives the verdict, which stays until enough answers say otherwise.
func (t *Tally) Add(ok bool) Verdict {
	switch {
	case ok && t.run < 0, !ok && t.run > 0:
		t.run = 0
	}
	if ok {
		t.run++
		if t.run >= t.Success {
			t.verdict = Healthy
		}
	} else {
		t.run--
		if -t.run >= t.Failure {
			t.verdict = Unhealthy
		}
	}
	return t.verdict
}

// Delay is the time before the first question; Period between two.
func Delay(p group.Probe) time.Duration { return time.Duration(p.InitialDelaySeconds) * time.Second }

// Period is the time between two questions.
func Period(p group.Probe) time.Duration {
	return time.Duration(p.WithDefaults().PeriodSeconds) * time.Second
}

// Timeout is how long an answer may take.
func Timeout(p group.Probe) time.Duration {
	return time.Duration(p.WithDefaults().TimeoutSeconds) * time.Second
}
