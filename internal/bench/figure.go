// Package bench measures what the platform promises, beside the tools that people would use instead, on this machine
// and in the same run.
//
// Every run is interleaved with its peers' runs, with the same image and the same OCI runtime under all of them; what
// is reported are medians of paired ratios and counts. It must never compare figures of different runs. Each benchmark
// builds a platform of its own under a temporary directory and takes it away again. Start at Run.
package bench

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Report is what a benchmark prints.
type Report struct {
	Name        string             `json:"name"`
	Ours        Figures            `json:"ours"`
	Peers       map[string]Figures `json:"peers"`
	Ratios      map[string]float64 `json:"ratios"`
	Counts      map[string]float64 `json:"counts"`
	Missing     map[string]string  `json:"missing,omitempty"` // peer or figure → why it is left out
	Environment map[string]string  `json:"environment"`
}

// Figures are measurements by name; times are in milliseconds.
type Figures map[string]float64

func newReport(name string) *Report {
	return &Report{Name: name, Ours: Figures{}, Peers: map[string]Figures{}, Ratios: map[string]float64{}, Counts: map[string]float64{},
		Missing: map[string]string{}, Environment: environment()}
}

// sample is the times of one engine, run by run.
type sample []time.Duration

func (s sample) quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(int(math.Ceil(q*float64(len(sorted))))-1, len(sorted)-1)]
}

func (s sample) into(f Figures, prefix string) {
	f[prefix+"P50Ms"], f[prefix+"P99Ms"] = ms(s.quantile(0.50)), ms(s.quantile(0.99))
}

func ms(d time.Duration) float64 { return math.Round(float64(d)/1000) / 1000 }

// pairedRatio is the median of the ratios of neighbouring runs: robust against a machine that changes under it.
func pairedRatio(ours, theirs sample) float64 {
	var ratios []float64
	for i := range min(len(ours), len(theirs)) {
		if theirs[i] > 0 {
			ratios = append(ratios, float64(ours[i])/float64(theirs[i]))
		}
	}
	return round(median(ratios))
}

func median[T cmp.Ordered](values []T) T {
	var zero T
	if len(values) == 0 {
		return zero
	}
	return slices.Sorted(slices.Values(values))[len(values)/2]
}

func round(f float64) float64 { return math.Round(f*1000) / 1000 }
