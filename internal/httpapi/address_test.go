package httpapi_test

import (
	"fmt"
	"strings"
	"testing"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/httpapi"
	"spillway.dev/spillway/internal/identity"
)

func (w *world) addressPath(name string) string {
	return strings.Replace(w.groupPath(name), "containerGroups", "serviceAddresses", 1)
}

// addressBody is a small service address.
func addressBody(properties map[string]any) map[string]any {
	p := map[string]any{"ports": []any{map[string]any{"port": 80}}, "endpoints": []any{map[string]any{"address": "10.1.2.3"}}}
	for k, v := range properties {
		p[k] = v
	}
	return map[string]any{"properties": p}
}

func TestServiceAddressLife(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	path := w.addressPath("svc")
	a := w.call("PUT", path, arm.Superset, addressBody(map[string]any{"names": []string{"svc"}}))
	if a.status != 201 || at(a.body, "properties", "address") != "100.64.0.1" || at(a.body, "properties", "fqdns", 0) != "svc.local.spillway.internal" ||
		at(a.body, "properties", "instanceView", "readyEndpoints") != 1.0 || at(a.body, "location") != "local" {
		t.Fatalf("create: %d %s", a.status, a.text)
	}
	if again := w.call("PUT", path, arm.Superset, a.body); again.status != 200 || again.text != a.text {
		t.Errorf("the answer put back: %d %s, want 200 and no change", again.status, again.text)
	}
	if got := w.call("GET", strings.ToUpper(path), arm.Superset, nil); got.status != 200 || got.text != a.text {
		t.Errorf("GET: %d %s", got.status, got.text)
	}
	if got := w.call("GET", path, "2025-09-01", nil); got.status != 400 || !strings.Contains(got.text, arm.Superset) {
		t.Errorf("GET with Azure's version: %d %s, want a refusal that names ours", got.status, got.text)
	}
	for i := range 4 {
		w.must2(w.client.PutServiceAddress(t.Context(), "", fmt.Sprint("more", i), addressBody(nil)))
	}
	for _, rg := range []string{"", "*"} {
		if list, err := w.client.ListServiceAddresses(t.Context(), rg); err != nil || len(list) != 5 || list[4].Name != "svc" {
			t.Errorf("list of %q = %d addresses, %v, want 5 in order", rg, len(list), err)
		}
	}
	first := w.raw("GET", strings.TrimSuffix(path, "/svc")+"?api-version="+arm.Superset+"&$top=2", map[string]string{"Authorization": "Bearer " + w.token()}, nil)
	if value, _ := first.body["value"].([]any); len(value) != 2 || !strings.Contains(fmt.Sprint(first.body["nextLink"]), "skipToken") {
		t.Errorf("a page: %s", first.text)
	}
	if got := w.call("GET", "/subscriptions/"+w.config.SubscriptionID+"/resources", "2021-04-01", nil); strings.Count(got.text, arm.AddressType) < 5 {
		t.Errorf("resources: %s", got.text)
	}
	if a := w.call("DELETE", path, arm.Superset, nil); a.status != 200 {
		t.Errorf("DELETE: %d %s", a.status, a.text)
	}
	if a := w.call("DELETE", path, arm.Superset, nil); a.status != 204 {
		t.Errorf("second DELETE: %d %s", a.status, a.text)
	}
	if a := w.call("GET", path, arm.Superset, nil); a.status != 404 || a.code() != "ResourceNotFound" {
		t.Errorf("GET after DELETE: %d %s", a.status, a.text)
	}
	if err := w.client.DeleteServiceAddress(t.Context(), "", "svc"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("DeleteServiceAddress = %v, want not-found", err)
	}
	if a := w.call("PUT", w.addressPath("-x"), arm.Superset, addressBody(nil)); a.status != 400 || a.code() != "InvalidServiceAddressName" {
		t.Errorf("bad name: %d %s", a.status, a.text)
	}
}

func (w *world) token() string {
	token, _, err := w.ids.Token(w.config.ClientID, w.config.ClientSecret)
	w.must(err)
	return token
}

func TestServiceAddressWatch(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	w.must2(w.client.PutServiceAddress(t.Context(), "", "one", addressBody(nil)))
	watch, err := w.client.WatchServiceAddresses(t.Context(), "", "")
	w.must(err)
	defer watch.Close()
	var seen []string
	next := func() string {
		e, err := watch.Next()
		w.must(err)
		if e.Object != nil {
			return e.Type + " " + e.Object.Name
		}
		return e.Type
	}
	seen = append(seen, next(), next())
	w.must2(w.client.PutServiceAddress(t.Context(), "", "two", addressBody(nil)))
	for !strings.HasPrefix(seen[len(seen)-1], "ADDED two") {
		seen = append(seen, next())
	}
	w.must(w.client.DeleteServiceAddress(t.Context(), "", "one"))
	for !strings.HasPrefix(seen[len(seen)-1], "DELETED one") {
		seen = append(seen, next())
	}
	if seen[0] != "ADDED one" || seen[1] != "BOOKMARK" {
		t.Errorf("the watch said %v", seen)
	}
}

// TestHostEndpointsNeedARight has a contributor of the subscription ask for the machine's own ports.
func TestHostEndpointsNeedARight(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	p, secret, err := w.ids.AddPrincipal(t.Context(), "contributor", identity.Assignment{Role: identity.Contributor, Scope: "/subscriptions/" + w.config.SubscriptionID})
	w.must(err)
	cfg := w.config
	cfg.ClientID, cfg.ClientSecret = p.ClientID, secret
	w.config = cfg
	contributor := w.newClient()
	body := addressBody(map[string]any{"hostEndpoints": true})
	if _, err := contributor.PutServiceAddress(t.Context(), "", "svc", body); fault.KindOf(err) != fault.Denied {
		t.Errorf("a contributor: %v, want a refusal", err)
	}
	w.must2(contributor.PutServiceAddress(t.Context(), "", "svc", addressBody(nil)))
	w.must2(w.client.PutServiceAddress(t.Context(), "", "svc", body))
	if _, err := contributor.PutServiceAddress(t.Context(), "", "svc", body); fault.KindOf(err) != fault.Denied {
		t.Errorf("a contributor changes what an administrator made: %v, want a refusal", err)
	}
}
