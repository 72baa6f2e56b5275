package arm

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/vnet"
)

const subnetOne = "/subscriptions/sub/resourceGroups/rg/providers/Microsoft.Network/virtualNetworks/one/subnets/web"

// TestGoldenNetworks renders what each request under api/golden/virtualNetworks/2024-05-01 asks for, with a group in the first subnet.
// The answer, put back, must mean the same network.
func TestGoldenNetworks(t *testing.T) {
	requests, err := filepath.Glob(filepath.Join(goldenDir, "virtualNetworks", "2024-05-01", "*.request.json"))
	if err != nil || len(requests) == 0 {
		t.Fatalf("no golden requests: %v", err)
	}
	for _, path := range requests {
		name := strings.TrimSuffix(path, ".request.json")
		t.Run(filepath.Base(name), func(t *testing.T) { goldenNetwork(t, name) })
	}
}

func goldenNetwork(t *testing.T, path string) {
	v := DatedVersion("2024-05-01")
	body, err := os.ReadFile(path + ".request.json")
	if err != nil {
		t.Fatal(err)
	}
	req, err := DecodeNetwork(body, v, filepath.Base(path))
	if err != nil {
		t.Fatalf("DecodeNetwork = %v", err)
	}
	owner := group.Ref{Subscription: "00000000-0000-4000-8000-000000000001", ResourceGroup: "demo", Name: filepath.Base(path)}
	n := &vnet.Network{Ref: owner, UID: "0123456789abcdef01234567", Generation: 1, Location: req.Location, Tags: req.Tags,
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Prefixes: req.Prefixes, Subnets: req.Subnets}
	user := owner
	user.Name = "web"
	got := sameAsFile(t, path, RenderNetwork(NetworkView{Network: n, Used: []Use{{vnet.At(n.Subnets[0].Prefix, 0), user}}}))
	again, err := DecodeNetwork(got, v, filepath.Base(path))
	if err != nil {
		t.Fatalf("the answer put back: %v", err)
	}
	a, _ := json.Marshal(req)
	b, _ := json.Marshal(again)
	if !bytes.Equal(a, b) {
		t.Errorf("the answer put back asks for\n%s, not\n%s", b, a)
	}
}

// TestNetworkRefusals: whatever there is none of is refused by its name.
func TestNetworkRefusals(t *testing.T) {
	space := `"addressSpace":{"addressPrefixes":["10.64.128.0/20"]}`
	sub := func(more string) string {
		return `{"properties":{` + space + `,"subnets":[{"name":"web","properties":{"addressPrefix":"10.64.128.0/24"` + more + `}}]}}`
	}
	for body, says := range map[string]string{
		`{}`: "'properties' is required",
		`{"properties":{"addressSpace":{"addressPrefixes":["10.64.128.1/20"]}}}`:                                                                                 "must begin at 10.64.128.0/20",
		`{"properties":{"addressSpace":{"addressPrefixes":["fd00::/64"]}}}`:                                                                                      "IPv4 only",
		`{"properties":{"addressSpace":{"addressPrefixes":["some"]}}}`:                                                                                           "'some'",
		`{"properties":{` + space + `,"virtualNetworkPeerings":[{"name":"x"}]}}`:                                                                                 "no path at all",
		`{"properties":{` + space + `,"ddosProtectionPlan":{"id":"x"}}}`:                                                                                         "'properties.ddosProtectionPlan' cannot be honoured",
		`{"properties":{` + space + `,"enableDdosProtection":true}}`:                                                                                             "'properties.enableDdosProtection' cannot be true",
		`{"properties":{` + space + `,"dhcpOptions":{"dnsServers":["10.0.0.1"]}}}`:                                                                               "'properties.dhcpOptions.dnsServers'",
		`{"properties":{` + space + `,"encryption":{"enabled":true}}}`:                                                                                           "'properties.encryption.enabled'",
		`{"properties":{` + space + `,"flowTimeoutInMinutes":4}}`:                                                                                                "'properties.flowTimeoutInMinutes'",
		`{"properties":{` + space + `,"subnets":[{"name":"-","properties":{"addressPrefix":"10.64.128.0/24"}}]}}`:                                                "subnet name '-'",
		`{"properties":{` + space + `,"subnets":[{"name":"a","properties":{"addressPrefix":"10.64.128.0/30"}}]}}`:                                                "too small",
		`{"properties":{` + space + `,"subnets":[{"name":"a","properties":{}}]}}`:                                                                                "'properties.subnets[0].properties.addressPrefix' is required",
		`{"properties":{` + space + `,"subnets":[{"name":"a","properties":{"addressPrefixes":["10.64.128.0/29","10.64.129.0/29"]}}]}}`:                           "more than one range",
		`{"properties":{` + space + `,"subnets":[{"name":"a","properties":{"addressPrefix":"10.64.128.0/29"}},{"name":"A","properties":{"addressPrefix":""}}]}}`: "used twice",
		sub(`,"networkSecurityGroup":{"id":"x"}`):                                                                                                                "networkSecurityGroup' cannot be honoured",
		sub(`,"natGateway":{"id":"x"}`):                                                                                                                          "natGateway' cannot be honoured",
		sub(`,"routeTable":{"id":"x"}`):                                                                                                                          "routeTable' cannot be honoured",
		sub(`,"serviceEndpoints":[{"service":"Microsoft.Storage"}]`):                                                                                             "serviceEndpoints' cannot be honoured",
		sub(`,"defaultOutboundAccess":false`):                                                                                                                    "defaultOutboundAccess' cannot be false",
		sub(`,"delegations":[{"name":"x","properties":{"serviceName":"Other/x"}}]`):                                                                              "'Other/x'",
		sub(`,"adressPrefix":"x"`): "Did you mean 'addressPrefix'?",
	} {
		_, err := DecodeNetwork([]byte(body), DatedVersion("2024-05-01"), "one")
		if fault.KindOf(err) != fault.Invalid || !strings.Contains(allOf(err), says) {
			t.Errorf("DecodeNetwork(%s) = %v, want a refusal that says %q", body, err, says)
		}
	}
}

// allOf is an error's text with those of its details.
func allOf(err error) string {
	e, ok := err.(*fault.Error)
	if !ok {
		return ""
	}
	out := e.Message
	for _, d := range e.Details {
		out += " " + d.Message
	}
	return out
}

func TestSubnetIDs(t *testing.T) {
	want := &group.Subnet{Network: group.Ref{Subscription: "sub", ResourceGroup: "rg", Name: "one"}, Name: "web"}
	for _, id := range []string{subnetOne, strings.ToLower(subnetOne) + "/", SubnetID(want.Network, "web")} {
		if got, err := ParseSubnetID(id); err != nil || !got.Equal(want) {
			t.Errorf("ParseSubnetID(%s) = %v, %v", id, got, err)
		}
	}
	for _, id := range []string{"", "web", strings.TrimSuffix(subnetOne, "/web"), subnetOne + "/more", strings.Replace(subnetOne, "Network", "Other", 1)} {
		if got, err := ParseSubnetID(id); err == nil {
			t.Errorf("ParseSubnetID(%s) = %v, want an error", id, got)
		}
	}
	for _, name := range []string{"", "-a", "a.", "a b", "a/b", strings.Repeat("a", 81)} {
		if CheckNetworkName("subnet", name) == nil {
			t.Errorf("the name %q is taken", name)
		}
	}
	if err := CheckNetworkName("subnet", "Web_1.x-2_"); err != nil {
		t.Error(err)
	}
}

// TestSubnetOfAGroup: what goes together with a subnet, and what is shown of it.
func TestSubnetOfAGroup(t *testing.T) {
	base := `{"location":"local","properties":{"osType":"Linux","subnetIds":[{"id":"` + subnetOne + `"}],%"containers":[{"name":"main","properties":{"image":"nginx","resources":{"requests":{"cpu":1,"memoryInGB":1}}}}]}}`
	for more, says := range map[string]string{
		`"ipAddress":{"type":"Public","ports":[{"port":80}]},`: "must be 'Private'",
		`"network":"blue",`:   "exclude each other",
		`"hostNetwork":true,`: "cannot go together with 'hostNetwork'",
	} {
		_, err := Decode([]byte(strings.Replace(base, "%", more, 1)), SupersetVersion(), "g")
		if !strings.Contains(allOf(err), says) {
			t.Errorf("with %s: %v, want %q", more, err, says)
		}
	}
	req, err := Decode([]byte(strings.Replace(base, "%", `"ipAddress":{"type":"Private","ports":[{"port":80}]},`, 1)), v2023, "g")
	if err != nil {
		t.Fatal(err)
	}
	g := &group.Group{Ref: group.Ref{Subscription: "sub", ResourceGroup: "rg", Name: "g"}, Spec: req.Spec, Address: netip.MustParseAddr("10.64.128.4")}
	g.Spec.Network = "vnet:1"
	p := Render(View{Group: g}, SupersetVersion(), time.Time{}).Properties
	if p.IPAddress.IP != "10.64.128.4" || len(p.SubnetIDs) != 1 || p.SubnetIDs[0].ID != subnetOne || p.Network != "" {
		t.Errorf("shown: %s, %v, network %q", p.IPAddress.IP, p.SubnetIDs, p.Network)
	}
}

func FuzzNetwork(f *testing.F) {
	for _, name := range []string{"cli", "terraform"} {
		body, err := os.ReadFile(filepath.Join(goldenDir, "virtualNetworks", "2024-05-01", name+".request.json"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(body)
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := DecodeNetwork(body, DatedVersion("2024-05-01"), "one")
		if err != nil {
			return
		}
		n := &vnet.Network{Ref: group.Ref{Subscription: "s", ResourceGroup: "r", Name: "one"}, Prefixes: r.Prefixes, Subnets: r.Subnets, UID: "u"}
		if _, err := json.Marshal(RenderNetwork(NetworkView{Network: n})); err != nil {
			t.Fatal(err)
		}
		_, _ = DecodeSubnet(body, DatedVersion("2024-05-01"), "one")
	})
}
