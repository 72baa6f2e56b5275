package arm

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/service"
)

var sameAddr = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

// TestGoldenAddresses does for service addresses what TestGolden does for groups.
func TestGoldenAddresses(t *testing.T) {
	requests, err := filepath.Glob(filepath.Join(goldenDir, Superset, "addresses", "*.request.json"))
	if err != nil || len(requests) == 0 {
		t.Fatalf("no golden requests: %v", err)
	}
	for _, path := range requests {
		name := strings.TrimSuffix(path, ".request.json")
		t.Run(filepath.Base(name), func(t *testing.T) { goldenAddress(t, name) })
	}
}

func goldenAddress(t *testing.T, path string) {
	name := filepath.Base(path)
	body, err := os.ReadFile(path + ".request.json")
	if err != nil {
		t.Fatal(err)
	}
	req, err := DecodeAddress(body, vOwn, name)
	if err != nil {
		t.Fatalf("DecodeAddress = %v", err)
	}
	a := &service.Address{Ref: group.Ref{Subscription: "00000000-0000-4000-8000-000000000001", ResourceGroup: "demo", Name: name},
		UID: "0123456789abcdef01234567", Generation: 1, Location: req.Location, Tags: req.Tags,
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), IP: req.IP, Spec: req.Spec}
	if !a.IP.IsValid() {
		a.IP = netip.MustParseAddr("100.64.0.1")
	}
	got := sameAsFile(t, path, RenderAddress(AddressView{Address: a, Status: service.Status{Ready: 2}}))
	again, err := DecodeAddress(got, vOwn, name)
	if err != nil {
		t.Fatalf("DecodeAddress(answer) = %v", err)
	}
	again.IP = req.IP // the answer shows the address in use
	if req.Tags == nil {
		again.Tags = nil
	}
	if diff := cmp.Diff(req, again, sameAddr); diff != "" {
		t.Errorf("the answer put back means another service address (-want +got):\n%s", diff)
	}
}

func TestDecodeAddressRefuses(t *testing.T) {
	const listed = `"endpoints":[{"address":"10.1.2.3"}]`
	tests := []struct{ name, props, target, text string }{
		{"no ports", `"selector":{"a":"b"}`, "properties.ports", "must name at least one port"},
		{"neither", `"ports":[{"port":1}]`, "properties.selector", "One of the fields"},
		{"empty selector", `"ports":[{"port":1}],"selector":{}`, "properties.selector", "One of the fields"},
		{"both", `"ports":[{"port":1}],"selector":{"a":"b"},` + listed, "properties.endpoints", "exclude each other"},
		{"port 0", `"ports":[{"port":0}],` + listed, "properties.ports[0].port", "from 1 to 65535, got 0"},
		{"port missing", `"ports":[{"targetPort":1}],` + listed, "properties.ports[0].port", "is required"},
		{"protocol", `"ports":[{"port":1,"protocol":"SCTP"}],` + listed, "properties.ports[0].protocol", "got 'SCTP'"},
		{"port twice", `"ports":[{"name":"a","port":1},{"name":"b","port":1}],` + listed, "properties.ports[1].port", "1/TCP is listed twice"},
		{"unnamed ports", `"ports":[{"port":1},{"port":2}],` + listed, "properties.ports[1].name", "name of its own"},
		{"port name", `"ports":[{"name":"A b","port":1}],` + listed, "properties.ports[0].name", "'A b'"},
		{"IPv6", `"address":"::1","ports":[{"port":1}],` + listed, "properties.address", "IPv4 address, got '::1'"},
		{"loopback", `"address":"127.0.0.1","ports":[{"port":1}],` + listed, "properties.address", "loopback"},
		{"metadata endpoint", `"ports":[{"port":1}],"endpoints":[{"address":"169.254.169.254"}]`, "properties.endpoints[0].address", "link-local"},
		{"multicast endpoint", `"ports":[{"port":1}],"endpoints":[{"address":"224.0.0.1"}]`, "properties.endpoints[0].address", "multicast"},
		{"no endpoint address", `"ports":[{"port":1}],"endpoints":[{}]`, "properties.endpoints[0].address", "is required"},
		{"endpoint port", `"ports":[{"name":"a","port":1}],"endpoints":[{"address":"10.1.2.3","ports":[{"name":"b","port":1}]}]`, "properties.endpoints[0].ports[0].name", "'b'"},
		{"name", `"names":["-a"],"ports":[{"port":1}],` + listed, "properties.names", "'-a'"},
		{"network", `"network":"Blue","ports":[{"port":1}],` + listed, "properties.network", "'Blue'"},
		{"affinity", `"affinity":"Cookie","ports":[{"port":1}],` + listed, "properties.affinity", "got 'Cookie'"},
		{"timeout alone", `"affinityTimeoutSeconds":5,"ports":[{"port":1}],` + listed, "properties.affinityTimeoutSeconds", "needs the affinity"},
		{"not ready", `"publishNotReady":true,"ports":[{"port":1}],` + listed, "properties.publishNotReady", "needs a selector"},
		{"hosts", `"hostEndpoints":true,"ports":[{"port":1}],"selector":{"a":"b"}`, "properties.hostEndpoints", "needs the field"},
		{"unknown", `"adress":"10.0.0.1","ports":[{"port":1}],` + listed, "properties.adress", "Did you mean 'address'?"},
		{"endpoints", `"ports":[{"name":"a","port":1},{"name":"b","port":2},{"name":"c","port":3},{"name":"d","port":4},{"name":"e","port":5}],"endpoints":[` +
			strings.Repeat(`{"address":"10.1.2.3"},`, 819) + `{"address":"10.1.2.3"}]`, "properties.endpoints", "820 entries; a service address with 5 ports can have 819"},
		{"names", `"names":["a","a","a","a","a","a","a","a","a","a","a","a","a","a","a","a","a"],"ports":[{"port":1}],` + listed, "properties.names", "17 entries; at most 16"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := DecodeAddress([]byte(`{"properties":{`+tt.props+`}}`), vOwn, "x")
			f, ok := err.(*fault.Error)
			if !ok || f.Kind != fault.Invalid || f.Target != tt.target || !strings.Contains(f.Error(), tt.text) {
				t.Errorf("DecodeAddress = %v, want a fault of %s with %q", err, tt.target, tt.text)
			}
		})
	}
}

func FuzzDecodeAddress(f *testing.F) {
	f.Add([]byte(`{"properties":{"ports":[{"port":80}],"endpoints":[{"address":"10.1.2.3","ports":[{"port":1}]}]}}`))
	f.Add([]byte(`{"properties":{"network":"a","address":"10.0.0.1","ports":[{"port":80}],"selector":{"a":"b"},"affinity":"ClientIP"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		req, err := DecodeAddress(body, vOwn, "x")
		if err != nil {
			return
		}
		if len(req.Spec.Ports) == 0 || req.Spec.Network == "" || len(req.Spec.Selector) > 0 && req.Spec.Endpoints != nil {
			t.Errorf("DecodeAddress took %+v", req.Spec)
		}
	})
}
