package arm

import (
	"net/netip"
	"strings"

	"spillway.dev/spillway/internal/group"
)

// Request is what a PUT of a container group asks for.
type Request struct {
	Location string
	Tags     map[string]string
	Zones    []string
	Spec     group.Spec
	// Live: changed files of config maps and secrets reach a running group without a restart. Azure restarts it.
	Live bool
}

// Decode reads and checks the body of a PUT of the group with the given name. The error is a *fault.Error that lists
// every fault found; unknown fields are faults.
func Decode(body []byte, v Version, name string) (*Request, error) {
	d := &decoder{version: v, group: name}
	o := d.parse(body)
	if o == nil {
		return nil, d.err()
	}
	r := d.request(o)
	if len(d.faults) == 0 {
		d.validate(r)
	}
	if err := d.err(); err != nil {
		return nil, err
	}
	return r, nil
}

func (d *decoder) request(o *object) *Request {
	o.ignore("id", "type", "systemData", "etag")
	if s := o.str("name"); s != "" && !strings.EqualFold(s, d.group) {
		d.fault("", "name", "The field 'name' is '%s', but the address names the group '%s'. Make them equal or leave it out.", clip(s), d.group)
	}
	r := &Request{Live: d.version.Superset, Location: o.str("location"), Tags: o.tags(), Zones: o.strings("zones")}
	if len(r.Zones) > 1 {
		d.fault("", "zones", "The field 'zones' may name one zone, got %d.", len(r.Zones))
	}
	d.identity(o)
	props := o.child("properties")
	if props == nil {
		d.fault("", "properties", "The field 'properties' is required.")
	} else {
		d.spec(props, &r.Spec)
	}
	o.done()
	return r
}

func (d *decoder) identity(o *object) {
	id := o.child("identity")
	if id == nil {
		return
	}
	if kind := id.str("type"); kind != "" && !strings.EqualFold(kind, "None") {
		d.fault("", "identity.type", "The identity type '%s' cannot be honoured: this platform has no managed identities. Use None or remove the field 'identity'.", clip(kind))
	}
	id.ignore("principalId", "tenantId", "userAssignedIdentities")
	id.done()
}

// spec reads everything below properties.
func (d *decoder) spec(o *object, s *group.Spec) {
	o.ignore("provisioningState", "instanceView", "provisioningTimeoutInSeconds", "isCustomProvisioningTimeout",
		"isCreatedFromStandbyPool", "orchestratorId")
	for _, c := range o.list("containers") {
		s.Containers = append(s.Containers, d.container(c, false))
	}
	for _, c := range o.list("initContainers") {
		s.InitContainers = append(s.InitContainers, d.container(c, true))
	}
	for _, v := range o.list("volumes") {
		s.Volumes = append(s.Volumes, d.volume(v))
	}
	for _, c := range o.list("imageRegistryCredentials") {
		s.Credentials = append(s.Credentials, d.credential(c))
	}
	s.RestartPolicy = group.RestartPolicy(o.choice("restartPolicy", string(group.RestartAlways),
		string(group.RestartAlways), string(group.RestartOnFailure), string(group.RestartNever)))
	d.platform(o)
	s.IP = d.ipAddress(o.child("ipAddress"))
	s.DNS = d.dnsConfig(o.child("dnsConfig"))
	s.Subnet = d.subnetOf(o)
	s.Priority = o.choice("priority", "", "Regular", "Spot")
	s.SKU = "Standard"
	d.refusals(o)
	d.own(o, s)
	o.done()
}

// platform checks the operating system and the sku.
func (d *decoder) platform(o *object) {
	switch os := o.str("osType"); {
	case os == "" && !d.version.Superset:
		d.fault("", o.at("osType"), "The field '%s' is required; this platform runs Linux.", o.at("osType"))
	case os != "" && !strings.EqualFold(os, "Linux"):
		d.fault("", o.at("osType"), "The operating system '%s' cannot be honoured: this platform runs Linux containers only.", clip(os))
	}
	switch sku := o.str("sku"); {
	case strings.EqualFold(sku, "Confidential"):
		d.fault("ConfidentialContainerGroupSkuIsNotSupported", o.at("sku"), "The sku 'Confidential' is not supported: no host of this platform has confidential computing. Use 'Standard'.")
	case sku != "" && !strings.EqualFold(sku, "Standard") && !strings.EqualFold(sku, "NotSpecified"):
		d.fault("", o.at("sku"), "The sku '%s' is not supported. Use 'Standard'.", clip(sku))
	}
}

// refusals are the fields of Azure's model that cannot be honoured here; each says why.
func (d *decoder) refusals(o *object) {
	o.refuse("diagnostics", "", "this platform has no log analytics workspace; read logs with the logs call")
	o.refuse("networkProfile", "", "this platform has no network profiles; name the subnet itself in the field 'subnetIds'")
	o.refuse("encryptionProperties", "", "records are encrypted with the platform's own key")
	o.refuse("confidentialComputeProperties", "ConfidentialContainerGroupSkuIsNotSupported", "no host of this platform has confidential computing")
	o.refuse("extensions", "", "the platform has no extensions; the virtual node is an ordinary client")
	o.refuse(o.since(v2025, "containerGroupProfile"), "", "container group profiles are not available")
	o.refuse(o.since(v2025, "standbyPoolProfile"), "", "standby pools are not available; every host keeps parked sandboxes instead")
	o.refuse(o.since(v2025, "identityAcls"), "", "this platform has no managed identities")
	o.refuse(o.since(v2025, "secretReferences"), "", "this platform has no key vault; give the value itself")
}

// own reads the group's fields that only Spillway's api-version has.
func (d *decoder) own(o *object, s *group.Spec) {
	o.ignore(o.since(vOwn, "uid"), o.since(vOwn, "epoch"), o.since(vOwn, "generation"), o.since(vOwn, "host"), o.since(vOwn, "desired"), o.since(vOwn, "created"))
	s.Labels = o.stringMap(o.since(vOwn, "labels"))
	if len(s.Labels) > maxLabels {
		d.fault("", o.at("labels"), "The field '%s' has %d labels; at most %d are allowed.", o.at("labels"), len(s.Labels), maxLabels)
	}
	for _, k := range sortedKeys(s.Labels) {
		if k == "" || len(k) > maxLabelLength || len(s.Labels[k]) > maxTagValue {
			d.fault("", o.at("labels"), "The label '%s' is invalid: a name has 1 to %d characters, a value at most %d.", clip(k), maxLabelLength, maxTagValue)
		}
	}
	s.FSGroup = o.id(o.since(vOwn, "fsGroup"))
	s.Placeholder = o.str(o.since(vOwn, "addressPlaceholder"))
	if len(s.Placeholder) > maxPath || s.Placeholder != "" && len(s.Placeholder) < minPlaceholder {
		d.fault("", o.at("addressPlaceholder"), "The field '%s' must have from %d to %d characters.", o.at("addressPlaceholder"), minPlaceholder, maxPath)
	}
	if o.since(vOwn, "ephemeralContainers") != "" {
		s.Ephemeral = d.ephemeral(o)
	}
	s.Isolation = group.Isolation(o.pick(vOwn, "isolation", string(group.IsolationShared), string(group.IsolationGVisor)))
	for _, a := range o.list(o.since(vOwn, "hostAliases")) {
		s.HostAliases = append(s.HostAliases, d.hostAlias(a, s.Placeholder))
	}
	s.Hostname = o.str(o.since(vOwn, "hostname"))
	if s.Hostname != "" && (!hostName(s.Hostname) || len(s.Hostname) > maxName+1) {
		d.fault("", o.at("hostname"), "The host name '%s' is invalid: at most %d letters, digits, dashes and dots.", clip(s.Hostname), maxName+1)
	}
	s.Sysctls = o.stringMap(o.since(vOwn, "sysctls"))
	for _, k := range sortedKeys(s.Sysctls) {
		d.sysctl(o.at("sysctls"), k, s.Sysctls[k])
	}
	s.ShareProcesses = o.boolean(o.since(vOwn, "shareProcessNamespace"))
	if n, ok := o.integer(o.since(vOwn, "terminationGracePeriodSeconds"), 0, group.MaxGraceSeconds); ok {
		grace := int(n)
		s.GraceSeconds = &grace
	}
	s.EphemeralStorage = o.bytes(o.since(vOwn, "ephemeralStorageInGB"), maxStorageGB)
	if s.Network = o.network(o.since(vOwn, "network")); s.Network == group.DefaultNetwork {
		s.Network = "" // named or not, it is the same network
	}
	d.hostAccess(o, s)
	s.Placement = d.placement(o.child(o.since(vOwn, "placement")))
	s.Failover = group.Failover(o.pick(vOwn, "failover", string(group.FailoverFenced)))
}

// subnetOf reads the subnet that a group joins.
func (d *decoder) subnetOf(o *object) *group.Subnet {
	var s *group.Subnet
	list := o.list("subnetIds")
	if len(list) > 1 {
		d.fault("", o.at("subnetIds"), "The field '%s' names %d subnets; a container group joins one.", o.at("subnetIds"), len(list))
	}
	for _, e := range list {
		label := e.str("name")
		if id := e.required("id"); id != "" {
			parsed, err := ParseSubnetID(id)
			if err != nil {
				d.fault("InvalidResourceId", e.at("id"), "%s", err.Error())
			} else if s = parsed; label != "" {
				s.Label = label
			}
		}
		e.done()
	}
	return s
}

// minPlaceholder keeps a placeholder from standing for what occurs by chance.
const minPlaceholder = 8

// ephemeral reads the containers that are added to a running group.
func (d *decoder) ephemeral(o *object) []group.Container {
	var out []group.Container
	for _, c := range o.list("ephemeralContainers") {
		out = append(out, d.container(c, true))
		if last := &out[len(out)-1]; last.Sidecar || last.Liveness != nil || last.Readiness != nil || last.Startup != nil || len(last.Ports) > 0 {
			d.fault("", c.path, "The ephemeral container '%s' has probes, ports or a restart policy, which only other containers have.", clip(last.Name))
		}
	}
	return out
}

// pick is choice for a field that older api-versions lack; "" when absent.
func (o *object) pick(since Version, name string, words ...string) string {
	if o.since(since, name) == "" {
		return ""
	}
	return o.choice(name, "", words...)
}

// network reads the name of a virtual network.
func (o *object) network(field string) string {
	name := o.str(field)
	if name == "" {
		return ""
	}
	if why := labelRule(name, 1, true); why != "" {
		o.d.fault("", o.at(field), "The network name '%s' in '%s' is invalid: %s.", clip(name), o.at(field), why)
	}
	return name
}

// hostAlias reads a line of /etc/hosts; its address may be the group's own, by its placeholder.
func (d *decoder) hostAlias(o *object, placeholder string) group.HostAlias {
	a := group.HostAlias{IP: o.required("ip"), Names: o.strings("hostnames")}
	if _, err := netip.ParseAddr(a.IP); a.IP != "" && a.IP != placeholder && err != nil {
		d.fault("", o.at("ip"), "The field '%s' must be an IP address, got '%s'.", o.at("ip"), clip(a.IP))
	}
	if len(a.Names) == 0 {
		d.fault("", o.at("hostnames"), "The field '%s' must name at least one host.", o.at("hostnames"))
	}
	for _, n := range a.Names {
		if !hostName(n) {
			d.fault("", o.at("hostnames"), "The host name '%s' in '%s' is invalid.", clip(n), o.at("hostnames"))
		}
	}
	o.done()
	return a
}

func (d *decoder) credential(o *object) group.RegistryCredential {
	c := group.RegistryCredential{Server: o.required("server"), Username: o.str("username"), Password: o.str("password")}
	if strings.ContainsAny(c.Server, " \t\r\n@") || len(c.Server) > 253 {
		d.fault("", o.at("server"), "The registry server '%s' is invalid: give a host name with an optional port.", clip(c.Server))
	}
	o.refuse("identity", "InvalidImageRegistryIdentity", "this platform has no managed identities; give username and password")
	o.refuse("identityUrl", "InvalidImageRegistryIdentity", "this platform has no managed identities; give username and password")
	o.refuse(o.since(v2025, "passwordReference"), "", "this platform has no key vault; give the password itself")
	o.done()
	return c
}

func (d *decoder) dnsConfig(o *object) *group.DNSConfig {
	if o == nil {
		return nil
	}
	c := &group.DNSConfig{Servers: o.strings("nameServers"), Search: strings.Fields(o.str("searchDomains")), Options: strings.Fields(o.str("options"))}
	if len(c.Servers) == 0 {
		d.fault("", o.at("nameServers"), "The field '%s' must name at least one server.", o.at("nameServers"))
	}
	for _, s := range c.Servers {
		if _, err := netip.ParseAddr(s); err != nil {
			d.fault("", o.at("nameServers"), "The name server '%s' in '%s' is not an IP address.", clip(s), o.at("nameServers"))
		}
	}
	o.done()
	return c
}

func (d *decoder) ipAddress(o *object) *group.IPAddress {
	if o == nil {
		return nil
	}
	ip := &group.IPAddress{DNSLabel: o.str("dnsNameLabel"), Requested: o.str("ip"), Ports: d.ports(o)}
	ip.Public = d.addressType(o)
	ip.LabelScope = o.choice("autoGeneratedDomainNameLabelScope", "", "Unsecure", "TenantReuse", "SubscriptionReuse", "ResourceGroupReuse", "Noreuse")
	o.ignore("fqdn")
	if len(ip.Ports) == 0 {
		d.fault("", o.at("ports"), "The field '%s' must name at least one port.", o.at("ports"))
	}
	if len(ip.Ports) > group.MaxPorts {
		d.fault("", o.at("ports"), "The field '%s' has %d ports; at most %d are allowed for an IP address.", o.at("ports"), len(ip.Ports), group.MaxPorts)
	}
	if _, err := netip.ParseAddr(ip.Requested); ip.Requested != "" && err != nil {
		d.fault("", o.at("ip"), "The field '%s' must be an IP address, got '%s'.", o.at("ip"), clip(ip.Requested))
	}
	if ip.DNSLabel != "" {
		if why := labelRule(strings.ToLower(ip.DNSLabel), minDNSLabel, true); why != "" {
			d.fault("InvalidDnsNameLabel", o.at("dnsNameLabel"), "The DNS name label '%s' is invalid: %s.", clip(ip.DNSLabel), why)
		}
		if !ip.Public {
			d.fault("", o.at("dnsNameLabel"), "The field '%s' needs an IP address of type 'Public'.", o.at("dnsNameLabel"))
		}
	}
	o.done()
	return ip
}

func (d *decoder) addressType(o *object) bool {
	before := len(d.faults)
	kind := o.choice("type", "", "Public", "Private")
	if kind == "" && len(d.faults) == before {
		d.fault("", o.at("type"), "The field '%s' is required: Public or Private.", o.at("type"))
	}
	return kind == "Public"
}

// ports reads the field ports of a container or an address.
func (d *decoder) ports(o *object) []group.Port {
	var out []group.Port
	for _, p := range o.list("ports") {
		n, present := p.integer("port", 1, 65535)
		if !present {
			d.fault("", p.at("port"), "The field '%s' is required.", p.at("port"))
		}
		out = append(out, group.Port{Number: int(n), Protocol: p.choice("protocol", "TCP", "TCP", "UDP")})
		p.done()
	}
	return out
}
