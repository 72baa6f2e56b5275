package probe

import (
	"testing"

	"spillway.dev/spillway/internal/group"
)

func TestTally(t *testing.T) {
	tests := []struct {
		name             string
		success, failure int
		answers          string // + and -
		want             Verdict
	}{
		{"nothing yet", 0, 0, "", Unknown},
		{"one success is enough by default", 0, 0, "+", Healthy},
		{"two failures are not", 0, 0, "--", Unknown},
		{"three failures are", 0, 0, "---", Unhealthy},
		{"a success starts the count again", 0, 0, "--+--", Healthy},
		{"healthy stays until the threshold", 0, 0, "+--", Healthy},
		{"two successes asked for", 2, 0, "+", Unknown},
		{"recovery needs its successes", 2, 1, "-+", Unhealthy},
		{"recovery", 2, 1, "-++", Healthy},
	}
	for _, tt := range tests {
		tally := NewTally(group.Probe{SuccessThreshold: tt.success, FailureThreshold: tt.failure})
		got := Unknown
		for _, a := range tt.answers {
			got = tally.Add(a == '+')
		}
		if got != tt.want {
			t.Errorf("%s: %q = %v, want %v", tt.name, tt.answers, got, tt.want)
		}
	}
}
