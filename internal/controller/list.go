package controller

import (
	"context"
	"slices"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// List gives the chosen groups, ordered by resource group and name.
func (c *Controller) List(filter Filter) []arm.View {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.views(filter)
}

// views is List with the lock held.
func (c *Controller) views(filter Filter) []arm.View {
	from := c.idx.groups
	if filter.Subscription != "" && filter.ResourceGroup != "" {
		if filter.Name != "" {
			if e := from[arm.Key(group.Ref(filter))]; e != nil {
				return []arm.View{e.view()}
			}
			return nil
		}
		from = c.idx.byRG[rgKey(filter.Subscription, filter.ResourceGroup)]
	}
	return chosen(from, filter, func(e *entry) group.Ref { return e.group.Ref }, (*entry).view)
}

// chosen gives what of an index a filter chooses, ordered by the keys: resource group and name.
func chosen[E, V any](from map[string]E, filter Filter, ref func(E) group.Ref, view func(E) V) []V {
	keys := make([]string, 0, len(from))
	for k, e := range from {
		if filter.Match(ref(e)) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	out := make([]V, 0, len(keys))
	for _, k := range keys {
		out = append(out, view(from[k]))
	}
	return out
}

// Usage is what a subscription uses of the location and what the location has.
type Usage struct {
	Groups        int
	MilliCPU      int64
	LimitGroups   int
	LimitMilliCPU int64
}

// maxGroups is the count that the usages call shows as limit: what one machine has been measured with.
const maxGroups = 5000

// Usage sums up the groups of a subscription that hold something.
func (c *Controller) Usage(subscription string) Usage {
	c.mu.RLock()
	defer c.mu.RUnlock()
	u := Usage{LimitGroups: maxGroups}
	for _, e := range c.idx.groups {
		if fits(subscription, e.group.Ref.Subscription) {
			u.Groups++
			if e.holds() {
				u.MilliCPU += e.group.Spec.Total().MilliCPU
			}
		}
	}
	for _, l := range c.links {
		u.LimitMilliCPU += int64(float64(l.Describe().Capacity.MilliCPU) * c.cfg.Policy.CPUOvercommit)
	}
	return u
}

// Drain cordons a host and moves its running groups to others: they run afresh there. Errors: not-found; conflict,
// when some groups stayed: they fit nowhere else until there is room, or are fenced, and would run twice for a moment.
func (c *Controller) Drain(ctx context.Context, name string) (host.Host, error) {
	h, err := c.cordon(ctx, name, hostRecord{Cordoned: true, Draining: true})
	if err != nil {
		return h, err
	}
	c.mu.RLock()
	mine := c.idx.onHost(name)
	c.mu.RUnlock()
	var stuck []string
	for _, g := range mine {
		_, err := c.change(ctx, g.Ref, func(e *entry) (*group.Group, error) {
			if e.group.Desired != group.Run || e.settled() || e.group.Host != name {
				return nil, nil
			}
			return again(e.group, true), nil
		})
		if err != nil && fault.KindOf(err) != fault.NotFound {
			stuck = append(stuck, g.Ref.Name)
		}
	}
	if stuck != nil {
		return h, fault.New(fault.Conflict, "HostNotDrained", "The host '%s' is cordoned, but %d of its groups stay, as they are fenced or fit on no other host until one has room: %s. Add a host, or stop them.", name, len(stuck), first(stuck, 10))
	}
	return h, nil
}

func first(names []string, n int) string {
	out := ""
	for i, name := range names {
		if i == n {
			return out + ", …"
		}
		if i > 0 {
			out += ", "
		}
		out += name
	}
	return out
}
