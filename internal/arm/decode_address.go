package arm

import (
	"fmt"
	"net/netip"
	"strings"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/service"
)

// maxServiceName leaves room for the location and the platform's domain behind a service address's name.
const maxServiceName = 180

// maxAffinitySeconds is a day, Kubernetes' bound.
const maxAffinitySeconds = 86_400

// AddressRequest is what a PUT of a service address asks for.
type AddressRequest struct {
	Location string
	Tags     map[string]string
	IP       netip.Addr // invalid: allocate one, or keep the one there is
	Spec     service.Spec
}

// DecodeAddress reads and checks the body of a PUT of the service address with the given name. The error is a
// *fault.Error that lists every fault found; unknown fields are faults.
func DecodeAddress(body []byte, v Version, name string) (*AddressRequest, error) {
	d := &decoder{version: v}
	o := d.parse(body)
	if o == nil {
		return nil, d.err()
	}
	o.ignore("id", "type", "systemData", "etag")
	if s := o.str("name"); s != "" && !strings.EqualFold(s, name) {
		d.fault("", "name", "The field 'name' is '%s', but the address names the service address '%s'. Make them equal or leave it out.", clip(s), name)
	}
	r := &AddressRequest{Location: o.str("location"), Tags: o.tags()}
	props := o.child("properties")
	if props == nil {
		d.fault("", "properties", "The field 'properties' is required.")
	} else {
		d.address(props, r)
	}
	o.done()
	if err := d.err(); err != nil {
		return nil, err
	}
	return r, nil
}

// address reads everything below properties.
func (d *decoder) address(o *object, r *AddressRequest) {
	o.ignore("provisioningState", "uid", "generation", "created", "fqdns", "instanceView")
	s := &r.Spec
	if s.Network = o.network("network"); s.Network == "" {
		s.Network = group.DefaultNetwork
	}
	if text := o.str("address"); text != "" {
		r.IP = d.unicast(o.at("address"), text)
	}
	for i, n := range o.strings("names") {
		if !hostName(n) || len(n) > maxServiceName {
			d.fault("", o.at("names"), "The name '%s' in '%s[%d]' is invalid: at most %d letters, digits, dashes and dots.", clip(n), o.at("names"), i, maxServiceName)
		}
		s.Names = append(s.Names, strings.ToLower(n))
	}
	d.most(o, "names", len(s.Names), service.MaxNames)
	d.servicePorts(o, s)
	d.behind(o, s)
	s.Affinity = service.Affinity(o.choice("affinity", string(service.AffinityNone), string(service.AffinityNone), string(service.AffinityClientIP)))
	n, given := o.integer("affinityTimeoutSeconds", 1, maxAffinitySeconds)
	switch {
	case given && s.Affinity != service.AffinityClientIP:
		d.fault("", o.at("affinityTimeoutSeconds"), "The field '%s' needs the affinity 'ClientIP'.", o.at("affinityTimeoutSeconds"))
	case given:
		s.AffinitySeconds = int(n)
	case s.Affinity == service.AffinityClientIP:
		s.AffinitySeconds = service.DefaultAffinitySeconds
	}
	o.done()
}

func (d *decoder) most(o *object, field string, n, limit int) {
	if n > limit {
		d.fault("", o.at(field), "The field '%s' has %d entries; at most %d are allowed for a service address.", o.at(field), n, limit)
	}
}

// unicast reads an IPv4 address that a packet can be sent to.
func (d *decoder) unicast(path, text string) netip.Addr {
	a, err := netip.ParseAddr(text)
	if err != nil || !a.Is4() {
		d.fault("", path, "The field '%s' must be an IPv4 address, got '%s'.", path, clip(text))
		return netip.Addr{}
	}
	if first := a.As4()[0]; a.IsLoopback() || a.IsLinkLocalUnicast() || first == 0 || first >= 224 {
		d.fault("", path, "The address '%s' in '%s' cannot be used: it is loopback, link-local, multicast or reserved.", a, path)
		return netip.Addr{}
	}
	return a
}

func (d *decoder) servicePorts(o *object, s *service.Spec) {
	names, numbers := map[string]bool{}, map[string]bool{}
	for _, p := range o.list("ports") {
		port := service.Port{Name: p.str("name"), Protocol: p.choice("protocol", "TCP", "TCP", "UDP")}
		number, present := p.integer("port", 1, 65535)
		if !present {
			d.fault("", p.at("port"), "The field '%s' is required.", p.at("port"))
		}
		port.Number = int(number)
		if target, present := p.integer("targetPort", 1, 65535); present && target != number {
			port.Target = int(target)
		}
		if port.Name != "" {
			if why := labelRule(port.Name, 1, true); why != "" {
				d.fault("", p.at("name"), "The port name '%s' in '%s' is invalid: %s.", clip(port.Name), p.at("name"), why)
			}
		}
		if key := fmt.Sprint(port.Number, port.Protocol); numbers[key] {
			d.fault("DuplicatePort", p.at("port"), "The port %d/%s is listed twice in '%s'.", port.Number, port.Protocol, o.at("ports"))
		} else {
			numbers[key] = true
		}
		if names[port.Name] {
			d.fault("DuplicateName", p.at("name"), "The port name '%s' in '%s' is used twice; of several ports each needs a name of its own.", port.Name, p.at("name"))
		}
		names[port.Name] = true
		p.done()
		s.Ports = append(s.Ports, port)
	}
	if len(s.Ports) == 0 {
		d.fault("", o.at("ports"), "The field '%s' must name at least one port.", o.at("ports"))
	}
	d.most(o, "ports", len(s.Ports), service.MaxPorts)
}

// behind reads what is behind the address: a selector of groups, or listed endpoints.
func (d *decoder) behind(o *object, s *service.Spec) {
	s.Selector = o.stringMap("selector")
	listed := o != nil && o.m["endpoints"] != nil
	switch {
	case len(s.Selector) > 0 && listed:
		d.fault("", o.at("endpoints"), "The fields '%s' and '%s' exclude each other: give one.", o.at("selector"), o.at("endpoints"))
	case len(s.Selector) == 0 && !listed:
		d.fault("", o.at("selector"), "One of the fields '%s' (at least one label) and '%s' (a list, which may be empty) is required.", o.at("selector"), o.at("endpoints"))
	}
	d.most(o, "selector", len(s.Selector), maxLabels)
	for _, k := range sortedKeys(s.Selector) {
		if k == "" || len(k) > maxLabelLength || len(s.Selector[k]) > maxTagValue {
			d.fault("", o.at("selector"), "The label '%s' in '%s' is invalid: a name has 1 to %d characters, a value at most %d.", clip(k), o.at("selector"), maxLabelLength, maxTagValue)
		}
	}
	names := map[string]bool{}
	for _, p := range s.Ports {
		names[p.Name] = true
	}
	if listed {
		s.Endpoints = []service.Endpoint{}
	}
	for _, e := range o.list("endpoints") {
		s.Endpoints = append(s.Endpoints, d.endpoint(e, names))
	}
	if most := service.MostEndpoints(len(s.Ports)); len(s.Endpoints) > most {
		d.fault("", o.at("endpoints"), "The field '%s' has %d entries; a service address with %d ports can have %d.", o.at("endpoints"), len(s.Endpoints), len(s.Ports), most)
	}
	if s.PublishNotReady = o.boolean("publishNotReady"); s.PublishNotReady && listed {
		d.fault("", o.at("publishNotReady"), "The field '%s' needs a selector: listed endpoints are ready by definition.", o.at("publishNotReady"))
	}
	s.FromHosts = o.boolean("fromHosts")
	if s.HostEndpoints = o.boolean("hostEndpoints"); s.HostEndpoints && !listed {
		d.fault("", o.at("hostEndpoints"), "The field '%s' needs the field '%s': a selector finds no hosts.", o.at("hostEndpoints"), o.at("endpoints"))
	}
}

func (d *decoder) endpoint(o *object, names map[string]bool) service.Endpoint {
	var e service.Endpoint
	if text := o.required("address"); text != "" {
		e.IP = d.unicast(o.at("address"), text)
	}
	for _, p := range o.list("ports") {
		if e.Ports == nil {
			e.Ports = map[string]int{}
		}
		name := p.str("name")
		number, present := p.integer("port", 1, 65535)
		if !present {
			d.fault("", p.at("port"), "The field '%s' is required.", p.at("port"))
		}
		if !names[name] {
			d.fault("", p.at("name"), "The port name '%s' in '%s' is none of the service address's ports.", clip(name), p.at("name"))
		}
		if _, twice := e.Ports[name]; twice {
			d.fault("DuplicateName", p.at("name"), "The port name '%s' in '%s' is used twice.", clip(name), p.at("name"))
		}
		e.Ports[name] = int(number)
		p.done()
	}
	o.done()
	return e
}
