package httpapi_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/httpapi"
)

// TestAsync walks the long operations as Azure's clients do.
func TestAsync(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	old := w.call("PUT", w.groupPath("old"), "2023-05-01", body())
	if old.status != 201 || old.header.Get("Location") != "" || old.header.Get("Retry-After") != "1" || !strings.Contains(old.header.Get("Azure-AsyncOperation"), "/locations/local/operations/") || !strings.HasSuffix(old.header.Get("Azure-AsyncOperation"), "api-version=2018-06-01") {
		t.Errorf("PUT 2023-05-01 = %d %v", old.status, old.header)
	}
	if at(old.body, "properties", "provisioningState") != "Pending" || at(old.body, "properties", "instanceView", "state") != "Pending" || at(old.body, "properties", "containers", 0, "properties", "instanceView") != nil {
		t.Errorf("PUT 2023-05-01 body = %s", old.text)
	}
	recent := w.call("PUT", w.groupPath("new"), "2025-09-01", body())
	if recent.status != 201 || recent.header.Get("Location") == "" || recent.header.Get("Azure-AsyncOperation") == "" {
		t.Errorf("PUT 2025-09-01 = %d %v", recent.status, recent.header)
	}
	if status := w.poll(old.header.Get("Azure-AsyncOperation"), 200, "Succeeded"); at(status.body, "id") == nil || status.header.Get("Retry-After") != "1" {
		t.Errorf("status = %s %v", status.text, status.header)
	}
	if result := w.poll(recent.header.Get("Location"), 200, ""); at(result.body, "name") != "new" {
		t.Errorf("Location target = %d %s", result.status, result.text)
	}
	again := w.call("PUT", w.groupPath("old"), "2023-05-01", body())
	if again.status != 200 || again.header.Get("Azure-AsyncOperation") != "" {
		t.Errorf("the same PUT = %d %v, want 200 and nothing to wait for", again.status, again.header)
	}
	if a := w.call("POST", w.groupPath("old")+"/start", "2023-05-01", nil); a.status != 204 {
		t.Errorf("start of a running group = %d, want 204", a.status)
	}
	if a := w.call("POST", w.groupPath("old")+"/stop", "2023-05-01", nil); a.status != 204 {
		t.Errorf("stop = %d, want 204", a.status)
	}
	start := w.call("POST", w.groupPath("old")+"/start", "2023-05-01", nil)
	if start.status != 202 {
		t.Errorf("start = %d, want 202", start.status)
	}
	w.poll(start.header.Get("Location"), 200, "")
	restart := w.call("POST", w.groupPath("old")+"/restart", "2025-09-01", nil)
	if restart.status != 204 || restart.header.Get("Location") == "" {
		t.Errorf("restart = %d %v, want 204 with Location", restart.status, restart.header)
	}
	w.poll(restart.header.Get("Location"), 200, "")
	del := w.call("DELETE", w.groupPath("old"), "2023-05-01", nil)
	if del.status != 202 {
		t.Fatalf("DELETE = %d, want 202", del.status)
	}
	w.poll(del.header.Get("Location"), 204, "")
	w.poll(del.header.Get("Azure-AsyncOperation"), 200, "Succeeded")
	if a := w.call("DELETE", w.groupPath("old"), "2023-05-01", nil); a.status != 204 {
		t.Errorf("DELETE of nothing = %d, want 204", a.status)
	}
}

// poll asks an operation's address until it answers with the status (and the word) that ends it.
func (w *world) poll(url string, status int, word string) answer {
	w.t.Helper()
	path, query, _ := strings.Cut(strings.TrimPrefix(url, "https://platform"), "?api-version=")
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		a := w.call("GET", path, query, nil)
		if a.status == status && (word == "" || a.body["status"] == word) {
			return a
		}
		if a.status >= 400 || time.Now().After(deadline) {
			w.t.Fatalf("poll %s = %d %s, want %d %s", url, a.status, a.text, status, word)
		}
	}
}

func TestUpdateRules(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	const version = "2023-05-01"
	if a := w.call("PUT", w.groupPath("web"), version, body()); a.status != 201 {
		t.Fatal(a.text)
	}
	w.waitState("web", "Running")
	change := func(edit func(props, container map[string]any)) answer {
		b := body()
		props := b["properties"].(map[string]any)
		edit(props, props["containers"].([]any)[0].(map[string]any)["properties"].(map[string]any))
		return w.call("PUT", w.groupPath("web"), version, b)
	}
	refused := map[string]func(props, c map[string]any){
		"restart policy": func(p, _ map[string]any) { p["restartPolicy"] = "Always" },
		"cpu": func(_, c map[string]any) {
			c["resources"] = map[string]any{"requests": map[string]any{"cpu": 1, "memoryInGB": 0.5}}
		},
		"ports": func(_, c map[string]any) { c["ports"] = []any{map[string]any{"port": 80}} },
		"address": func(p, _ map[string]any) {
			p["ipAddress"] = map[string]any{"type": "Public", "ports": []any{map[string]any{"port": 80}}}
		},
	}
	for name, edit := range refused {
		if a := change(edit); a.status != 400 || a.code() != "InvalidContainerGroupUpdate" {
			t.Errorf("change of %s = %d %s, want InvalidContainerGroupUpdate", name, a.status, a.text)
		}
	}
	if a := change(func(_, c map[string]any) { c["image"] = "busybox:2" }); a.status != 200 || a.header.Get("Azure-AsyncOperation") == "" {
		t.Errorf("change of the image = %d %s", a.status, a.text)
	}
	if g := w.waitState("web", "Running"); g.Properties.Epoch != 2 {
		t.Errorf("epoch after a change = %d, want 2", g.Properties.Epoch)
	}
	if a := w.call("PATCH", w.groupPath("web"), version, map[string]any{"tags": map[string]any{"a": "b"}}); a.status != 200 || at(a.body, "tags", "a") != "b" {
		t.Errorf("PATCH tags = %d %s", a.status, a.text)
	}
	if a := w.call("PATCH", w.groupPath("web"), version, map[string]any{"properties": map[string]any{}}); a.status != 400 {
		t.Errorf("PATCH of properties = %d, want 400", a.status)
	}
	if g, err := w.client.GetGroup(t.Context(), "", "web"); err != nil || g.Properties.Epoch != 2 || g.Tags["a"] != "b" {
		t.Errorf("after PATCH: %+v, %v", g, err)
	}
}

// TestEchoIsNoChange puts back what a GET showed: nothing restarts, and no secret is lost.
func TestEchoIsNoChange(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	b := body()
	props := b["properties"].(map[string]any)
	main := props["containers"].([]any)[0].(map[string]any)["properties"].(map[string]any)
	main["environmentVariables"] = []any{map[string]any{"name": "TOKEN", "secureValue": "canary"}}
	props["ipAddress"] = map[string]any{"type": "Private", "ports": []any{map[string]any{"port": 80}}}
	props["imageRegistryCredentials"] = []any{map[string]any{"server": "r.example", "username": "u", "password": "canary"}}
	props["volumes"] = []any{map[string]any{"name": "secret", "secret": map[string]any{"a": "Y2FuYXJ5"}}}
	for _, version := range []string{"2023-05-01", "2025-09-01", "2026-11-01-spillway"} {
		if a := w.call("PUT", w.groupPath("web"), version, b); a.status > 201 {
			t.Fatal(a.text)
		}
		w.waitState("web", "Running")
		shown := w.call("GET", w.groupPath("web"), version, nil)
		if strings.Contains(shown.text, "canary") || strings.Contains(shown.text, "Y2FuYXJ5") {
			t.Errorf("%s: GET shows a secret: %s", version, shown.text)
		}
		var echo any
		if err := json.Unmarshal([]byte(shown.text), &echo); err != nil {
			t.Fatal(err)
		}
		if a := w.call("PUT", w.groupPath("web"), version, echo); a.status != 200 || a.header.Get("Azure-AsyncOperation") != "" {
			t.Errorf("%s: echo = %d %v %s", version, a.status, a.header, a.text)
		}
	}
	v, err := w.ctrl.Get(refOf(w, "web"))
	if err != nil || v.Group.Epoch != 1 || v.Group.Spec.Containers[0].Env[0].Value != "canary" || v.Group.Spec.Credentials[0].Password != "canary" || string(v.Group.Spec.Volumes[0].Secret.Data["a"]) != "canary" {
		t.Errorf("after echoes: %+v, %v", v.Group, err)
	}
}

func TestDNSLabelIsUnique(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	b := body()
	b["properties"].(map[string]any)["ipAddress"] = map[string]any{"type": "Public", "dnsNameLabel": "My-Label", "ports": []any{map[string]any{"port": 80}}}
	a := w.call("PUT", w.groupPath("one"), "2023-05-01", b)
	if a.status != 201 || at(a.body, "properties", "ipAddress", "fqdn") != "my-label.local.spillway.internal" {
		t.Fatalf("PUT = %d %s", a.status, a.text)
	}
	if a := w.call("PUT", w.groupPath("two"), "2023-05-01", b); a.status != 409 || a.code() != "DnsNameLabelNotAvailable" {
		t.Errorf("PUT with a taken label = %d %s", a.status, a.text)
	}
	if err := w.client.DeleteGroup(t.Context(), "", "one", true); err != nil {
		t.Fatal(err)
	}
	if a := w.call("PUT", w.groupPath("two"), "2023-05-01", b); a.status != 201 {
		t.Errorf("PUT with a label that is free again = %d %s", a.status, a.text)
	}
}

func TestNoRoom(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	b := body()
	b["properties"].(map[string]any)["containers"].([]any)[0].(map[string]any)["properties"].(map[string]any)["resources"] = map[string]any{"requests": map[string]any{"cpu": 1, "memoryInGB": 65}}
	a := w.call("PUT", w.groupPath("big"), "2023-05-01", b)
	if a.status != 409 || a.code() != "ServiceUnavailable" || !strings.Contains(a.text, "Resource requested: '1' CPU '65' GB memory 'Linux' OS") {
		t.Errorf("PUT beyond the host = %d %s", a.status, a.text)
	}
	if a := w.call("GET", w.groupPath("big"), "2023-05-01", nil); a.status != 404 {
		t.Errorf("the refused group exists: %d", a.status)
	}
}

// TestPaths: case, double slashes and trailing slashes do not matter, and nothing is redirected.
func TestPaths(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	if a := w.call("PUT", w.groupPath("web"), "2023-05-01", body()); a.status != 201 {
		t.Fatal(a.text)
	}
	sub := w.config.SubscriptionID
	for path, want := range map[string]int{
		"/SUBSCRIPTIONS/" + strings.ToUpper(sub) + "/resourcegroups/DEFAULT/PROVIDERS/microsoft.containerinstance//containergroups/WEB/": 200,
		"//subscriptions/" + sub + "/resourceGroups/default/providers/Microsoft.ContainerInstance//containerGroups":                      200,
		"/subscriptions/" + sub + "/resourceGroups/default/providers/Microsoft.ContainerInstance/containerGroups/..":                     400,
		"/subscriptions/" + sub + "/resourceGroups/default/providers/Microsoft.ContainerInstance/containerGroups/a%2fb":                  400,
		"/subscriptions/" + sub + "/resourceGroups/default/providers/Microsoft.Compute/virtualMachines/x":                                404,
		"/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/default":                                                     404,
		"/": 404,
	} {
		if a := w.call("GET", path, "2023-05-01", nil); a.status != want {
			t.Errorf("GET %s = %d %s, want %d", path, a.status, a.text, want)
		}
	}
}

// TestRefusals lists bad requests with the status and code that they get.
func TestRefusals(t *testing.T) {
	w := newWorld(t, httpapi.Rate{})
	token, _, err := w.ids.Token(w.config.ClientID, w.config.ClientSecret)
	if err != nil {
		t.Fatal(err)
	}
	path := w.groupPath("web")
	tests := []struct {
		name, method, path, kind, token string
		body                            string
		status                          int
		code                            string
	}{
		{"no api-version", "GET", path, "", token, "", 400, "MissingApiVersionParameter"},
		{"unknown api-version", "GET", path + "?api-version=2020-01-01", "", token, "", 400, "InvalidApiVersionParameter"},
		{"no token", "GET", path + "?api-version=2023-05-01", "", "", "", 401, "AuthenticationFailed"},
		{"garbage token", "GET", path + "?api-version=2023-05-01", "", "garbage", "", 401, "InvalidAuthenticationToken"},
		{"unknown group", "GET", path + "?api-version=2023-05-01", "", token, "", 404, "ResourceNotFound"},
		{"unknown resource group", "GET", strings.Replace(path, "/default/", "/nope/", 1) + "?api-version=2023-05-01", "", token, "", 404, "ResourceGroupNotFound"},
		{"wrong method", "POST", path + "?api-version=2023-05-01", "application/json", token, "{}", 405, "MethodNotAllowed"},
		{"wrong content type", "PUT", path + "?api-version=2023-05-01", "text/xml", token, "<a/>", 415, "UnsupportedMediaType"},
		{"no content type", "PUT", path + "?api-version=2023-05-01", "", token, "{}", 415, "UnsupportedMediaType"},
		{"too large", "PUT", path + "?api-version=2023-05-01", "application/json", token, `{"a":"` + strings.Repeat("x", 4<<20) + `"}`, 413, "RequestContentTooLarge"},
		{"no JSON", "PUT", path + "?api-version=2023-05-01", "application/json", token, "{", 400, "InvalidRequestContent"},
		{"bad name", "PUT", strings.Replace(path, "/web", "/Web--1", 1) + "?api-version=2023-05-01", "application/json", token, "{}", 400, "InvalidContainerGroupName"},
		{"foreign location", "PUT", path + "?api-version=2023-05-01", "application/json", token, mustJSON(map[string]any{"location": "mars", "properties": body()["properties"]}), 400, "LocationNotAvailableForResourceType"},
		{"own operation in an Azure version", "GET", path + "/stats?api-version=2023-05-01", "", token, "", 400, "InvalidApiVersionParameter"},
		{"bad page size", "GET", strings.TrimSuffix(path, "/web") + "?api-version=2023-05-01&$top=x", "", token, "", 400, "InvalidQueryParameterValue"},
		{"bad page token", "GET", strings.TrimSuffix(path, "/web") + "?api-version=2023-05-01&$skipToken=!", "", token, "", 400, "InvalidQueryParameterValue"},
		{"unknown operation", "GET", "/subscriptions/" + w.config.SubscriptionID + "/providers/Microsoft.ContainerInstance/locations/local/operations/x?api-version=2018-06-01", "", token, "", 404, "OperationNotFound"},
		{"unknown stream", "GET", "/execstream/sessionId/x", "", "", "", 404, "SessionNotFound"},
		{"bad resource group", "PUT", "/subscriptions/" + w.config.SubscriptionID + "/resourceGroups/a*?api-version=2021-04-01", "application/json", token, `{"location":"local"}`, 400, "InvalidResourceGroup"},
	}
	for _, test := range tests {
		header := map[string]string{}
		if test.token != "" {
			header["Authorization"] = "Bearer " + test.token
		}
		if test.kind != "" {
			header["Content-Type"] = test.kind
		}
		a := w.raw(test.method, test.path, header, []byte(test.body))
		if a.status != test.status || a.code() != test.code {
			t.Errorf("%s: %d %s, want %d %s", test.name, a.status, a.text, test.status, test.code)
		}
		if a.header.Get("X-Ms-Request-Id") == "" || a.header.Get("X-Ms-Correlation-Request-Id") == "" {
			t.Errorf("%s: no request ids", test.name)
		}
		if test.status == 401 && !strings.HasPrefix(a.header.Get("Www-Authenticate"), "Bearer ") {
			t.Errorf("%s: no WWW-Authenticate", test.name)
		}
	}
}

func TestRateLimit(t *testing.T) {
	w := newWorld(t, httpapi.Rate{PerSecond: 0.001, Burst: 5})
	var last answer
	for range 6 {
		last = w.call("GET", "/subscriptions", "2021-04-01", nil)
	}
	if last.status != http.StatusTooManyRequests || last.code() != "TooManyRequests" || last.header.Get("Retry-After") == "" {
		t.Errorf("sixth call = %d %s %v, want 429 with Retry-After", last.status, last.text, last.header)
	}
}

func mustJSON(v any) string {
	data, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(data)
}
