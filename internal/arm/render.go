package arm

import (
	"math"
	"slices"
	"strings"
	"time"

	"spillway.dev/spillway/internal/group"
)

// provisioningTimeout is how long a create may take before it counts as failed, in seconds. Azure's.
const provisioningTimeout = 1800

// View is a group with what is known of it.
type View struct {
	Group  *group.Group
	Status *group.Status // nil when no host has reported yet
}

// Ref names the group.
func (v View) Ref() group.Ref { return v.Group.Ref }

// Provisioning says how far the platform has come with what was asked.
func (v View) Provisioning(now time.Time) group.Provisioning {
	g, s := v.Group, v.Status
	if g.Desired == group.Delete {
		return group.ProvisioningDeleting
	}
	if g.Desired == group.Stop {
		return group.ProvisioningSucceeded
	}
	if s == nil || s.Epoch < g.Epoch {
		return group.ProvisioningPending
	}
	switch s.State {
	case group.Pending:
		if ran(s) {
			return group.ProvisioningSucceeded
		}
		if now.Sub(g.Created) > provisioningTimeout*time.Second && g.Epoch == 1 {
			return group.ProvisioningFailed
		}
		if g.Host == "" {
			return group.ProvisioningPending
		}
		return group.ProvisioningCreating
	case group.Failed:
		if !ran(s) {
			return group.ProvisioningFailed
		}
	}
	return group.ProvisioningSucceeded
}

// ran says whether any container of the group has ever been started in this epoch.
func ran(s *group.Status) bool {
	for _, c := range s.Containers {
		if !c.Current.Start.IsZero() || c.Previous != nil || c.RestartCount > 0 {
			return true
		}
	}
	return false
}

// State is the group's state as users see it.
func (v View) State() group.State {
	switch {
	case v.Status == nil || v.Status.State == "":
		return group.Pending
	case v.Group.Desired == group.Run && v.Status.Epoch < v.Group.Epoch && v.Status.State.Ended():
		return group.Pending
	}
	return v.Status.State
}

// Resource is a rendered container group, ready for encoding/json.
type Resource = wireGroup

// Render makes the answer for one group: everything a GET shows, no secret.
func Render(v View, version Version, now time.Time) *Resource {
	r := render(v, version, now)
	r.Properties.InstanceView = groupView(v, version)
	return r
}

// RenderItem makes the entry of a list. Azure's lists carry no instance views; Spillway's do.
func RenderItem(v View, version Version, now time.Time) *Resource {
	if version.Superset {
		return Render(v, version, now)
	}
	return render(View{Group: v.Group, Status: v.Status}, version, now).withoutViews()
}

func (r *wireGroup) withoutViews() *wireGroup {
	for _, list := range [][]wireContainer{r.Properties.Containers, r.Properties.InitContainers} { // ephemeral ones are Spillway's, whose lists have views
		for i := range list {
			list[i].Properties.InstanceView = nil
		}
	}
	return r
}

func render(v View, version Version, now time.Time) *wireGroup {
	g := v.Group
	s := &g.Spec
	r := &wireGroup{
		ID: ID(g.Ref), Name: g.Ref.Name, Type: GroupType, Location: g.Location, Tags: g.Tags, Zones: g.Zones,
		Properties: wireProperties{
			SKU: s.SKU, ProvisioningState: string(v.Provisioning(now)), ProvisioningTimeout: provisioningTimeout,
			RestartPolicy: string(s.RestartPolicy), OSType: "Linux", Priority: s.Priority,
			IPAddress: address(v), DNSConfig: dns(s.DNS), SubnetIDs: subnetIDs(s.Subnet),
		},
	}
	if r.Tags == nil {
		r.Tags = map[string]string{}
	}
	if r.Properties.SKU == "" {
		r.Properties.SKU = "Standard"
	}
	e := encoder{version: version, status: v.Status}
	r.Properties.Containers = make([]wireContainer, 0, len(s.Containers))
	for i := range s.Containers {
		r.Properties.Containers = append(r.Properties.Containers, e.container(&s.Containers[i], false))
	}
	r.Properties.InitContainers = make([]wireContainer, 0, len(s.InitContainers))
	for i := range s.InitContainers {
		r.Properties.InitContainers = append(r.Properties.InitContainers, e.container(&s.InitContainers[i], true))
	}
	for i := range s.Volumes {
		r.Properties.Volumes = append(r.Properties.Volumes, e.volume(&s.Volumes[i]))
	}
	for _, c := range s.Credentials {
		r.Properties.Credentials = append(r.Properties.Credentials, wireCredential{Server: c.Server, Username: c.Username})
	}
	if version.Superset {
		r.Properties.OwnGroup = ownGroup(g)
		for i := range s.Ephemeral {
			r.Properties.Ephemeral = append(r.Properties.Ephemeral, e.container(&s.Ephemeral[i], true))
		}
	}
	return r
}

func ownGroup(g *group.Group) *OwnGroup {
	s := &g.Spec
	own := &OwnGroup{
		UID: g.UID, Generation: g.Generation, Epoch: g.Epoch, Host: g.Host, Desired: string(g.Desired), Created: Stamp(g.Created),
		Labels: s.Labels, Isolation: string(s.Isolation), Hostname: s.Hostname, Sysctls: s.Sysctls,
		ShareProcesses: s.ShareProcesses, GraceSeconds: s.GraceSeconds, EphemeralStorage: inGB(s.EphemeralStorage),
		Network: s.NetworkName(), FSGroup: s.FSGroup, Placeholder: s.Placeholder, Placement: placement(s.Placement), Failover: string(s.Failover),
		HostNetwork: s.HostNetwork, HostAddress: s.HostAddress, HostPID: s.HostPID, HostIPC: s.HostIPC, HostsComment: s.HostsComment,
	}
	if s.HostNetwork || s.Subnet != nil {
		own.Network = "" // it is in none, or in that of its subnet
	}
	for _, a := range s.HostAliases {
		own.HostAliases = append(own.HostAliases, wireHostAlias{IP: a.IP, Hostnames: a.Names})
	}
	return own
}

func address(v View) *wireIP {
	ip := v.Group.Spec.IP
	if ip == nil {
		return nil
	}
	w := &wireIP{Ports: ports(ip.Ports), Type: "Private", DNSLabel: ip.DNSLabel, Scope: ip.LabelScope}
	if ip.Public {
		w.Type = "Public"
	}
	if v.Group.Address.IsValid() { // its own before it runs, and when it does not
		w.IP = v.Group.Address.String()
	} else if s := v.Status; s != nil {
		w.IP = s.IP
		if ip.Public && s.PublicIP != "" {
			w.IP = s.PublicIP
		}
	}
	if ip.DNSLabel != "" {
		w.FQDN = FQDN(ip.DNSLabel, v.Group.Location)
	}
	return w
}

func dns(c *group.DNSConfig) *wireDNS {
	if c == nil {
		return nil
	}
	return &wireDNS{Servers: c.Servers, Search: strings.Join(c.Search, " "), Options: strings.Join(c.Options, " ")}
}

func subnetIDs(s *group.Subnet) []wireSubnetID {
	if s == nil {
		return nil
	}
	return []wireSubnetID{{ID: SubnetID(s.Network, s.Name), Name: s.Label}}
}

func ports(list []group.Port) []wirePort {
	out := make([]wirePort, 0, len(list))
	for _, p := range list {
		out = append(out, wirePort{Protocol: p.Protocol, Port: p.Number})
	}
	return out
}

// inGB rounds so that what a client wrote comes back: 0.1 GB is 0.1, not 0.0999999996.
func inGB(bytes int64) float64 { return math.Round(float64(bytes)/gigabyte*1e6) / 1e6 }

func groupView(v View, version Version) *wireGroupView {
	w := &wireGroupView{Events: []wireEvent{}, State: string(v.State())}
	s := v.Status
	if s == nil {
		w.Events = events(v.Group.Events)
		return w
	}
	w.Events = events(joined(v.Group.Events, s.Events))
	if version.Superset {
		w.Address, w.Reason, w.Epoch = s.IP, s.Reason, s.Epoch
		w.Started, w.Finished = Stamp(s.Started), Stamp(s.Finished)
	}
	return w
}

// joined puts what the control plane did and what the host reports into one list, in the order of time.
func joined(a, b []group.Event) []group.Event {
	if len(a) == 0 {
		return b
	}
	out := append(slices.Clone(a), b...)
	slices.SortStableFunc(out, func(x, y group.Event) int { return x.Last.Compare(y.Last) })
	return out
}

func events(list []group.Event) []wireEvent {
	out := make([]wireEvent, 0, len(list))
	for _, e := range list {
		out = append(out, wireEvent{Count: e.Count, First: Stamp(e.First), Last: Stamp(e.Last), Name: e.Name, Message: e.Message, Type: e.Type})
	}
	return out
}

// RenderEvents are all events of a group and its containers, as the status of an operation shows them.
func RenderEvents(v View) any {
	if v.Status == nil {
		return events(v.Group.Events)
	}
	all := events(joined(v.Group.Events, v.Status.Events))
	for _, c := range v.Status.All() {
		all = append(all, events(c.Events)...)
	}
	return all
}
