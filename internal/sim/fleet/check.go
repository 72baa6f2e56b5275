package fleet

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// apart is the app of groups that must not be neighbours.
const apart = "apart"

// views are all groups, as the server that leads shows them.
func (f *Fleet) views() map[string]arm.View {
	out := map[string]arm.View{}
	for _, v := range f.lead().ctrl.List(controller.Filter{}) {
		out[v.Group.UID] = v
	}
	return out
}

// Always says what must not be at any moment, whatever is broken.
func (f *Fleet) Always() error {
	return errors.Join(f.fencedOnce(), f.blocksApart(), f.capacityKept(), f.apartKept(), f.withdrawn())
}

// fencedOnce: a fenced group never runs twice.
func (f *Fleet) fencedOnce() error {
	views := f.views()
	on := map[string]string{}
	for _, n := range f.hosts {
		for uid := range n.machine().Live() {
			if v, ok := views[uid]; !ok || !v.Group.Spec.Fenced() {
				continue
			}
			if other := on[uid]; other != "" {
				return fmt.Errorf("fenced group %s runs on %s and on %s", views[uid].Group.Ref.Name, other, n.name)
			}
			on[uid] = n.name
		}
	}
	return nil
}

// blocksApart: no address block is two hosts'.
func (f *Fleet) blocksApart() error {
	owner := map[netip.Prefix]string{}
	for _, n := range f.hosts {
		for _, b := range n.machine().Overlay().Blocks {
			if other := owner[b]; other != "" && other != n.name {
				return fmt.Errorf("block %s is that of %s and of %s", b, other, n.name)
			}
			owner[b] = n.name
		}
	}
	return nil
}

// capacityKept: no host has promised more than it has.
func (f *Fleet) capacityKept() error {
	used := map[string]int64{}
	for _, v := range f.views() {
		if g := v.Group; g.Host != "" && !settled(v) {
			used[g.Host] += g.Spec.Total().MilliCPU
		}
	}
	for _, n := range f.hosts {
		if has := n.machine().Describe().Capacity.MilliCPU; used[n.name] > has {
			return fmt.Errorf("host %s has %d thousandths of a core and has promised %d", n.name, has, used[n.name])
		}
	}
	return nil
}

func settled(v arm.View) bool {
	s := v.Status
	return s != nil && (s.Epoch >= v.Group.Epoch || s.Generation >= v.Group.Generation) && (s.State.Ended() || s.Gone)
}

// apartKept: groups that must not be neighbours are none.
func (f *Fleet) apartKept() error {
	on := map[string]string{}
	for _, v := range f.views() {
		g := v.Group
		if g.Spec.Labels["app"] != apart || g.Host == "" || settled(v) || g.Desired != group.Run {
			continue
		}
		if other := on[g.Host]; other != "" {
			return fmt.Errorf("groups %s and %s are both on %s and must not", other, g.Ref.Name, g.Host)
		}
		on[g.Host] = g.Ref.Name
	}
	return nil
}

// withdrawn: a host that still runs what was started elsewhere is nobody's peer, as far as others can be told.
func (f *Fleet) withdrawn() error {
	views, lead := f.views(), f.lead()
	for _, n := range f.hosts {
		for uid, epoch := range n.machine().Live() {
			v, ok := views[uid]
			if !ok || v.Group.Host == "" || v.Group.Host == n.name || epoch >= v.Group.Epoch || !f.runs(v) {
				continue
			}
			for _, other := range f.hosts {
				other.mu.Lock()
				c := other.conn
				other.mu.Unlock()
				if other == n || other.apart() || c == nil || c.gone.Load() || c.s != lead || lead.held.Load() || lead.dead.Load() || !c.settled() {
					continue
				}
				for _, p := range other.machine().Overlay().Set {
					if p.Name == n.name {
						return fmt.Errorf("host %s still runs %s, which was started on %s, and is a peer of %s", n.name, v.Group.Ref.Name, v.Group.Host, other.name)
					}
				}
			}
		}
	}
	return nil
}

// runs says whether a group's newest copy runs where it should.
func (f *Fleet) runs(v arm.View) bool {
	for _, n := range f.hosts {
		if n.name == v.Group.Host {
			return n.machine().Live()[v.Group.UID] == v.Group.Epoch
		}
	}
	return false
}

// settled says whether nothing is on its way to the host.
func (c *wire) settled() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clearing.Told() && len(c.downward) == 0 && time.Since(c.born) > time.Second
}

// Whole says what is wrong with a fleet in which nothing is broken any more. known are the groups that must be there, maybe
// those of which nobody knows.
func (f *Fleet) Whole(known, maybe map[string]bool) error {
	views := f.views()
	there := map[string]bool{}
	for _, v := range views {
		name := v.Group.Ref.Name
		there[name] = true
		if !known[name] && !maybe[name] {
			return fmt.Errorf("group %s was deleted", name)
		}
	}
	for name := range known {
		if !there[name] {
			return fmt.Errorf("group %s was acknowledged, and is lost", name)
		}
	}
	return errors.Join(f.placed(views), f.copies(views), f.addresses(views), f.peers(), f.named(views))
}

// placed: what should run does, or waits and has room nowhere.
func (f *Fleet) placed(views map[string]arm.View) error {
	for _, v := range views {
		g, s := v.Group, v.Status
		switch {
		case g.Desired == group.Delete:
			return fmt.Errorf("group %s is still to go", g.Ref.Name)
		case g.Desired == group.Stop && !settled(v):
			return fmt.Errorf("group %s is still to stop", g.Ref.Name)
		case g.Desired == group.Stop || settled(v):
		case g.Host == "":
			x, err := f.lead().ctrl.Explain(group.Ref{Subscription: subscription, ResourceGroup: resourceGroup, Name: "other"}, &arm.Request{Location: "local", Zones: g.Zones, Spec: g.Spec})
			if err != nil {
				return err
			}
			if x.Host != "" {
				return fmt.Errorf("group %s waits (%s), and would fit on %s", g.Ref.Name, s.Reason, x.Host)
			}
		case s == nil || s.State != group.Running || s.Epoch != g.Epoch:
			return fmt.Errorf("group %s on %s is %+v", g.Ref.Name, g.Host, s)
		}
	}
	return nil
}

// copies: everything runs once and where it should, and nothing else does.
func (f *Fleet) copies(views map[string]arm.View) error {
	for _, n := range f.hosts {
		for uid, epoch := range n.machine().Live() {
			v, ok := views[uid]
			if !ok || v.Group.Host != n.name || v.Group.Epoch != epoch {
				return fmt.Errorf("epoch %d of %s runs on %s and should not", epoch, uid, n.name)
			}
		}
	}
	for _, v := range views {
		if v.Group.Desired == group.Run && v.Group.Host != "" && !settled(v) && !f.runs(v) {
			return fmt.Errorf("group %s does not run on %s", v.Group.Ref.Name, v.Group.Host)
		}
	}
	return nil
}

// addresses: each is one group's, and of a block of its host.
func (f *Fleet) addresses(views map[string]arm.View) error {
	taken := map[string]string{}
	for _, v := range views {
		if v.Status == nil || v.Status.State != group.Running {
			continue
		}
		name, ip := v.Group.Ref.Name, v.Status.IP
		if other := taken[ip]; other != "" {
			return fmt.Errorf("groups %s and %s both have the address %s", other, name, ip)
		}
		taken[ip] = name
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			return fmt.Errorf("group %s: %w", name, err)
		}
		ours := false
		for _, b := range f.lead().ctrl.Blocks(v.Group.Host) {
			ours = ours || b.Contains(addr)
		}
		if !ours {
			return fmt.Errorf("group %s has the address %s, which is none of %s", name, ip, v.Group.Host)
		}
	}
	return nil
}

// peers: every host is ready and knows all others.
func (f *Fleet) peers() error {
	for _, n := range f.hosts {
		if h, err := f.lead().ctrl.DescribeHost(n.name); err != nil || h.State != host.Ready {
			return fmt.Errorf("host %s is %q, %v", n.name, h.State, err)
		}
		if got := len(n.machine().Overlay().Set); got != len(f.hosts)-1 {
			return fmt.Errorf("host %s has %d peers", n.name, got)
		}
	}
	return nil
}

// named: every host knows the names of all ready groups elsewhere, and no others.
func (f *Fleet) named(views map[string]arm.View) error {
	for _, n := range f.hosts {
		carries := false
		for _, v := range views {
			carries = carries || v.Group.Host == n.name
		}
		names := n.machine().Names()
		for uid, v := range views {
			ready := v.Status != nil && v.Status.State == group.Running && v.Status.Ready() && v.Group.Desired == group.Run
			if got, ok := names[uid]; ready && v.Group.Host != n.name && carries && (!ok || got.Names[0].Addr.String() != v.Status.IP) {
				return fmt.Errorf("host %s does not know where %s is: %+v", n.name, v.Group.Ref.Name, got)
			}
		}
		for uid := range names {
			if v, ok := views[uid]; !ok || v.Group.Host == n.name {
				return fmt.Errorf("host %s has a name of %s, which is not elsewhere", n.name, uid)
			}
		}
	}
	return nil
}
