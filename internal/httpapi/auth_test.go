package httpapi_test

import (
	"encoding/json"
	"net/url"
	"strings"
	"testing"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/httpapi"
	"spillway.dev/spillway/internal/identity"
)

func refOf(w *world, name string) group.Ref {
	return group.Ref{Subscription: w.config.SubscriptionID, ResourceGroup: "default", Name: name}
}

// operation is a call, and who of two roles may make it.
type operation struct {
	method, path, version string
	reader, contributor   bool
}

// operations are calls of every kind on a group and around it.
func operations(sub, one string) []operation {
	address := strings.Replace(one, "containerGroups/web", "serviceAddresses/svc", 1)
	return []operation{
		{"GET", one, "2023-05-01", true, true},
		{"GET", strings.TrimSuffix(one, "/web"), "2023-05-01", true, true},
		{"GET", one + "/containers/main/logs", "2023-05-01", true, true},
		{"GET", sub + "/resourceGroups/default", "2021-04-01", true, true},
		{"GET", sub + "/providers/Microsoft.ContainerInstance/containerGroups", "2023-05-01", true, false},
		{"GET", sub + "/providers/Microsoft.ContainerInstance/locations/local/usages", "2023-05-01", true, false},
		{"PUT", one, "2023-05-01", false, true},
		{"PATCH", one, "2023-05-01", false, true},
		{"POST", one + "/start", "2023-05-01", false, true},
		{"POST", one + "/containers/main/exec", "2023-05-01", false, true},
		{"POST", one + "/containers/main/attach", "2023-05-01", false, true},
		{"GET", address, "2026-11-01-spillway", true, true},
		{"GET", strings.TrimSuffix(address, "/svc"), "2026-11-01-spillway", true, true},
		{"GET", sub + "/providers/Microsoft.ContainerInstance/serviceAddresses", "2026-11-01-spillway", true, false},
		{"PUT", address, "2026-11-01-spillway", false, true},
		{"DELETE", address, "2026-11-01-spillway", false, true},
		{"PUT", sub + "/resourceGroups/other", "2021-04-01", false, false},
		{"DELETE", sub + "/resourceGroups/other", "2021-04-01", false, false},
		{"GET", "/providers/Spillway.Platform/hosts", "2026-11-01-spillway", false, false},
		{"POST", "/providers/Spillway.Platform/hosts/h1/cordon", "2026-11-01-spillway", false, false},
		{"POST", "/providers/Spillway.Platform/hosts/h1/drain", "2026-11-01-spillway", false, false},
		{"GET", "/providers/Spillway.Platform/images", "2026-11-01-spillway", false, false},
		{"POST", "/providers/Spillway.Platform/images/pull", "2026-11-01-spillway", false, false},
		{"POST", "/providers/Spillway.Platform/images/import", "2026-11-01-spillway", false, false},
		{"DELETE", "/providers/Spillway.Platform/images", "2026-11-01-spillway", false, false},
	}
}

// TestWhoMayDoWhat tries operations as several principals and in several spellings: what a role lacks is denied in
// all of them, what it has is not.
func TestWhoMayDoWhat(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	if a := w.call("PUT", w.groupPath("web"), "2023-05-01", body()); a.status != 201 {
		t.Fatal(a.text)
	}
	w.waitState("web", "Running")
	sub := "/subscriptions/" + w.config.SubscriptionID
	tokens := map[string]string{"nobody": ""}
	for name, assignments := range map[string][]identity.Assignment{
		"reader":      {{Role: identity.Reader, Scope: sub}},
		"contributor": {{Role: identity.Contributor, Scope: sub + "/resourceGroups/default"}},
		"elsewhere":   {{Role: identity.Contributor, Scope: sub + "/resourceGroups/defaul"}},
		"unassigned":  nil,
	} {
		p, secret, err := w.ids.AddPrincipal(t.Context(), name, assignments...)
		if err != nil {
			t.Fatal(err)
		}
		if tokens[name], _, err = w.ids.Token(p.ClientID, secret); err != nil {
			t.Fatal(err)
		}
	}
	spellings := []func(string) string{
		func(p string) string { return p },
		strings.ToUpper,
		strings.ToLower,
		func(p string) string { return strings.ReplaceAll(p, "/", "//") },
		func(p string) string { return p + "/" },
		func(p string) string { return strings.Replace(p, "s", "%73", 1) },
	}
	refused := 0
	for _, op := range operations(sub, w.groupPath("web")) {
		for name, token := range tokens {
			allowed := name == "reader" && op.reader || name == "contributor" && op.contributor
			for _, spell := range spellings {
				header := map[string]string{"Content-Type": "application/json"}
				if token != "" {
					header["Authorization"] = "Bearer " + token
				}
				a := w.raw(op.method, spell(op.path)+"?api-version="+op.version, header, []byte("{}"))
				denied := a.status == 401 || a.status == 403
				if denied == allowed {
					t.Errorf("%s: %s %s = %d %s, allowed should be %t", name, op.method, spell(op.path), a.status, a.text, allowed)
				}
				if denied {
					refused++
				}
			}
		}
	}
	t.Logf("%d requests refused", refused)
	if v, err := w.ctrl.Get(refOf(w, "web")); err != nil || v.Group.Epoch != 1 {
		t.Errorf("the group was changed: %+v, %v", v.Group, err)
	}
}

func TestTokenEndpoint(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	form := func(change func(url.Values)) string {
		f := url.Values{"grant_type": {"client_credentials"}, "client_id": {w.config.ClientID}, "client_secret": {w.config.ClientSecret}, "scope": {w.config.Endpoint + "/.default"}}
		if change != nil {
			change(f)
		}
		return f.Encode()
	}
	tests := []struct {
		name, path, body string
		status           int
		oauth            string
	}{
		{"as the contract has it", "/" + w.config.TenantID + "/oauth2/v2.0/token", form(nil), 200, ""},
		{"as the Azure CLI does", "/adfs/oauth2/token", form(func(f url.Values) { f.Set("claims", "{}"); f.Set("client_info", "1") }), 200, ""},
		{"the old way", "/oauth2/token", form(func(f url.Values) { f.Set("resource", "x") }), 200, ""},
		{"wrong secret", "/oauth2/token", form(func(f url.Values) { f.Set("client_secret", "x") }), 401, "invalid_client"},
		{"unknown client", "/oauth2/token", form(func(f url.Values) { f.Set("client_id", "x") }), 401, "invalid_client"},
		{"no secret", "/oauth2/token", form(func(f url.Values) { f.Del("client_secret") }), 400, "invalid_request"},
		{"other grant", "/oauth2/token", form(func(f url.Values) { f.Set("grant_type", "password") }), 400, "unsupported_grant_type"},
		{"other tenant", "/00000000-0000-0000-0000-000000000000/oauth2/v2.0/token", form(nil), 400, "invalid_request"},
	}
	for _, test := range tests {
		a := w.raw("POST", test.path, map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, []byte(test.body))
		code, _ := a.body["error"].(string)
		if a.status != test.status || code != test.oauth {
			t.Errorf("%s: %d %s, want %d %s", test.name, a.status, a.text, test.status, test.oauth)
		}
		if test.status == 200 && (a.body["access_token"] == nil || a.body["token_type"] != "Bearer") {
			t.Errorf("%s: %s", test.name, a.text)
		}
	}
}

// TestNeighbours asks for what Azure's clients look up before they create anything.
func TestNeighbours(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	sub := "/subscriptions/" + w.config.SubscriptionID
	for path, want := range map[string][]any{
		"/adfs/.well-known/openid-configuration":   {"token_endpoint"},
		"/t/v2.0/.well-known/openid-configuration": {"token_endpoint"},
		"/subscriptions":   {"value", 0, "tenantId"},
		sub:                {"subscriptionId"},
		"/tenants":         {"value", 0, "tenantId"},
		sub + "/locations": {"value", 0, "name"},
		sub + "/providers": {"value", 0, "namespace"},
		sub + "/providers/microsoft.containerinstance": {"resourceTypes", 0, "apiVersions", 0},
		sub + "/resourcegroups":                        {"value", 0, "id"},
	} {
		if a := w.call("GET", path, "2019-11-01", nil); a.status != 200 || at(a.body, want...) == nil {
			t.Errorf("GET %s = %d %s, want something at %v", path, a.status, a.text, want)
		}
	}
	for version, want := range map[string][]any{"2015-01-01": {"authentication", "loginEndpoint"}, "2022-09-01": {0, "authentication", "loginEndpoint"}} {
		a := w.raw("GET", "/metadata/endpoints?api-version="+version, nil, nil)
		var found any
		if err := json.Unmarshal([]byte(a.text), &found); err != nil || at(found, want...) != "https://platform/adfs" {
			t.Errorf("metadata %s = %s", version, a.text)
		}
	}
	for path, want := range map[string][]any{
		sub + "/providers/Microsoft.ContainerInstance/locations/local/usages":       {"value", 1, "name", "value"},
		sub + "/providers/Microsoft.ContainerInstance/locations/local/capabilities": {"value", 0, "capabilities", "maxCpu"},
		sub + "/providers/Microsoft.ContainerInstance/locations/local/cachedImages": {"value"},
		"/providers/Microsoft.ContainerInstance/operations":                         {"value", 0, "display", "provider"},
	} {
		if a := w.call("GET", path, "2023-05-01", nil); a.status != 200 || at(a.body, want...) == nil {
			t.Errorf("GET %s = %d %s, want something at %v", path, a.status, a.text, want)
		}
	}
	if a := w.call("HEAD", sub+"/resourcegroups/default", "2021-04-01", nil); a.status != 204 {
		t.Errorf("HEAD = %d, want 204", a.status)
	}
	if a := w.call("HEAD", sub+"/resourcegroups/nope", "2021-04-01", nil); a.status != 404 {
		t.Errorf("HEAD = %d, want 404", a.status)
	}
}
