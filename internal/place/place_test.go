package place

import (
	"strings"
	"testing"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

const gb = 1 << 30

func candidate(name string, change func(*Candidate)) Candidate {
	c := Candidate{Host: host.Host{Name: name, Capacity: group.Resources{MilliCPU: 2000, Memory: 4 * gb}, Isolation: []group.Isolation{group.IsolationShared}}}
	if change != nil {
		change(&c)
	}
	return c
}

func wanted(cpu, memory int64) *group.Group {
	return &group.Group{Spec: group.Spec{Containers: []group.Container{{Requests: group.Resources{MilliCPU: cpu, Memory: memory}}}}}
}

func TestPick(t *testing.T) {
	half := func(c *Candidate) { c.Used = group.Resources{MilliCPU: 1000, Memory: gb} }
	gvisor := wanted(100, gb)
	gvisor.Spec.Isolation = group.IsolationGVisor
	zoned := wanted(100, gb)
	zoned.Zones = []string{"2"}
	tests := []struct {
		name       string
		group      *group.Group
		candidates []Candidate
		policy     Policy
		want       string // host
		reason     string // part of the reasons
	}{
		{"nobody", wanted(100, gb), nil, Policy{}, "", "no host is connected"},
		{"fits", wanted(2000, 4*gb), []Candidate{candidate("a", nil)}, Policy{}, "a", ""},
		{"least loaded", wanted(100, gb), []Candidate{candidate("a", half), candidate("b", nil)}, Policy{}, "b", ""},
		{"first of equals", wanted(100, gb), []Candidate{candidate("b", nil), candidate("a", nil)}, Policy{}, "a", ""},
		{"too much CPU", wanted(1500, gb), []Candidate{candidate("a", half)}, Policy{}, "", "1 of 2 CPU"},
		{"overcommit", wanted(15000, gb), []Candidate{candidate("a", half)}, Policy{CPUOvercommit: 10}, "a", ""},
		{"too much memory", wanted(100, 4*gb), []Candidate{candidate("a", half)}, Policy{}, "", "3.0 of 4.0 GB"},
		{"cordoned", wanted(100, gb), []Candidate{candidate("a", func(c *Candidate) { c.Cordoned = true })}, Policy{}, "", "cordoned"},
		{"isolation", gvisor, []Candidate{candidate("a", nil)}, Policy{}, "", "gvisor"},
		{"zone", zoned, []Candidate{candidate("a", func(c *Candidate) { c.Zone = "1" }), candidate("b", func(c *Candidate) { c.Zone = "2" })}, Policy{}, "b", ""},
		{"host without a zone", zoned, []Candidate{candidate("a", nil)}, Policy{}, "a", ""},
		{"disk full", wanted(100, gb), []Candidate{candidate("a", func(c *Candidate) { c.DiskFull = true })}, Policy{}, "", "disk is full"},
	}
	for _, test := range tests {
		d := Pick(test.group, test.candidates, test.policy)
		if d.Host != test.want || !strings.Contains(strings.Join(d.Reasons, "\n"), test.reason) {
			t.Errorf("%s: Pick = %+v, want host %q and reason %q", test.name, d, test.want, test.reason)
		}
		if d.DiskFull != (test.name == "disk full") {
			t.Errorf("%s: DiskFull = %t", test.name, d.DiskFull)
		}
	}
}
