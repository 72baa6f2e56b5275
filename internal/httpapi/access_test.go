package httpapi_test

import (
	"bytes"
	"strings"
	"testing"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/httpapi"
	"spillway.dev/spillway/internal/identity"
)

// hostBody is a group that asks for the machine itself.
func hostBody(properties map[string]any) map[string]any {
	all := map[string]any{"containers": []any{map[string]any{"name": "main", "properties": map[string]any{"image": "demo"}}}}
	for k, v := range properties {
		all[k] = v
	}
	return map[string]any{"properties": all}
}

func privilegedBody() map[string]any {
	return hostBody(map[string]any{"containers": []any{map[string]any{"name": "main", "properties": map[string]any{"image": "demo", "securityContext": map[string]any{"privileged": true}}}}})
}

// TestHostAccessIsNotGiven asks a platform that gives one thing for all others, as its administrator.
func TestHostAccessIsNotGiven(t *testing.T) {
	w := newWorld(t, httpapi.Rate{}, "host-ipc", "host-path=/var/log")
	path := func(p string) map[string]any {
		return hostBody(map[string]any{"volumes": []any{map[string]any{"name": "v", "hostPath": map[string]any{"path": p}}}})
	}
	for name, test := range map[string]struct {
		body map[string]any
		want []string
	}{
		"hostNetwork": {hostBody(map[string]any{"hostNetwork": true}), []string{"properties.hostNetwork", "--allow host-network"}},
		"hostPID":     {hostBody(map[string]any{"hostPID": true}), []string{"properties.hostPID", "--allow host-pid"}},
		"hostPath":    {path("/etc"), []string{"properties.volumes[0].hostPath", "/etc", "--allow host-path"}},
		"privileged":  {privilegedBody(), []string{"properties.containers[0].properties.securityContext.privileged", "--allow privileged"}},
		"both":        {hostBody(map[string]any{"hostPID": true, "hostNetwork": true}), []string{"2 things", "hostNetwork"}},
	} {
		a := w.call("PUT", w.groupPath("web"), arm.Superset, test.body)
		if a.status != 400 || a.code() != "HostAccessNotAllowed" {
			t.Errorf("%s: %d %s, want 400 HostAccessNotAllowed\n%s", name, a.status, a.code(), a.text)
		}
		for _, want := range test.want {
			if !strings.Contains(a.text, want) {
				t.Errorf("%s: the answer lacks %q:\n%s", name, want, a.text)
			}
		}
	}
	body := addressBody(map[string]any{"fromHosts": true})
	if _, err := w.client.PutServiceAddress(t.Context(), "", "svc", body); fault.KindOf(err) != fault.Invalid || !strings.Contains(err.Error(), "properties.fromHosts") {
		t.Errorf("a service address that hosts reach: %v, want a refusal that names the field", err)
	}
	for name, body := range map[string]map[string]any{"ipc": hostBody(map[string]any{"hostIPC": true}), "path": path("/var/log/pods")} {
		if a := w.call("PUT", w.groupPath(name), arm.Superset, body); a.status != 201 {
			t.Errorf("%s: %d, want 201\n%s", name, a.status, a.text)
		}
	}
}

// TestHostAccessNeedsARight has a contributor of the subscription ask for what the platform gives, and enter what an
// administrator has made of it.
func TestHostAccessNeedsARight(t *testing.T) {
	w := newWorld(t, httpapi.Rate{}, "privileged", "host-network")
	admin := w.client
	p, secret, err := w.ids.AddPrincipal(t.Context(), "contributor", identity.Assignment{Role: identity.Contributor, Scope: "/subscriptions/" + w.config.SubscriptionID})
	w.must(err)
	w.config.ClientID, w.config.ClientSecret = p.ClientID, secret
	contributor := w.newClient()
	w.must2(admin.PutGroup(t.Context(), "", "held", privilegedBody()))
	w.must2(admin.PutGroup(t.Context(), "", "net", hostBody(map[string]any{"hostNetwork": true})))
	w.must2(contributor.PutGroup(t.Context(), "", "plain", hostBody(nil)))
	fromHosts := addressBody(map[string]any{"fromHosts": true})
	w.must2(admin.PutServiceAddress(t.Context(), "", "svc", fromHosts))
	for _, name := range []string{"held", "net", "plain"} {
		w.waitState(name, "Running")
	}
	image := map[string]any{"properties": map[string]any{"containers": []any{map[string]any{"name": "main", "properties": map[string]any{"image": "other"}}}}}
	added := map[string]any{"properties": map[string]any{"ephemeralContainers": []any{map[string]any{"name": "look", "properties": map[string]any{"image": "demo", "securityContext": map[string]any{"privileged": true}}}}}}
	exec := func(c *client.Client, name string) error {
		var out bytes.Buffer
		_, err := c.Exec(t.Context(), client.Target{Group: name}, host.ExecRequest{Command: []string{"echo"}}, host.Streams{Stdout: &out})
		return err
	}
	for what, do := range map[string]func(c *client.Client) error{
		"a new group": func(c *client.Client) error {
			_, err := c.PutGroup(t.Context(), "", "held", privilegedBody())
			return err
		},
		"another image":                 func(c *client.Client) error { _, err := c.PatchGroup(t.Context(), "", "held", image); return err },
		"a privileged container beside": func(c *client.Client) error { _, err := c.PatchGroup(t.Context(), "", "plain", added); return err },
		"a service address for hosts": func(c *client.Client) error {
			_, err := c.PutServiceAddress(t.Context(), "", "svc", fromHosts)
			return err
		},
		"exec": func(c *client.Client) error { return exec(c, "held") },
		"attach": func(c *client.Client) error {
			return c.Attach(t.Context(), client.Target{Group: "held"}, host.Streams{})
		},
		"a port of the machine": func(c *client.Client) error { return c.Forward(t.Context(), "", "net", 8443, &bytes.Buffer{}) },
	} {
		if err := do(contributor); fault.KindOf(err) != fault.Denied || !strings.Contains(err.Error(), string(identity.AccessHosts)) {
			t.Errorf("%s, by a contributor: %v, want a refusal that names %s", what, err, identity.AccessHosts)
		}
	}
	if err := exec(contributor, "plain"); err != nil {
		t.Errorf("exec into a group without access to the host: %v", err)
	}
	if err := exec(admin, "held"); err != nil {
		t.Errorf("exec by the administrator: %v", err)
	}
	w.must2(admin.PatchGroup(t.Context(), "", "held", image))
	w.must(contributor.DeleteGroup(t.Context(), "", "held", false))
}
