package host

import (
	"fmt"
	"strings"

	"spillway.dev/spillway/internal/group"
)

// Bounds of what a host may say of itself.
const (
	maxText       = 256
	maxLabels     = 64
	maxHostCPU    = 4096 * 1000 // thousandths of a core
	maxHostMemory = 64 << 40    // bytes
)

// Check says whether a description can be true. Nothing that a host says is used before.
func (h *Host) Check() error {
	for what, text := range map[string]string{"name": h.Name, "pool": h.Pool, "zone": h.Zone, "version": h.Version, "kernel": h.Kernel, "cgroup mode": h.CgroupMode, "runtime": h.Runtime, "reason": h.Reason} {
		if err := checkText(what, text); err != nil {
			return err
		}
	}
	if len(h.Labels) > maxLabels {
		return fmt.Errorf("the host has %d labels; at most %d are allowed", len(h.Labels), maxLabels)
	}
	for name, value := range h.Labels {
		if err := checkText("label "+name, name+value); err != nil {
			return err
		}
	}
	if c := h.Capacity; c.MilliCPU < 0 || c.MilliCPU > maxHostCPU || c.Memory < 0 || c.Memory > maxHostMemory {
		return fmt.Errorf("a capacity of %d thousandths of a core and %d bytes is impossible", c.MilliCPU, c.Memory)
	}
	for _, i := range h.Isolation {
		if i != group.IsolationShared && i != group.IsolationGVisor {
			return fmt.Errorf("there is no isolation class %q", i)
		}
	}
	return nil
}

func checkText(what, text string) error {
	if len(text) > maxText {
		return fmt.Errorf("the host's %s has %d characters; at most %d are allowed", what[:min(len(what), 40)], len(text), maxText)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fmt.Errorf("the host's %s has control characters", what[:min(len(what), 40)])
	}
	return nil
}
