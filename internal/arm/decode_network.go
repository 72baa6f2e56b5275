package arm

import (
	"net/netip"
	"strings"

	"spillway.dev/spillway/internal/vnet"
)

// NetworkRequest is what a PUT of a virtual network asks for.
type NetworkRequest struct {
	Location string
	Tags     map[string]string
	Prefixes []netip.Prefix // none: a free one is to be found
	// Subnets are all that there shall be; with KeepSubnets those that there are stay.
	Subnets     []vnet.Subnet
	KeepSubnets bool
}

// delegation is the only service that a subnet can be for.
const delegation = GroupType

// Policies of private endpoints, and what Azure says when nobody has.
const (
	endpointPolicies = "Disabled"
	servicePolicies  = "Enabled"
)

// DecodeNetwork reads and checks the body of a PUT of the virtual network with the given name. The error is a
// *fault.Error that lists every fault found; unknown fields are faults.
func DecodeNetwork(body []byte, v Version, name string) (*NetworkRequest, error) {
	d := &decoder{version: v}
	o := d.parse(body)
	if o == nil {
		return nil, d.err()
	}
	o.ignore("id", "type", "etag", "systemData")
	o.sameName("virtual network", name)
	o.refuse("extendedLocation", "", "this platform has no edge zones")
	r := &NetworkRequest{Location: o.str("location"), Tags: o.tags(), KeepSubnets: true}
	props := o.child("properties")
	if props == nil {
		d.fault("", "properties", "The field 'properties' is required.")
	} else {
		d.network(props, r)
	}
	o.done()
	return r, d.err()
}

// sameName checks a name in a body against the one in the address.
func (o *object) sameName(what, name string) {
	if s := o.str("name"); s != "" && !strings.EqualFold(s, name) {
		o.d.fault("", o.at("name"), "The field '%s' is '%s', but the address names the %s '%s'. Make them equal or leave it out.", o.at("name"), clip(s), what, name)
	}
}

// network reads everything below properties.
func (d *decoder) network(o *object, r *NetworkRequest) {
	o.ignore("provisioningState", "resourceGuid", "defaultPublicNatGateway", "flowLogs")
	space := o.child("addressSpace")
	for i, text := range space.strings("addressPrefixes") {
		if p, ok := d.prefix("InvalidAddressPrefixFormat", space.at("addressPrefixes"), text); ok {
			r.Prefixes = append(r.Prefixes, p)
		}
		if i == vnet.MaxPrefixes {
			d.fault("", space.at("addressPrefixes"), "The field '%s' has more than %d entries.", space.at("addressPrefixes"), vnet.MaxPrefixes)
			break
		}
	}
	space.refuse("ipamPoolPrefixAllocations", "", "this platform has no address pools")
	space.done()
	d.networkRefusals(o)
	if o.m["subnets"] != nil {
		r.KeepSubnets = false
	}
	names := map[string]bool{}
	list := o.list("subnets")
	if len(list) > vnet.MaxSubnets {
		d.fault("", o.at("subnets"), "The field '%s' has %d entries; a virtual network has at most %d subnets.", o.at("subnets"), len(list), vnet.MaxSubnets)
		list = nil
	}
	for _, e := range list {
		name := e.required("name")
		if err := CheckNetworkName("subnet", name); name != "" && err != nil {
			d.fault("InvalidResourceName", e.at("name"), "%s", err.Error())
		}
		if names[strings.ToLower(name)] {
			d.fault("DuplicateName", e.at("name"), "The subnet name '%s' is used twice.", clip(name))
		}
		names[strings.ToLower(name)] = true
		r.Subnets = append(r.Subnets, d.subnet(e, name))
	}
	o.done()
}

// networkRefusals are the parts of Azure's virtual networks that there are none of here; each says why.
func (d *decoder) networkRefusals(o *object) {
	o.refuse("virtualNetworkPeerings", "", "networks of this platform have no peerings: there is no path at all between two of them")
	o.refuse("bgpCommunities", "", "this platform speaks no BGP")
	o.refuse("ddosProtectionPlan", "", "this platform has no protection plans")
	o.refuse("ipAllocations", "", "this platform has no address pools")
	o.refuse("flowTimeoutInMinutes", "", "the time-outs of connections are the hosts'")
	o.refuseTrue("enableDdosProtection", "this platform has no protection plans")
	o.refuseTrue("enableVmProtection", "this platform has no machine protection")
	o.accept("privateEndpointVNetPolicies", "this platform has no private endpoints", "Disabled")
	dns := o.child("dhcpOptions")
	dns.refuse("dnsServers", "", "groups ask the platform's name server; a group's own is its field 'dnsConfig'")
	dns.done()
	encryption := o.child("encryption")
	encryption.refuseTrue("enabled", "packets between hosts are not encrypted")
	encryption.ignore("enforcement")
	encryption.done()
}

// refuseTrue reports a switch that cannot be turned on.
func (o *object) refuseTrue(name, why string) {
	if o.boolean(name) {
		o.d.fault("", o.at(name), "The field '%s' cannot be true: %s.", o.at(name), why)
	}
}

// accept takes only the words that change nothing.
func (o *object) accept(name, why string, words ...string) {
	s := o.str(name)
	for _, w := range words {
		if strings.EqualFold(s, w) {
			return
		}
	}
	if s != "" {
		o.d.fault("", o.at(name), "The field '%s' cannot be '%s': %s.", o.at(name), clip(s), why)
	}
}

// DecodeSubnet reads and checks the body of a PUT of the subnet with the given name.
func DecodeSubnet(body []byte, v Version, name string) (*vnet.Subnet, error) {
	d := &decoder{version: v}
	o := d.parse(body)
	if o == nil {
		return nil, d.err()
	}
	o.sameName("subnet", name)
	s := d.subnet(o, name)
	return &s, d.err()
}

func (d *decoder) subnet(o *object, name string) vnet.Subnet {
	s := vnet.Subnet{Name: name}
	o.ignore("id", "type", "etag", "name")
	if props := o.child("properties"); props != nil {
		d.subnetProperties(props, &s)
	} else {
		d.fault("", o.at("properties"), "The field '%s' is required.", o.at("properties"))
	}
	o.done()
	return s
}

func (d *decoder) subnetProperties(o *object, s *vnet.Subnet) {
	o.ignore("provisioningState", "purpose", "ipConfigurations", "ipConfigurationProfiles", "privateEndpoints", "resourceNavigationLinks", "serviceAssociationLinks")
	field, text := o.at("addressPrefix"), o.str("addressPrefix")
	if list := o.strings("addressPrefixes"); len(list) > 0 {
		if len(list) > 1 || text != "" && text != list[0] {
			d.fault("", o.at("addressPrefixes"), "The field '%s' names more than one range; a subnet of this platform has one.", o.at("addressPrefixes"))
		}
		field, text, s.AsList = o.at("addressPrefixes"), list[0], true
	}
	if p, ok := d.prefix("InvalidAddressPrefixFormat", field, text); ok {
		if s.Prefix = p; p.Bits() > vnet.MostBits {
			d.fault("NetcfgInvalidSubnet", field, "The range '%s' in '%s' is too small: %d addresses of a subnet are reserved, so it has at most %d bits.", p, field, vnet.Reserved, vnet.MostBits)
		}
	}
	d.subnetRefusals(o)
	s.EndpointPolicies = o.choice("privateEndpointNetworkPolicies", endpointPolicies, "Disabled", "Enabled", "NetworkSecurityGroupEnabled", "RouteTableEnabled")
	s.ServicePolicies = o.choice("privateLinkServiceNetworkPolicies", servicePolicies, "Disabled", "Enabled")
	for _, e := range o.list("delegations") {
		e.ignore("id", "type", "etag")
		props := e.child("properties")
		x := vnet.Delegation{Name: e.str("name"), Service: props.str("serviceName")}
		if !strings.EqualFold(x.Service, delegation) {
			d.fault("", e.at("properties.serviceName"), "The field '%s' cannot be '%s': a subnet of this platform can be for '%s' only.", e.at("properties.serviceName"), clip(x.Service), delegation)
		}
		x.Service = delegation
		props.ignore("actions", "provisioningState")
		props.done()
		e.done()
		s.Delegations = append(s.Delegations, x)
	}
	if len(s.Delegations) > 1 {
		d.fault("", o.at("delegations"), "The field '%s' has %d entries; a subnet has at most one.", o.at("delegations"), len(s.Delegations))
	}
	o.done()
}

// subnetRefusals are the parts of Azure's subnets that there are none of here.
func (d *decoder) subnetRefusals(o *object) {
	o.refuse("networkSecurityGroup", "", "this platform has no security groups: groups of one network reach each other, and nobody else reaches them")
	o.refuse("routeTable", "", "this platform has no route tables")
	o.refuse("natGateway", "", "this platform has no NAT gateways: groups reach the outside by the address of their host")
	o.refuse("serviceEndpoints", "", "this platform has no service endpoints")
	o.refuse("serviceEndpointPolicies", "", "this platform has no service endpoints")
	o.refuse("serviceGateway", "", "this platform has no service gateways")
	o.refuse("applicationGatewayIPConfigurations", "", "this platform has no application gateways")
	o.refuse("ipAllocations", "", "this platform has no address pools")
	o.refuse("ipamPoolPrefixAllocations", "", "this platform has no address pools")
	o.refuse("sharingScope", "", "subnets are their subscription's own")
	if v, given := o.m["defaultOutboundAccess"].(bool); given && !v {
		d.fault("", o.at("defaultOutboundAccess"), "The field '%s' cannot be false: groups of every subnet reach the outside by the address of their host.", o.at("defaultOutboundAccess"))
	}
	o.boolean("defaultOutboundAccess")
}

// prefix reads an IPv4 range.
func (d *decoder) prefix(code, path, text string) (netip.Prefix, bool) {
	if text == "" {
		d.fault("", path, "The field '%s' is required.", path)
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(text)
	switch {
	case err != nil:
		d.fault(code, path, "The field '%s' must be a range such as 10.64.128.0/24, got '%s'.", path, clip(text))
	case !p.Addr().Is4():
		d.fault(code, path, "The range '%s' in '%s' cannot be honoured: this platform has IPv4 only.", p, path)
	case p != p.Masked():
		d.fault("InvalidCIDRNotation", path, "The range '%s' in '%s' has bits behind its prefix. It must begin at %s.", p, path, p.Masked())
	default:
		return p, true
	}
	return netip.Prefix{}, false
}

// DecodeTags reads the body of a PATCH of a virtual network: its tags.
func DecodeTags(body []byte, v Version) (map[string]string, error) {
	d := &decoder{version: v}
	o := d.parse(body)
	if o == nil {
		return nil, d.err()
	}
	tags := o.tags()
	o.done()
	return tags, d.err()
}
