package place

import (
	"testing"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

const gb = 1 << 30

func plainHost(name string, change func(*host.Host)) host.Host {
	h := host.Host{Name: name, Capacity: group.Resources{MilliCPU: 2000, Memory: 4 * gb}, Isolation: []group.Isolation{group.IsolationShared}}
	if change != nil {
		change(&h)
	}
	return h
}

func wanted(cpu, memory int64) *group.Group {
	return &group.Group{Spec: group.Spec{Containers: []group.Container{{Requests: group.Resources{MilliCPU: cpu, Memory: memory}}}}}
}

func TestLevels(t *testing.T) {
	for _, base := range []int{cpuBase, memoryBase} {
		for l := range levels {
			if got := level(amount(l, base), base); got != l {
				t.Errorf("level(amount(%d)) = %d at base %d", l, got, base)
			}
			if l > 0 && level(amount(l, base)-1, base) != l-1 {
				t.Errorf("level(amount(%d)-1) = %d at base %d", l, level(amount(l, base)-1, base), base)
			}
		}
		if level(-1, base) != 0 || level(1<<62, base) != levels-1 {
			t.Errorf("levels of extremes = %d, %d", level(-1, base), level(1<<62, base))
		}
	}
}
