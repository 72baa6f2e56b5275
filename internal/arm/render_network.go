package arm

import (
	"fmt"
	"net/netip"
	"slices"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/vnet"
)

// NetworkView is a virtual network with the groups that have addresses of it.
type NetworkView struct {
	Network *vnet.Network
	Used    []Use // by address
}

// Use is a group's address.
type Use struct {
	Addr netip.Addr
	Ref  group.Ref
}

// Ref names the virtual network.
func (v NetworkView) Ref() group.Ref { return v.Network.Ref }

// Network is a rendered virtual network, ready for encoding/json.
type Network struct {
	Name       string            `json:"name"`
	ID         string            `json:"id"`
	Etag       string            `json:"etag"`
	Type       string            `json:"type"`
	Location   string            `json:"location"`
	Tags       map[string]string `json:"tags"`
	Properties NetworkProperties `json:"properties"`
}

// NetworkProperties are the properties of a virtual network.
type NetworkProperties struct {
	ProvisioningState string       `json:"provisioningState"`
	ResourceGUID      string       `json:"resourceGuid"`
	AddressSpace      AddressSpace `json:"addressSpace"`
	Policies          string       `json:"privateEndpointVNetPolicies"`
	Subnets           []*Subnet    `json:"subnets"`
	Peerings          []struct{}   `json:"virtualNetworkPeerings"`
	Protection        bool         `json:"enableDdosProtection"`
}

// AddressSpace is where a virtual network's subnets are.
type AddressSpace struct {
	Prefixes []string `json:"addressPrefixes"`
}

// Subnet is a rendered subnet.
type Subnet struct {
	Name       string           `json:"name"`
	ID         string           `json:"id"`
	Etag       string           `json:"etag"`
	Type       string           `json:"type"`
	Properties SubnetProperties `json:"properties"`
}

// SubnetProperties are the properties of a subnet.
type SubnetProperties struct {
	ProvisioningState string       `json:"provisioningState"`
	Prefix            string       `json:"addressPrefix,omitempty"`
	Prefixes          []string     `json:"addressPrefixes,omitempty"`
	Users             []Link       `json:"ipConfigurations,omitempty"`
	Delegations       []Delegation `json:"delegations"`
	EndpointPolicies  string       `json:"privateEndpointNetworkPolicies"`
	ServicePolicies   string       `json:"privateLinkServiceNetworkPolicies"`
}

// Link is a reference to another resource.
type Link struct {
	ID string `json:"id"`
}

// Delegation is a rendered delegation.
type Delegation struct {
	Name       string               `json:"name"`
	ID         string               `json:"id"`
	Etag       string               `json:"etag"`
	Type       string               `json:"type"`
	Properties DelegationProperties `json:"properties"`
}

// DelegationProperties are the properties of a delegation.
type DelegationProperties struct {
	ProvisioningState string   `json:"provisioningState"`
	Service           string   `json:"serviceName"`
	Actions           []string `json:"actions"`
}

// NetworkTag is the entity tag of a state of a virtual network.
func NetworkTag(n *vnet.Network) string { return fmt.Sprintf(`W/"%s-%d"`, n.UID, n.Generation) }

// guid writes a uid, which has 24 digits, as a GUID.
func guid(uid string) string {
	const digits = 24
	if len(uid) < digits {
		return uid
	}
	return uid[:8] + "-" + uid[8:12] + "-4" + uid[12:15] + "-8" + uid[15:18] + "-000000" + uid[18:24]
}

// RenderNetwork makes the answer for one virtual network.
func RenderNetwork(v NetworkView) *Network {
	n := v.Network
	r := &Network{Name: n.Ref.Name, ID: NetworkID(n.Ref), Etag: NetworkTag(n), Type: NetworkType, Location: n.Location, Tags: n.Tags,
		Properties: NetworkProperties{ProvisioningState: string(group.ProvisioningSucceeded), ResourceGUID: guid(n.UID), Policies: "Disabled",
			Subnets: []*Subnet{}, Peerings: []struct{}{}}}
	if r.Tags == nil {
		r.Tags = map[string]string{}
	}
	for _, p := range n.Prefixes {
		r.Properties.AddressSpace.Prefixes = append(r.Properties.AddressSpace.Prefixes, p.String())
	}
	for i := range n.Subnets {
		r.Properties.Subnets = append(r.Properties.Subnets, RenderSubnet(v, &n.Subnets[i]))
	}
	return r
}

// RenderSubnet makes the answer for one subnet of a virtual network.
func RenderSubnet(v NetworkView, s *vnet.Subnet) *Subnet {
	n, id := v.Network, SubnetID(v.Network.Ref, s.Name)
	const kind = NetworkType + "/subnets"
	r := &Subnet{Name: s.Name, ID: id, Etag: NetworkTag(n), Type: kind, Properties: SubnetProperties{
		ProvisioningState: string(group.ProvisioningSucceeded), Delegations: []Delegation{},
		EndpointPolicies: s.EndpointPolicies, ServicePolicies: s.ServicePolicies}}
	if s.AsList {
		r.Properties.Prefixes = []string{s.Prefix.String()}
	} else {
		r.Properties.Prefix = s.Prefix.String()
	}
	for _, ref := range Users(v, s.Prefix) {
		r.Properties.Users = append(r.Properties.Users, Link{ID: ID(ref) + "/ipConfigurations/default"})
	}
	for _, d := range s.Delegations {
		r.Properties.Delegations = append(r.Properties.Delegations, Delegation{Name: d.Name, ID: id + "/delegations/" + d.Name, Etag: r.Etag, Type: kind + "/delegations",
			Properties: DelegationProperties{ProvisioningState: string(group.ProvisioningSucceeded), Service: d.Service, Actions: []string{NetworkType + "/subnets/action"}}})
	}
	return r
}

// Users are the groups that have addresses of a range, in the order of those.
func Users(v NetworkView, p netip.Prefix) []group.Ref {
	at, _ := slices.BinarySearchFunc(v.Used, p.Masked().Addr(), func(u Use, a netip.Addr) int { return u.Addr.Compare(a) })
	var out []group.Ref
	for _, u := range v.Used[at:] {
		if !p.Contains(u.Addr) {
			break
		}
		out = append(out, u.Ref)
	}
	return out
}

// User is the group that has an address.
func User(v NetworkView, a netip.Addr) (group.Ref, bool) {
	users := Users(v, netip.PrefixFrom(a, a.BitLen()))
	if len(users) == 0 {
		return group.Ref{}, false
	}
	return users[0], true
}
