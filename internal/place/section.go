package place

import (
	"maps"
	"slices"
	"strconv"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// fineSections is how many sections there may be of hosts that are alike in all but room. Where labels or fault domains
// tell nearly every host from every other, further hosts share coarse sections and are looked at one by one.
const fineSections = 512

// section is the open hosts that are alike in everything that rules ask for: of them only room decides.
type section struct {
	pool      string
	zone      int32 // numbers of View.zones and View.domains; 0: none
	domain    int32
	isolation []group.Isolation
	spaces    bool
	gpuSKU    string
	gpus      int64             // free on each of its hosts
	labels    map[string]string // of each of its hosts
	coarse    bool              // labels and fault domains differ
	pack      bool
	machines  int
	rows      [levels]*[levels]bucket
}

func (s *section) at(c cell) *bucket {
	row := s.rows[c>>6]
	if row == nil {
		row = new([levels]bucket)
		s.rows[c>>6] = row
	}
	return &row[c&63]
}

// sectionOf finds the section of a host, or opens one.
func (v *View) sectionOf(h *machine) int32 {
	key := v.key[:0]
	key = appendText(key, h.host.Pool)
	key = strconv.AppendInt(key, int64(h.zone), 10)
	for _, i := range h.host.Isolation {
		key = appendText(key, string(i))
	}
	key = append(key, '|')
	if h.host.Spaces {
		key = append(key, 'n')
	}
	if h.most.GPUs > 0 {
		key = appendText(key, h.host.GPUSKU)
		key = strconv.AppendInt(key, h.free.GPUs, 10)
	}
	short := len(key)
	key = append(key, '|')
	key = strconv.AppendInt(key, int64(h.domain), 10)
	if len(h.host.Labels) > 0 {
		for _, k := range slices.Sorted(maps.Keys(h.host.Labels)) {
			key = appendText(key, k)
			key = appendText(key, h.host.Labels[k])
		}
	}
	v.key = key
	if id, ok := v.sectionIDs[string(key)]; ok {
		return id
	}
	coarse := v.fine >= v.limits.fine
	if coarse {
		key = key[:short]
		if id, ok := v.sectionIDs[string(key)]; ok {
			return id
		}
	}
	s := &section{pool: h.host.Pool, zone: h.zone, isolation: slices.Clone(h.host.Isolation), spaces: h.host.Spaces, coarse: coarse, pack: v.policies.of(h.host.Pool).Pack}
	if h.most.GPUs > 0 {
		s.gpuSKU, s.gpus = h.host.GPUSKU, h.free.GPUs
	}
	if !coarse {
		v.fine++
		s.domain, s.labels = h.domain, maps.Clone(h.host.Labels)
	}
	return v.openSection(string(key), s)
}

// openSection takes the place of a section that has lost its last host, when there is one.
func (v *View) openSection(key string, s *section) int32 {
	v.layout++
	id := int32(len(v.sections))
	if len(v.sections) >= v.sweepSections {
		v.sweep()
	}
	if n := len(v.freeSections); n > 0 {
		id = v.freeSections[n-1]
		v.freeSections = v.freeSections[:n-1]
		v.sections[id] = s
	} else {
		v.sections = append(v.sections, s)
	}
	v.sectionIDs[key] = id
	return id
}

// sweep closes the sections without hosts; the next time comes when twice as many are open.
func (v *View) sweep() {
	for key, id := range v.sectionIDs {
		s := v.sections[id]
		if s.machines > 0 {
			continue
		}
		if !s.coarse {
			v.fine--
		}
		delete(v.sectionIDs, key)
		v.freeSections = append(v.freeSections, id)
		v.sections[id] = &section{}
	}
	slices.Sort(v.freeSections) // maps have no order, answers must have one
	v.sweepSections = max(2*(len(v.sections)-len(v.freeSections)), minSweep)
}

// minSweep is the number of sections below which empty ones do no harm.
const minSweep = 256

func appendText(key []byte, s string) []byte {
	key = strconv.AppendInt(key, int64(len(s)), 10)
	key = append(key, ':')
	return append(key, s...)
}

// sameTraits says whether two descriptions differ in nothing that placement looks at.
func sameTraits(a, b *host.Host) bool {
	return a.Pool == b.Pool && a.Zone == b.Zone && a.FaultDomain == b.FaultDomain && a.Capacity == b.Capacity && a.GPUSKU == b.GPUSKU &&
		a.Spaces == b.Spaces && a.State == b.State && a.Cordoned == b.Cordoned && a.DiskFull == b.DiskFull && slices.Equal(a.Isolation, b.Isolation) &&
		maps.Equal(a.Labels, b.Labels) && slices.Equal(a.Images, b.Images)
}
