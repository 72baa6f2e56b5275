package arm

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

// valid is a small body that every api-version takes.
const valid = `{"location":"local","properties":{"osType":"Linux","restartPolicy":"Never","containers":[{"name":"main","properties":{"image":"nginx","resources":{"requests":{"cpu":1,"memoryInGB":1.5}}}}]}}`

// edit sets a value in the valid body; path is dotted, numbers index arrays, "-" appends.
func edit(t testing.TB, path string, value any) []byte {
	t.Helper()
	var body any
	if err := json.Unmarshal([]byte(valid), &body); err != nil {
		t.Fatal(err)
	}
	var set func(node any, parts []string) any
	set = func(node any, parts []string) any {
		if len(parts) == 0 {
			return value
		}
		if list, ok := node.([]any); ok {
			if parts[0] == "-" {
				return append(list, value)
			}
			var i int
			if _, err := fmt.Sscan(parts[0], &i); err != nil {
				t.Fatal(err)
			}
			list[i] = set(list[i], parts[1:])
			return list
		}
		m, _ := node.(map[string]any)
		if m == nil {
			m = map[string]any{}
		}
		m[parts[0]] = set(m[parts[0]], parts[1:])
		return m
	}
	out, err := json.Marshal(set(body, strings.Split(path, ".")))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

type obj = map[string]any

func container(name string, change ...any) obj {
	c := obj{"image": "busybox", "resources": obj{"requests": obj{"cpu": 0.5, "memoryInGB": 0.5}}}
	for i := 0; i+1 < len(change); i += 2 {
		c[change[i].(string)] = change[i+1]
	}
	return obj{"name": name, "properties": c}
}

const first = "properties.containers.0.properties."

// refusal is one change of the valid body, and what must come of it.
type refusal struct {
	path  string
	value any
	code  string // "" = InvalidRequestContent
	words string // in the message; "" = the body is fine
}

// containerRefusals are about containers.
func containerRefusals() []refusal {
	many := func(n int) []any {
		var list []any
		for i := range n {
			list = append(list, container(fmt.Sprintf("c%d", i)))
		}
		return list
	}
	return []refusal{
		{first + "imagee", "x", "", "properties.containers[0].properties.imagee' is unknown"},
		{first + "Image", "x", "", "Did you mean 'image'?"},
		{"foo", 1, "", "'foo' is unknown"},
		{"properties.hostname", "x", "", "exists in api-version " + Superset},
		{first + "startupProbe", obj{}, "", "exists in api-version " + Superset},
		{first + "configMap", obj{}, "", "exists in api-version 2025-09-01"},
		{"properties.containers", []any{}, "", "at least one container"},
		{"properties.containers", many(61), "", "at most 60"},
		{"properties.containers.-", container("main"), "DuplicateName", "'main' is used twice"},
		{"properties.initContainers", []any{obj{"name": "main", "properties": obj{"image": "x"}}}, "DuplicateName", "'main' is used twice"},
		{"properties.containers.0.name", "Main", "", "lower-case"},
		{"properties.containers.0.name", "a--b", "", "dashes"},
		{"properties.containers.0.name", strings.Repeat("a", 64), "", "1 to 63"},
		{first + "image", "", "", "required"},
		{first + "image", "nginx/Upper", "InvalidImageReference", "malformed"},
		{first + "image", "a:b:c", "InvalidImageReference", "malformed"},
		{first + "image", "nginx@sha256:12", "InvalidImageReference", "digest"},
		{first + "resources", nil, "", "required"},
		{first + "resources.requests.cpu", 0, "InvalidResourceRequest", "got 0"},
		{first + "resources.requests.cpu", 1e30, "InvalidResourceRequest", "from 0.01 to 31"},
		{first + "resources.requests.cpu", -1, "InvalidResourceRequest", "got -1"},
		{first + "resources.requests.cpu", "1", "", "must be a number, got a string"},
		{first + "resources.requests.memoryInGB", 0, "InvalidResourceRequest", "memoryInGB"},
		{first + "resources.requests.memoryInGB", 241, "InvalidResourceRequest", "240"},
		{first + "resources.requests.gpu", obj{"count": 1, "sku": "V100"}, "", "GPU"},
		{first + "resources.limits", obj{"cpu": 0.5}, "InvalidResourceLimit", "less than its request"},
		{first + "resources.limits", obj{"cpu": 2}, "ContainerLimitGreaterThanContainerGroupTotalRequest", "The 'Cpu' limit '2' in container 'main' is greater than the total request '1' of container group 'web'."},
		{first + "environmentVariables", []any{obj{"name": "1X", "value": "y"}}, "InvalidContainerEnvironmentVariable", "The environment variable name in container"},
		{first + "environmentVariables", []any{obj{"name": "X", "value": "y", "secureValue": "z"}}, "", "both"},
		{first + "volumeMounts", []any{obj{"name": "nothere", "mountPath": "/x"}}, "", "'nothere'"},
		{first + "volumeMounts", []any{obj{"name": "data1", "mountPath": "/a:b"}}, "", "':'"},
		{first + "volumeMounts", []any{obj{"name": "data1", "mountPath": "/a/../b"}}, "", "'..'"},
		{first + "volumeMounts", []any{obj{"name": "data1", "mountPath": "/proc/x"}}, "", "belongs to the platform"},
	}
}

// groupRefusals are about the rest.
func groupRefusals() []refusal {
	ports := []any{}
	for i := range 6 {
		ports = append(ports, obj{"port": 80 + i})
	}
	return []refusal{
		{"properties.volumes", []any{obj{"name": "data", "emptyDir": obj{}}}, "", "5 to 63"},
		{"properties.volumes", []any{obj{"name": "data1"}}, "", "exactly one"},
		{"properties.volumes", []any{obj{"name": "data1", "emptyDir": obj{}, "secret": obj{}}}, "", "emptyDir and secret"},
		{"properties.volumes", []any{obj{"name": "data1", "secret": obj{"a": "not base64!"}}}, "", "base64"},
		{"properties.volumes", []any{obj{"name": "data1", "secret": obj{"../a": "YQ=="}}}, "", "file name"},
		{first + "ports", []any{obj{"port": 0}}, "", "from 1 to 65535"},
		{first + "ports", []any{obj{"port": 80}, obj{"port": 80}}, "DuplicatePort", "80/TCP"},
		{first + "ports", []any{obj{"port": 80, "protocol": "SCTP"}}, "", "TCP, UDP"},
		{"properties.containers", []any{container("a1", "ports", []any{obj{"port": 80}}), container("a2", "ports", []any{obj{"port": 80}})}, "DuplicatePort", "'a1'"},
		{"properties.ipAddress", obj{"type": "Public", "ports": ports}, "", "at most 5"},
		{"properties.ipAddress", obj{"type": "Public", "ports": []any{}}, "", "at least one port"},
		{"properties.ipAddress", obj{"type": "Other", "ports": ports[:1]}, "", "Public, Private"},
		{"properties.ipAddress", obj{"type": "Public", "ports": ports[:1], "dnsNameLabel": "abc"}, "InvalidDnsNameLabel", "5 to 63"},
		{"properties.osType", "Windows", "", "Linux containers only"},
		{"properties.osType", nil, "", "required"},
		{"properties.sku", "Confidential", "ConfidentialContainerGroupSkuIsNotSupported", "Standard"},
		{"properties.restartPolicy", "Sometimes", "", "Always, OnFailure, Never"},
		{"properties.subnetIds", []any{obj{"id": "x"}}, "InvalidResourceId", "must look like"},
		{"properties.subnetIds", []any{obj{"name": "x"}}, "", "subnetIds[0].id"},
		{"properties.subnetIds", []any{obj{"id": subnetOne}, obj{"id": subnetOne}}, "", "joins one"},
		{"properties.networkProfile", obj{"id": "x"}, "", "'subnetIds'"},
		{"properties.diagnostics", obj{"logAnalytics": obj{}}, "", "cannot be honoured"},
		{"properties.encryptionProperties", obj{"keyName": "x"}, "", "cannot be honoured"},
		{"properties.extensions", []any{obj{"name": "x"}}, "", "cannot be honoured"},
		{"identity", obj{"type": "SystemAssigned"}, "", "no managed identities"},
		{first + "securityContext", obj{"privileged": true}, "", "privileged"},
		{first + "securityContext", obj{"runAsUser": 1 << 32}, "", "2147483647"},
		{first + "securityContext", obj{"capabilities": obj{"add": []any{"SYS_ADMIN"}}}, "", "cannot be granted"},
		{first + "securityContext", obj{"capabilities": obj{"add": []any{"NOPE"}}}, "", "does not exist"},
		{first + "securityContext", obj{"seccompProfile": "{"}, "", "base64"},
		{first + "livenessProbe", obj{"periodSeconds": 1}, "", "exactly one"},
		{first + "livenessProbe", obj{"httpGet": obj{"port": 80, "scheme": "ftp"}}, "", "http, https"},
		{first + "livenessProbe", obj{"tcpSocket": obj{"port": 80}}, "", "exists in api-version " + Superset},
		{first + "livenessProbe", obj{"exec": obj{"command": []any{"x"}}, "successThreshold": 2}, "", "must be 1"},
		{"properties.dnsConfig", obj{"nameServers": []any{"x"}}, "", "not an IP address"},
		{"properties.imageRegistryCredentials", []any{obj{"server": "r", "identity": "x"}}, "InvalidImageRegistryIdentity", "managed identities"},
		{"location", "", "LocationRequired", "required"},
		{"zones", []any{"1", "2"}, "", "one zone"},
		{"tags", obj{"a": 1}, "", "must be a string"},
		{"properties.priority", "Spot", "", ""}, // fine without an address: see below
	}
}

func TestRefusals(t *testing.T) {
	for _, test := range append(containerRefusals(), groupRefusals()...) {
		if test.words == "" {
			if _, err := Decode(edit(t, test.path, test.value), v2023, "web"); err != nil {
				t.Errorf("%s = %v: Decode = %v, want nil", test.path, test.value, err)
			}
			continue
		}
		_, err := Decode(edit(t, test.path, test.value), v2023, "web")
		e, ok := errors.AsType[*fault.Error](err)
		if !ok {
			t.Errorf("%s = %v: Decode = %v, want a fault", test.path, test.value, err)
			continue
		}
		code := test.code
		if code == "" {
			code = "InvalidRequestContent"
		}
		words := strings.ReplaceAll(test.words, "The environment variable name in container", "environment variable name")
		text := e.Message
		for _, d := range e.Details {
			text += "\n" + d.Message
		}
		if e.ARMCode() != code || e.HTTPStatus() != 400 || !strings.Contains(text, words) {
			t.Errorf("%s = %v: Decode = %s %d %q, want %s with %q", test.path, test.value, e.ARMCode(), e.HTTPStatus(), text, code, words)
		}
	}
}

func TestSpotRefusesInboundConnectivity(t *testing.T) {
	body := strings.Replace(valid, `"osType"`, `"priority":"Spot","ipAddress":{"type":"Public","ports":[{"port":80}]},"osType"`, 1)
	_, err := Decode([]byte(body), v2023, "web")
	if e, ok := errors.AsType[*fault.Error](err); !ok || e.Code != "SpotPriorityContainerGroupNotSupportedForInboundConnectivity" {
		t.Errorf("Decode(Spot with an address) = %v", err)
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	body := strings.NewReplacer(`"nginx"`, `"NGINX"`, `"cpu":1`, `"cpu":0`, `"location"`, `"lokation"`).Replace(valid)
	_, err := Decode([]byte(body), v2023, "web")
	e, ok := errors.AsType[*fault.Error](err)
	if !ok || len(e.Details) != 3 {
		t.Fatalf("Decode = %v with details %+v, want three", err, e)
	}
	var targets []string
	for _, d := range e.Details {
		targets = append(targets, d.Target)
	}
	if got, want := strings.Join(targets, " "), "properties.containers[0].properties.image properties.containers[0].properties.resources.requests.cpu lokation"; got != want {
		t.Errorf("targets = %s, want %s", got, want)
	}
}

func TestNotJSON(t *testing.T) {
	for body, words := range map[string]string{"": "empty", "{": "too early", "[]": "an array", `{"a":1}{}`: "after", "{]": "byte 2", "nul": "not valid JSON"} {
		if _, err := Decode([]byte(body), v2023, "web"); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("Decode(%q) = %v, want %q", body, err, words)
		}
	}
}

func TestReadOnlyFieldsAreIgnored(t *testing.T) {
	g := &group.Group{Ref: group.Ref{Subscription: "s", ResourceGroup: "r", Name: "web"}, Location: "local", Desired: group.Run, Epoch: 1}
	req, err := Decode([]byte(valid), v2023, "web")
	if err != nil {
		t.Fatal(err)
	}
	g.Spec = req.Spec
	for _, v := range version {
		out, err := json.Marshal(Render(View{Group: g, Status: &group.Status{Epoch: 1, State: group.Running, Containers: []group.ContainerStatus{{Name: "main", Current: group.Moment{State: group.Started}}}}}, v, g.Created))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Decode(out, v, "web"); err != nil {
			t.Errorf("%s: Decode(Render) = %v", v.Name, err)
		}
	}
}
