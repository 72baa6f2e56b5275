package controller

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/store"
)

// maxAttempts is how often a write is tried when others change the same group.
const maxAttempts = 8

// Result is what a write did.
type Result struct {
	View    arm.View
	Created bool
	Changed bool // false: the group was already as asked
}

// Put creates or updates a group. A create is one durable commit. Errors: not-found (resource group), conflict
// (transitioning, room nowhere ever, taken DNS label), invalid (a change that needs a new group).
func (c *Controller) Put(ctx context.Context, ref group.Ref, req *arm.Request) (Result, error) {
	for range maxAttempts {
		rg, err := c.openResourceGroup(ref)
		if err != nil {
			return Result{}, err
		}
		if req.Location, err = c.checkLocation(req.Location, arm.GroupType, rg); err != nil {
			return Result{}, err
		}
		ref.ResourceGroup, ref.Subscription = rg.Name, rg.Subscription
		e := c.lookup(ref)
		var res Result
		if e == nil {
			res, err = c.create(ctx, ref, req)
		} else {
			res, err = c.update(ctx, e, req)
		}
		if !errors.Is(err, store.ErrConflict) {
			return res, err
		}
		if err := c.refresh(ctx, ref); err != nil {
			return Result{}, err
		}
	}
	return Result{}, busy(ref)
}

func busy(ref group.Ref) error {
	return fault.New(fault.Conflict, "ContainerGroupTransitioning", "The container group '%s' is still transitioning, please retry later.", ref.Name)
}

// checkLocation gives the location of a resource, by default its resource group's, and refuses foreign ones.
func (c *Controller) checkLocation(location, kind string, rg ResourceGroup) (string, error) {
	if location == "" {
		location = rg.Location
	}
	if normal(location) != normal(c.cfg.Location) {
		return "", &fault.Error{Kind: fault.Invalid, Code: "LocationNotAvailableForResourceType", Target: "location", Message: fmt.Sprintf(
			"The provided location '%.64s' is not available for resource type '%s'. List of available regions for the resource type is '%s'.", location, kind, c.cfg.Location)}
	}
	return c.cfg.Location, nil
}

// normal is a location as ARM compares it: "West US" is "westus".
func normal(location string) string {
	return strings.ToLower(strings.ReplaceAll(location, " ", ""))
}

func (c *Controller) create(ctx context.Context, ref group.Ref, req *arm.Request) (Result, error) {
	g := &group.Group{
		Ref: ref, UID: newID(), Generation: 1, Epoch: 1, Location: req.Location, Tags: req.Tags, Zones: req.Zones,
		Created: c.cfg.Now().UTC(), Desired: group.Run, Spec: req.Spec,
	}
	joins, leave, err := c.enterSubnet(nil, g)
	if err != nil {
		return Result{}, err
	}
	defer leave()
	ops := []store.Op{{Key: store.ResourceGroupKey(ref.Subscription, ref.ResourceGroup), Kind: store.Check, If: store.Exists}}
	ops = append(append(ops, joins...), c.labelOps(nil, g)...)
	return c.write(ctx, g, 0, ops)
}

// labelOps claim and give up the names of DNS labels in the commit that writes a group.
func (c *Controller) labelOps(old, g *group.Group) []store.Op {
	before, after := labelKey(old), labelKey(g)
	if before == after {
		return nil
	}
	var ops []store.Op
	if after != "" {
		ops = append(ops, store.Op{Key: after, Value: []byte(g.UID), If: store.Absent})
	}
	if before != "" {
		ops = append(ops, store.Op{Key: before, Kind: store.Delete, If: store.Any})
	}
	return ops
}

func labelKey(g *group.Group) string {
	if g == nil || g.Spec.IP == nil || g.Spec.IP.DNSLabel == "" {
		return ""
	}
	return store.LabelKey(g.Location, g.Spec.IP.DNSLabel)
}

// write places a group where it needs a host, commits it and tells the host. revision 0 creates.
func (c *Controller) write(ctx context.Context, g *group.Group, revision int64, ops []store.Op) (Result, error) {
	if g.Desired == group.Run && g.NetworkID == 0 {
		if err := c.numberNetwork(ctx, g); err != nil {
			return Result{}, err
		}
	}
	if g.Desired == group.Run && (g.Host == "" || c.grows(g)) {
		c.placing.RLock()
		defer c.placing.RUnlock()
		if err := c.reserve(ctx, g); err != nil {
			return Result{}, err
		}
		defer c.unreserve(g.UID)
	}
	value, err := encode(g)
	if err != nil {
		return Result{}, err
	}
	key := store.GroupKey(g.Ref.Subscription, g.Ref.ResourceGroup, g.Ref.Name)
	// gofail: var commitBefore struct{}
	next, err := c.cfg.Store.Commit(ctx, append(ops, store.Op{Key: key, Value: value, If: revision})...)
	if errors.Is(err, store.ErrConflict) {
		if taken := c.labelTaken(ctx, g); taken != nil {
			return Result{}, taken
		}
		return Result{}, err
	}
	if err != nil {
		return Result{}, fmt.Errorf("store group %s: %w", g.Ref.Name, err)
	}
	// gofail: var commitAfter struct{}
	fresh := c.putGroup(g, next)
	res := Result{View: arm.View{Group: g}, Created: revision == 0, Changed: true}
	if e := c.lookup(g.Ref); e != nil && e.group.UID == g.UID {
		res.View.Status = e.status // as it is before its host hears of it: what a write answers depends on no host's speed
	}
	if fresh { // else the store's watch was faster and has told the host
		c.assign(g)
		runtime.Gosched() // its host goes first: the answer would keep this processor for another tenth of a millisecond
	}
	return res, nil
}

// labelTaken explains a refused commit when another group holds the DNS label.
func (c *Controller) labelTaken(ctx context.Context, g *group.Group) error {
	key := labelKey(g)
	if key == "" {
		return nil
	}
	e, err := c.cfg.Store.Get(ctx, key)
	if err != nil || string(e.Value) == g.UID {
		return nil
	}
	return &fault.Error{Kind: fault.Conflict, Code: "DnsNameLabelNotAvailable", Target: "properties.ipAddress.dnsNameLabel", Message: fmt.Sprintf(
		"The DNS name label '%s' is not available in the location '%s'. Choose another label, or delete the container group that has it.", g.Spec.IP.DNSLabel, g.Location)}
}

// update changes an existing group.
func (c *Controller) update(ctx context.Context, e *entry, req *arm.Request) (Result, error) {
	old := e.group
	ended := e.settled()
	switch {
	case old.Desired == group.Delete, old.Desired == group.Stop && !ended:
		return Result{}, busy(old.Ref)
	}
	g := *old
	g.Spec, g.Tags, g.Zones = req.Spec, req.Tags, req.Zones
	arm.KeepSecrets(&old.Spec, &g.Spec)
	keepRequestedAddress(&g.Spec, e)
	joins, leave, err := c.enterSubnet(old, &g)
	if err != nil {
		return Result{}, err
	}
	defer leave()
	g.Generation++
	same := equal(old.Spec, g.Spec) && equal(old.Zones, g.Zones)
	if same && old.Host == "" && !ended && equal(old.Tags, g.Tags) {
		return Result{View: e.view()}, nil
	}
	if ended || old.Host == "" { // as new: nothing has to stay as it was
		g.Desired, g.Host, g.Evicted, g.NetworkID = group.Run, "", nil, 0
		g.Epoch++
		return c.write(ctx, &g, e.revision, append(joins, c.labelOps(old, &g)...))
	}
	switch {
	case same && equal(old.Tags, g.Tags):
		return Result{View: e.view()}, nil
	case same, req.Live && liveChange(&old.Spec, &g.Spec):
		return c.write(ctx, &g, e.revision, nil)
	}
	if err := fixed(old, &g); err != nil {
		return Result{}, err
	}
	g.Epoch++
	return c.write(ctx, &g, e.revision, c.labelOps(old, &g))
}

// keepRequestedAddress drops an address that a client only echoes back.
func keepRequestedAddress(s *group.Spec, e *entry) {
	old := e.group.Spec.IP
	if s.IP == nil || old == nil {
		return
	}
	r := s.IP.Requested
	echoed := e.status != nil && (r == e.status.IP || r == e.status.PublicIP)
	if echoed || e.group.Address.IsValid() && r == e.group.Address.String() {
		ip := *s.IP
		ip.Requested = old.Requested
		s.IP = &ip
	}
}

// liveChange says whether two specs differ only in files that a running group takes over without a restart.
func liveChange(a, b *group.Spec) bool {
	return equal(withoutFiles(a), withoutFiles(b))
}

// equal compares as the store writes: absent and empty are the same.
func equal(a, b any) bool {
	x, errX := encode(a)
	y, errY := encode(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

func withoutFiles(s *group.Spec) group.Spec {
	out := *s
	out.Labels = nil
	strip := func(list []group.Container) []group.Container {
		copied := append([]group.Container(nil), list...)
		for i := range copied {
			if copied[i].ConfigMap != nil {
				copied[i].ConfigMap = map[string]string{}
			}
		}
		return copied
	}
	out.Containers, out.InitContainers = strip(s.Containers), strip(s.InitContainers)
	out.Volumes = append([]group.Volume(nil), s.Volumes...)
	for i, v := range out.Volumes {
		if v.ConfigMap != nil {
			out.Volumes[i].ConfigMap = &group.Files{Mode: v.ConfigMap.Mode}
		}
		if v.Secret != nil {
			out.Volumes[i].Secret = &group.Files{Mode: v.Secret.Mode}
		}
	}
	return out
}

// fixed refuses changes that a running group cannot take over in place: the ones that Azure refuses.
func fixed(old, g *group.Group) error {
	var changed []string
	note := func(what string, same bool) {
		if !same {
			changed = append(changed, what)
		}
	}
	a, b := &old.Spec, &g.Spec
	note("restart policy", a.RestartPolicy == b.RestartPolicy)
	note("isolation", a.Isolation == b.Isolation)
	note("zones", equal(old.Zones, g.Zones))
	note("network", a.NetworkName() == b.NetworkName())
	note("subnet, or the address in it", old.Address == g.Address && (a.Subnet == nil) == (b.Subnet == nil))
	note("namespaces of the host", a.HostNetwork == b.HostNetwork && a.HostAddress == b.HostAddress && a.HostPID == b.HostPID && a.HostIPC == b.HostIPC)
	note("placement", equal(a.Placement, b.Placement))
	note("failover", a.Failover == b.Failover)
	note("GPUs", a.Total().GPUs == b.Total().GPUs && a.GPUSKU() == b.GPUSKU())
	note("IP address or its ports", equal(addressOf(a), addressOf(b)))
	note("CPU, memory or ports of a container, or the set of containers",
		equal(shapeOf(a.Containers), shapeOf(b.Containers)) && a.Total().MilliCPU == b.Total().MilliCPU && a.Total().Memory == b.Total().Memory)
	if changed == nil {
		return nil
	}
	return fault.New(fault.Invalid, "InvalidContainerGroupUpdate",
		"The updates on container group '%s' are invalid. If you are going to update the os type, restart policy, network profile, CPU, memory or GPU resources for a container group, you must delete it first and then create a new one. Changed: %s.",
		old.Ref.Name, strings.Join(changed, "; "))
}

func addressOf(s *group.Spec) *group.IPAddress {
	if s.IP == nil {
		return nil
	}
	ip := *s.IP
	ip.Requested = ""
	return &ip
}

// shapeOf is what of containers cannot change in place.
func shapeOf(list []group.Container) map[string]group.Container {
	out := map[string]group.Container{}
	for _, c := range list {
		out[c.Name] = group.Container{Requests: c.Requests, Limits: c.Limits, Ports: c.Ports}
	}
	return out
}
