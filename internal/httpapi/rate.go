package httpapi

import (
	"net/http"
	"strconv"
	"sync"
	"time"

	"spillway.dev/spillway/internal/fault"
)

// Rate is how many calls a principal may make: a bucket of Burst that fills with PerSecond.
type Rate struct {
	PerSecond float64
	Burst     float64
}

// DefaultRate stops a loop that ran away, nothing else.
var DefaultRate = Rate{PerSecond: 2000, Burst: 10_000}

// maxBuckets bounds the memory for callers.
const maxBuckets = 10_000

type buckets struct {
	rate Rate

	mu sync.Mutex // guards by
	by map[string]*bucket
}

type bucket struct {
	left float64
	last time.Time
}

func newBuckets(rate Rate) *buckets { return &buckets{rate: rate, by: map[string]*bucket{}} }

// take takes one call out of a bucket and says what is left; below zero there was none.
func (b *buckets) take(name string, now time.Time) float64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := b.by[name]
	if k == nil {
		if len(b.by) >= maxBuckets {
			clear(b.by)
		}
		k = &bucket{left: b.rate.Burst, last: now}
		b.by[name] = k
	}
	k.left = min(b.rate.Burst, k.left+now.Sub(k.last).Seconds()*b.rate.PerSecond)
	k.last = now
	if k.left < 1 {
		return -1
	}
	k.left--
	return k.left
}

// limit counts a call of a principal.
func (a *api) limit(c *call) error {
	left := a.buckets.take(c.principal.ClientID, a.Now())
	kind := "Reads"
	if c.r.Method != http.MethodGet && c.r.Method != http.MethodHead {
		kind = "Writes"
	}
	c.w.Header().Set("X-Ms-Ratelimit-Remaining-Subscription-"+kind, strconv.Itoa(int(max(left, 0))))
	if left < 0 {
		return fault.New(fault.Exhausted, "", "The client '%s' makes more than %g calls per second. Slow down and try again.", c.principal.ClientID, a.Rate.PerSecond)
	}
	return nil
}
