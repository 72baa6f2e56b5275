package group

import "time"

// Limits of one group. Sources: Azure's quota page for the counts, the platform's own measurements for the rest.
const (
	MaxContainers     = 60
	MaxInitContainers = 59
	MaxVolumes        = 20           // in Azure's versions of the API
	MaxOwnVolumes     = 256          // in the superset: a pod's list may be long
	MaxPorts          = 5            // per IP address
	MaxMilliCPU       = 31_000       // per group
	MaxMemory         = 240 << 30    // bytes, per group
	MinMemory         = 4 << 20      // bytes, per container: what an exec of a small program needs
	MinMilliCPU       = 10           // per container
	MaxBody           = 4 << 20      // bytes of an API request
	MaxEvents         = 50           // kept per group and per container
	MaxLogAnswer      = 4 << 20      // bytes of one answer of the logs call
	MaxLogFile        = 10 << 20     // bytes of one log file before it is rotated
	MaxLogFiles       = 3            // per container, the current one included
	MaxMessage        = 4096         // bytes of a termination message
	MaxID             = 1<<31 - 1    // largest user or group id: above it an id wraps to another user
	MaxSecretBytes    = 1 << 20      // bytes of all files of one secret or config map volume
	MaxGraceSeconds   = 24 * 60 * 60 // longest termination grace
	MaxGPUs           = 16           // per group: what one machine can have
	MaxWeight         = 100          // of a preference
	MaxTerms          = 32           // of each list of a placement
	MaxConditions     = 16           // on labels, of one term
	MaxValues         = 64           // of one condition
	MaxSkew           = 10_000       // of a spread
)

// Defaults.
const (
	DefaultGraceSeconds = 30
	DefaultMessagePath  = "/dev/termination-log"
	DefaultFileMode     = 0o644
	DefaultPidsLimit    = 4096 // tasks per container
)

// Restart back-off: 10 s doubling to 5 min, forgotten after 10 min of running (Kubernetes' numbers).
const (
	BackoffBase  = 10 * time.Second
	BackoffMax   = 5 * time.Minute
	BackoffReset = 10 * time.Minute
)

// Grace is the time between SIGTERM and SIGKILL.
func (s *Spec) Grace() time.Duration {
	if s.GraceSeconds == nil {
		return DefaultGraceSeconds * time.Second
	}
	return time.Duration(*s.GraceSeconds) * time.Second
}

// Unlimited as an amount of Container.Limits: what the host has.
const Unlimited = -1

// Limit is what a container may use at most: its limits, its requests where it has none; zero: what the host has.
func (c *Container) Limit() Resources {
	return Resources{MilliCPU: limit(c.Limits.MilliCPU, c.Requests.MilliCPU), Memory: limit(c.Limits.Memory, c.Requests.Memory)}
}

func limit(limit, request int64) int64 {
	switch limit {
	case Unlimited:
		return 0
	case 0:
		return request
	}
	return limit
}

// Total is what a group reserves on a host: the sum of its containers and sidecars, or the largest init container
// when that is more, and the group's storage.
func (s *Spec) Total() Resources {
	var sum, peak Resources
	for i := range s.InitContainers {
		c := &s.InitContainers[i]
		if c.Sidecar {
			sum = sum.Add(c.Requests)
			continue
		}
		peak = peak.Max(sum.Add(c.Requests))
	}
	for i := range s.Containers {
		sum = sum.Add(s.Containers[i].Requests)
	}
	sum = sum.Max(peak)
	sum.EphemeralStorage = s.EphemeralStorage
	return sum
}

// Add sums two amounts.
func (r Resources) Add(o Resources) Resources {
	return Resources{r.MilliCPU + o.MilliCPU, r.Memory + o.Memory, r.EphemeralStorage + o.EphemeralStorage, r.GPUs + o.GPUs}
}

// Sub takes an amount away.
func (r Resources) Sub(o Resources) Resources {
	return Resources{r.MilliCPU - o.MilliCPU, r.Memory - o.Memory, r.EphemeralStorage - o.EphemeralStorage, r.GPUs - o.GPUs}
}

// Max is the larger of each amount.
func (r Resources) Max(o Resources) Resources {
	return Resources{max(r.MilliCPU, o.MilliCPU), max(r.Memory, o.Memory), max(r.EphemeralStorage, o.EphemeralStorage), max(r.GPUs, o.GPUs)}
}

// Within says whether each amount is at most the other's.
func (r Resources) Within(o Resources) bool {
	return r.MilliCPU <= o.MilliCPU && r.Memory <= o.Memory && r.EphemeralStorage <= o.EphemeralStorage && r.GPUs <= o.GPUs
}

// WithDefaults fills the zero fields as Kubernetes does.
func (p Probe) WithDefaults() Probe {
	def := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	def(&p.PeriodSeconds, 10)
	def(&p.TimeoutSeconds, 1)
	def(&p.SuccessThreshold, 1)
	def(&p.FailureThreshold, 3)
	return p
}
