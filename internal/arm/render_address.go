package arm

import (
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/service"
)

// AddressView is a service address with what is known of it.
type AddressView struct {
	Address *service.Address
	Status  service.Status
}

// Ref names the service address.
func (v AddressView) Ref() group.Ref { return v.Address.Ref }

// Address is a rendered service address, ready for encoding/json.
type Address struct {
	Properties AddressProperties `json:"properties"`
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Type       string            `json:"type"`
	Location   string            `json:"location"`
	Tags       map[string]string `json:"tags"`
}

// AddressProperties are the properties of a service address.
type AddressProperties struct {
	ProvisioningState string            `json:"provisioningState,omitempty"` // read-only
	Network           string            `json:"network,omitempty"`
	Address           string            `json:"address,omitempty"`
	Names             []string          `json:"names,omitempty"`
	FQDNs             []string          `json:"fqdns,omitempty"` // read-only
	Ports             []AddressPort     `json:"ports"`
	Selector          map[string]string `json:"selector,omitempty"`
	Endpoints         *[]Endpoint       `json:"endpoints,omitempty"` // nil: a selector finds them
	Affinity          string            `json:"affinity,omitempty"`
	AffinityTimeout   int               `json:"affinityTimeoutSeconds,omitempty"`
	PublishNotReady   bool              `json:"publishNotReady,omitempty"`
	HostEndpoints     bool              `json:"hostEndpoints,omitempty"`
	FromHosts         bool              `json:"fromHosts,omitempty"`
	UID               string            `json:"uid,omitempty"`        // read-only
	Generation        int64             `json:"generation,omitempty"` // read-only
	Created           string            `json:"created,omitempty"`    // read-only
	InstanceView      *AddressInstances `json:"instanceView,omitempty"`
}

// AddressPort is a port of a service address.
type AddressPort struct {
	Name       string `json:"name,omitempty"`
	Port       int    `json:"port"`
	Protocol   string `json:"protocol,omitempty"`
	TargetPort int    `json:"targetPort,omitempty"`
}

// Endpoint is one listed endpoint.
type Endpoint struct {
	Address string         `json:"address"`
	Ports   []EndpointPort `json:"ports,omitempty"`
}

// EndpointPort is the port of an endpoint behind the service address's port of that name.
type EndpointPort struct {
	Name string `json:"name,omitempty"`
	Port int    `json:"port"`
}

// AddressInstances is what the platform knows now.
type AddressInstances struct {
	ReadyEndpoints int    `json:"readyEndpoints"`
	Reason         string `json:"reason,omitempty"`
}

// RenderAddress makes the answer for one service address.
func RenderAddress(v AddressView) *Address {
	a := v.Address
	s := &a.Spec
	r := &Address{
		ID: AddressID(a.Ref), Name: a.Ref.Name, Type: AddressType, Location: a.Location, Tags: a.Tags,
		Properties: AddressProperties{
			ProvisioningState: string(group.ProvisioningSucceeded), Network: s.Network, Address: a.IP.String(), Names: s.Names,
			FQDNs: AddressNames(a), Selector: s.Selector, Affinity: string(s.Affinity), AffinityTimeout: s.AffinitySeconds,
			PublishNotReady: s.PublishNotReady, HostEndpoints: s.HostEndpoints, FromHosts: s.FromHosts,
			UID: a.UID, Generation: a.Generation, Created: Stamp(a.Created),
			InstanceView: &AddressInstances{ReadyEndpoints: v.Status.Ready, Reason: v.Status.Reason},
		},
	}
	if r.Tags == nil {
		r.Tags = map[string]string{}
	}
	for _, p := range s.Ports {
		r.Properties.Ports = append(r.Properties.Ports, AddressPort{Name: p.Name, Port: p.Number, Protocol: p.Protocol, TargetPort: p.TargetPort()})
	}
	if len(s.Selector) > 0 {
		return r
	}
	list := make([]Endpoint, 0, len(s.Endpoints))
	for _, e := range s.Endpoints {
		w := Endpoint{Address: e.IP.String()}
		for _, name := range sortedKeys(e.Ports) {
			w.Ports = append(w.Ports, EndpointPort{Name: name, Port: e.Ports[name]})
		}
		list = append(list, w)
	}
	r.Properties.Endpoints = &list
	return r
}

// AddressNames are a service address's names in full.
func AddressNames(a *service.Address) []string {
	var out []string
	for _, n := range a.Spec.Names {
		out = append(out, FQDN(n, a.Location))
	}
	return out
}
