package agent

import "spillway.dev/spillway/internal/fault"

// allowed refuses what of this machine groups do not get any more: the platform was started anew, without a flag that
// it had when the group was written. What runs goes on; nothing starts.
func (w *worker) allowed() error {
	needs := w.g.Spec.Needs()
	if len(needs) == 0 {
		return nil
	}
	lacks := w.a.cfg.Allow.Lacks(needs)
	if len(lacks) == 0 {
		return nil
	}
	return fault.New(fault.Denied, "HostAccessNotAllowed", "%s: %s", lacks[0].Field, lacks[0].Refusal())
}
