package httpapi_test

import (
	"fmt"
	"strings"
	"testing"

	"spillway.dev/spillway/internal/httpapi"
	"spillway.dev/spillway/internal/identity"
)

const networkDate = "2024-05-01"

func (w *world) networkPath(name string) string {
	return strings.Replace(w.groupPath(name), "Microsoft.ContainerInstance/containerGroups", "Microsoft.Network/virtualNetworks", 1)
}

// networkBody is a virtual network with a subnet "web".
func networkBody(space, subnet string) map[string]any {
	return map[string]any{"location": "local", "properties": map[string]any{
		"addressSpace": map[string]any{"addressPrefixes": []any{space}},
		"subnets":      []any{map[string]any{"name": "web", "properties": map[string]any{"addressPrefix": subnet}}},
	}}
}

// inSubnet is a small group in a subnet.
func inSubnet(id string) map[string]any {
	b := body()
	p := b["properties"].(map[string]any)
	p["subnetIds"] = []any{map[string]any{"id": id}}
	p["ipAddress"] = map[string]any{"type": "Private", "ports": []any{map[string]any{"port": 80}}}
	return b
}

func TestVirtualNetworkLife(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	path := w.networkPath("one")
	a := w.call("PUT", path, networkDate, networkBody("10.0.128.0/20", "10.0.128.0/29"))
	if a.status != 201 || at(a.body, "properties", "provisioningState") != "Succeeded" || at(a.body, "properties", "subnets", 0, "id") != path+"/subnets/web" {
		t.Fatalf("create: %d %s", a.status, a.text)
	}
	if again := w.call("PUT", path, networkDate, a.body); again.status != 200 || again.text != a.text {
		t.Errorf("the answer put back: %d %s, want 200 and no change", again.status, again.text)
	}
	for _, date := range []string{"2015-06-15", "2022-01-01", "2025-05-01"} {
		if got := w.call("GET", strings.ToUpper(path), date, nil); got.status != 200 || got.text != a.text {
			t.Errorf("GET of %s: %d %s", date, got.status, got.text)
		}
	}
	s := w.call("PUT", path+"/subnets/data", networkDate, map[string]any{"name": "data", "properties": map[string]any{"addressPrefixes": []any{"10.0.129.0/24"}}})
	if s.status != 201 || at(s.body, "properties", "addressPrefixes", 0) != "10.0.129.0/24" || at(s.body, "properties", "addressPrefix") != nil {
		t.Errorf("a subnet: %d %s", s.status, s.text)
	}
	if list := w.call("GET", path+"/subnets", networkDate, nil); list.status != 200 || at(list.body, "value", 1, "name") != "data" {
		t.Errorf("subnets: %d %s", list.status, list.text)
	}
	if tags := w.call("PATCH", path, networkDate, map[string]any{"tags": map[string]any{"a": "b"}}); tags.status != 200 || at(tags.body, "tags", "a") != "b" || at(tags.body, "properties", "subnets", 1, "name") != "data" {
		t.Errorf("PATCH: %d %s", tags.status, tags.text)
	}
	for _, list := range []string{strings.TrimSuffix(path, "/one"), "/subscriptions/" + w.config.SubscriptionID + "/providers/Microsoft.Network/virtualNetworks"} {
		if got := w.call("GET", list, networkDate, nil); got.status != 200 || at(got.body, "value", 0, "name") != "one" {
			t.Errorf("%s: %d %s", list, got.status, got.text)
		}
	}
	if got := w.call("GET", "/subscriptions/"+w.config.SubscriptionID+"/providers/Microsoft.Network", "2021-04-01", nil); !strings.Contains(got.text, `"virtualNetworks"`) || !strings.Contains(got.text, "Registered") {
		t.Errorf("the provider: %s", got.text)
	}
	for _, gone := range []string{path + "/subnets/data", path} {
		for _, want := range []int{200, 204} {
			if got := w.call("DELETE", gone, networkDate, nil); got.status != want {
				t.Errorf("DELETE %s: %d %s, want %d", gone, got.status, got.text, want)
			}
		}
		if got := w.call("GET", gone, networkDate, nil); got.status != 404 {
			t.Errorf("GET %s after its end: %d", gone, got.status)
		}
	}
}

func TestGroupsInASubnetOverTheAPI(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	path := w.networkPath("one")
	w.call("PUT", path, networkDate, networkBody("10.0.128.0/20", "10.0.128.0/29"))
	g := w.call("PUT", w.groupPath("g"), "2023-05-01", inSubnet(path+"/subnets/web"))
	if g.status != 201 || at(g.body, "properties", "ipAddress", "ip") != "10.0.128.4" || at(g.body, "properties", "subnetIds", 0, "id") != path+"/subnets/web" {
		t.Fatalf("a group in a subnet: %d %s", g.status, g.text)
	}
	if n := w.call("GET", path, networkDate, nil); !strings.HasPrefix(fmt.Sprint(at(n.body, "properties", "subnets", 0, "properties", "ipConfigurations", 0, "id")), w.groupPath("g")+"/") {
		t.Errorf("the subnet's users: %s", n.text)
	}
	if got := w.call("GET", path+"/CheckIPAddressAvailability", networkDate+"&ipAddress=10.0.128.4", nil); at(got.body, "available") != false || at(got.body, "availableIPAddresses", 0) != "10.0.128.5" {
		t.Errorf("an address in use: %d %s", got.status, got.text)
	}
	if got := w.call("GET", path+"/usages", networkDate, nil); at(got.body, "value", 0, "currentValue") != 1.0 || at(got.body, "value", 0, "limit") != 3.0 {
		t.Errorf("usages: %d %s", got.status, got.text)
	}
	for code, got := range map[string]answer{
		"InUseSubnetCannotBeDeleted": w.call("DELETE", path+"/subnets/web", networkDate, nil),
		"InvalidResourceReference":   w.call("PUT", w.groupPath("h"), "2023-05-01", inSubnet(path+"/subnets/none")),
		"NetcfgSubnetRangesOverlap":  w.call("PUT", path+"/subnets/x", networkDate, map[string]any{"properties": map[string]any{"addressPrefix": "10.0.128.0/28"}}),
		"AddressSpaceNotAvailable":   w.call("PUT", w.networkPath("two"), networkDate, networkBody("203.0.112.0/20", "203.0.112.0/24")),
	} {
		if got.status != 400 || at(got.body, "error", "code") != code {
			t.Errorf("%d %s, want 400 and %s", got.status, got.text, code)
		}
	}
}

// TestJoiningNeedsARight: who may write groups in one resource group may not put them into the networks of another.
func TestJoiningNeedsARight(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	w.call("PUT", w.networkPath("one"), networkDate, networkBody("10.0.128.0/20", "10.0.128.0/29"))
	w.must2(w.client.PutResourceGroup(t.Context(), "apps", nil))
	p, secret, err := w.ids.AddPrincipal(t.Context(), "apps", identity.Assignment{Role: identity.Contributor, Scope: "/subscriptions/" + w.config.SubscriptionID + "/resourceGroups/apps"})
	w.must(err)
	w.config.ClientID, w.config.ClientSecret = p.ClientID, secret
	target := strings.Replace(w.groupPath("g"), "resourceGroups/default", "resourceGroups/apps", 1)
	if got := w.call("PUT", target, "2023-05-01", inSubnet(w.networkPath("one")+"/subnets/web")); got.status != 403 || !strings.Contains(got.text, "subnets/join/action") {
		t.Errorf("a subnet of another resource group: %d %s, want 403", got.status, got.text)
	}
}
