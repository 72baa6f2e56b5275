package place

import (
	"fmt"
	"slices"
	"strings"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// Reason is why a host does not take a group.
type Reason int

// Reasons, in the order in which they are looked for: the first one that holds is given.
const (
	Fits Reason = iota
	Lost
	NotReady
	Cordoned
	WrongPool
	WrongIsolation
	TooOld
	WrongZone
	WrongLabels
	WrongGPU
	LacksCPU
	LacksMemory
	LacksStorage
	LacksGPUs
	DiskFull
	Kept
	Unwanted
	Apart
	Together
	Uneven
	reasons
)

// said is how a reason is told of one host and of several.
var said = [reasons]struct{ one, many string }{
	Fits:           {"has room", "have room"},
	Lost:           {"is lost", "are lost"},
	NotReady:       {"is not ready", "are not ready"},
	Cordoned:       {"is cordoned", "are cordoned"},
	WrongPool:      {"is in another pool", "are in other pools"},
	WrongIsolation: {"lacks the isolation", "lack the isolation"},
	TooOld:         {"has an agent that is too old for subnets", "have agents that are too old for subnets"},
	WrongZone:      {"stands in another zone", "stand in other zones"},
	WrongLabels:    {"lacks the labels", "lack the labels"},
	WrongGPU:       {"has other GPUs", "have other GPUs"},
	LacksCPU:       {"lacks CPU", "lack CPU"},
	LacksMemory:    {"lacks memory", "lack memory"},
	LacksStorage:   {"lacks storage", "lack storage"},
	LacksGPUs:      {"lacks GPUs", "lack GPUs"},
	DiskFull:       {"has a full disk", "have a full disk"},
	Kept:           {"is kept for a group that has waited longer", "are kept for groups that have waited longer"},
	Unwanted:       {"has groups near that must not be beside this one", "have groups near that must not be beside this one"},
	Apart:          {"is where the group's anti-affinity forbids it", "are where the group's anti-affinity forbids it"},
	Together:       {"is where the group's affinity does not lead", "are where the group's affinity does not lead"},
	Uneven:         {"would make the spread uneven", "would make the spread uneven"},
}

// Count is how many hosts have a reason.
type Count struct {
	Reason Reason
	Hosts  int
}

// Refusal is why no host takes a group.
type Refusal struct {
	Hosts  int     // all that are known
	Counts []Count // the most frequent first
	single string  // the detail, of a fleet of one
}

// DiskFull says whether full disks are the only thing in the way.
func (r Refusal) DiskFull() bool {
	return len(r.Counts) > 0 && !slices.ContainsFunc(r.Counts, func(c Count) bool { return c.Reason != DiskFull })
}

// String tells the counts: "3 hosts: 2 lack memory, 1 is cordoned".
func (r Refusal) String() string {
	switch {
	case r.Hosts == 0:
		return "no host is connected"
	case r.single != "":
		return r.single
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d hosts", r.Hosts)
	for i, c := range r.Counts {
		text := said[c.Reason].many
		if c.Hosts == 1 {
			text = said[c.Reason].one
		}
		fmt.Fprintf(&b, "%s%d %s", [2]string{": ", ", "}[min(i, 1)], c.Hosts, text)
	}
	return b.String()
}

// Verdict is what one host says to a group.
type Verdict struct {
	Host   string `json:"host"`
	Fits   bool   `json:"fits"`
	Reason string `json:"reason"` // one sentence
}

// Explain says of every host, by name, whether it would take a group and why not.
func (v *View) Explain(g *group.Group) []Verdict {
	a, restore := v.askFor(v.classOf(g), g)
	defer restore()
	out := make([]Verdict, 0, v.known)
	for _, m := range v.ordered() {
		why := a.why(m)
		out = append(out, Verdict{Host: v.machines[m].host.Name, Fits: why == Fits, Reason: a.sentence(m, why)})
	}
	return out
}

// refusal counts the reasons of all hosts.
func (a *ask) refusal() Refusal {
	var counts [reasons]int
	r := Refusal{Hosts: a.v.known}
	sections := make([]Reason, len(a.v.sections)) // of all hosts of each, Fits until known
	for m := range a.v.machines {
		h := &a.v.machines[m]
		if !h.known {
			continue
		}
		why := Fits
		if h.open && !a.v.sections[h.section].coarse && !a.c.allowed.has(int(h.section)) {
			if sections[h.section] == Fits {
				sections[h.section] = a.cannot(int32(m))
			}
			why = sections[h.section]
		} else if h.open && !a.v.sections[h.section].coarse {
			why = a.lacks(h)
		}
		if why == Fits {
			why = a.why(int32(m))
		}
		counts[why]++
		if r.Hosts == 1 {
			r.single = a.v.machines[m].host.Name + ": " + a.sentence(int32(m), why)
		}
	}
	for why, n := range counts {
		if n > 0 {
			r.Counts = append(r.Counts, Count{Reason(why), n})
		}
	}
	slices.SortStableFunc(r.Counts, func(a, b Count) int { return b.Hosts - a.Hosts })
	return r
}

// why is the first reason of a host not to take the group.
func (a *ask) why(m int32) Reason {
	if r := a.cannot(m); r != Fits {
		return r
	}
	h := &a.v.machines[m]
	if r := a.lacks(h); r != Fits {
		return r
	}
	switch {
	case h.host.DiskFull:
		return DiskFull
	case h.held != 0 && h.held != a.hold:
		return Kept
	}
	return a.neighbours(m)
}

// lacks is what a host has not enough of.
func (a *ask) lacks(h *machine) Reason {
	switch {
	case a.need.MilliCPU > h.free.MilliCPU:
		return LacksCPU
	case a.need.Memory > h.free.Memory:
		return LacksMemory
	case a.need.EphemeralStorage > h.free.EphemeralStorage:
		return LacksStorage
	case a.need.GPUs > h.free.GPUs:
		return LacksGPUs
	}
	return Fits
}

// cannot is a reason that does not pass when groups go.
func (a *ask) cannot(m int32) Reason {
	switch h := a.v.machines[m].host; {
	case h.State == host.Lost:
		return Lost
	case h.State != host.Ready:
		return NotReady
	case h.Cordoned:
		return Cordoned
	}
	return a.mismatch(m)
}

// mismatch is a reason that lies in what a host is.
func (a *ask) mismatch(m int32) Reason {
	h, c, p := &a.v.machines[m], a.c, a.c.where
	switch {
	case len(p.Pools) > 0 && !slices.Contains(p.Pools, h.host.Pool):
		return WrongPool
	case !slices.Contains(h.host.Isolation, c.isolation):
		return WrongIsolation
	case c.subnet && !h.host.Spaces:
		return TooOld
	case len(c.zones) > 0 && h.host.Zone != "" && !slices.Contains(c.zones, h.host.Zone):
		return WrongZone
	case !group.Match(p.Require, h.host.Labels):
		return WrongLabels
	case c.gpuSKU != "" && (h.most.GPUs == 0 || h.host.GPUSKU != c.gpuSKU):
		return WrongGPU
	}
	return Fits
}

// neighbours is a reason that other groups give.
func (a *ask) neighbours(m int32) Reason {
	h := &a.v.machines[m]
	for at := range topologies {
		id := h.place(m, at)
		for _, s := range a.c.matches {
			if s.forbids[at].of(id) > 0 {
				return Unwanted
			}
		}
		for i := range a.c.own[at] {
			if t := &a.c.own[at][i]; t.weight == 0 && !a.meets(t, at, id, a.low[at][i]) {
				return [...]Reason{affinity: Together, antiAffinity: Apart, spread: Uneven}[t.kind]
			}
		}
	}
	return Fits
}

// sentence tells a host's reason in full.
func (a *ask) sentence(m int32, why Reason) string {
	h := &a.v.machines[m]
	const gb = 1 << 30
	room := func(free, most int64, unit float64, what string) string {
		return fmt.Sprintf("%.4g of %.4g %s are free", float64(max(free, 0))/unit, float64(most)/unit, what)
	}
	switch why {
	case WrongPool:
		return "it is in pool " + h.host.Pool
	case WrongIsolation:
		return fmt.Sprintf("it has no %s isolation", a.c.isolation)
	case TooOld:
		return "its agent is of a release that knows no address spaces of virtual networks; upgrade it"
	case WrongZone:
		return "it stands in zone " + h.host.Zone
	case LacksCPU:
		return room(h.free.MilliCPU, h.most.MilliCPU, 1000, "CPU")
	case LacksMemory:
		return room(h.free.Memory, h.most.Memory, gb, "GB memory")
	case LacksStorage:
		return room(h.free.EphemeralStorage, h.most.EphemeralStorage, gb, "GB storage")
	case LacksGPUs:
		return room(h.free.GPUs, h.most.GPUs, 1, "GPUs")
	case DiskFull:
		return "its disk is full"
	}
	return "it " + said[why].one
}
