package httpapi

import (
	"fmt"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/identity"
)

// hostAccess checks both locks in front of hosts: what a group asks of them is given away on this platform, and the
// caller has the right to hand it on. Hosts are the whole platform's: that right is not one on a resource group.
func (a *api) hostAccess(c *call, needs []group.Need) error {
	if len(needs) == 0 {
		return nil
	}
	var faults []fault.Error
	for _, n := range a.Allow.Lacks(needs) {
		faults = append(faults, fault.Error{Kind: fault.Invalid, Code: "HostAccessNotAllowed", Target: n.Field,
			Message: fmt.Sprintf("The field '%s' cannot be honoured: %s.", n.Field, n.Refusal())})
	}
	switch len(faults) {
	case 0:
		return a.onHosts(c, needs)
	case 1:
		return &faults[0]
	}
	return &fault.Error{Kind: fault.Invalid, Code: faults[0].Code, Target: faults[0].Target, Details: faults,
		Message: fmt.Sprintf("The request asks for %d things of the host that are not given, the first: %s", len(faults), faults[0].Message)}
}

// onHosts checks the right alone: who enters a group that has something of a host has that, too.
func (a *api) onHosts(c *call, needs []group.Need) error {
	if len(needs) == 0 {
		return nil
	}
	return a.Identity.Authorize(c.principal, identity.AccessHosts, "/")
}
