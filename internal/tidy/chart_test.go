package tidy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/template"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// chart is where the Helm chart of the virtual node lies.
const chart = "deploy/charts/spillway-node"

// renderChart renders the chart's objects as Helm does, with the functions that its templates use.
func renderChart(t *testing.T, change func(values map[string]any)) []map[string]any {
	t.Helper()
	values := map[string]any{}
	if err := yaml.Unmarshal([]byte(read(t, chart+"/values.yaml")), &values); err != nil {
		t.Fatal(err)
	}
	change(values)
	set := template.New("chart").Option("missingkey=error")
	set.Funcs(template.FuncMap{
		"quote":  func(v any) string { return fmt.Sprintf("%q", fmt.Sprint(v)) },
		"toJson": func(v any) (string, error) { b, err := json.Marshal(v); return string(b), err },
		"required": func(why string, v any) (any, error) {
			if v == nil || v == "" {
				return nil, fmt.Errorf("%s", why)
			}
			return v, nil
		},
		"include": func(name string, data any) (string, error) {
			var b bytes.Buffer
			err := set.ExecuteTemplate(&b, name, data)
			return b.String(), err
		},
	})
	paths, err := filepath.Glob(filepath.Join(root(t), chart, "templates", "*"))
	if err != nil || len(paths) < 4 {
		t.Fatalf("templates = %v, %v", paths, err)
	}
	if _, err := set.ParseFiles(paths...); err != nil {
		t.Fatal(err)
	}
	data := map[string]any{"Values": values, "Release": map[string]any{"Name": "spillway-node", "Namespace": "spillway"}}
	var out []map[string]any
	for _, path := range paths {
		var b bytes.Buffer
		if err := set.ExecuteTemplate(&b, filepath.Base(path), data); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(path, ".yaml") {
			out = append(out, documents(t, path, b.String())...)
		}
	}
	return out
}

// documents are the objects of a YAML text.
func documents(t *testing.T, path, text string) []map[string]any {
	t.Helper()
	var out []map[string]any
	for i, d := range strings.Split("\n"+text, "\n---\n") {
		o := map[string]any{}
		if err := yaml.UnmarshalStrict([]byte(d), &o); err != nil {
			t.Fatalf("%s, document %d: %v\n%s", path, i+1, err, d)
		}
		out = append(out, o)
	}
	return out
}

// essence is what an object does, without the names and labels in which chart and manifests differ.
func essence(t *testing.T, objects []map[string]any) []string {
	t.Helper()
	var out []string
	for _, o := range objects {
		meta := o["metadata"].(map[string]any)
		what := map[string]any{"kind": o["kind"], "namespace": meta["namespace"], "rules": o["rules"], "subjects": o["subjects"]}
		if spec, ok := o["spec"].(map[string]any); ok {
			what["pod"] = spec["template"].(map[string]any)["spec"]
			what["strategy"], what["replicas"] = spec["strategy"], spec["replicas"]
		}
		if ref, ok := o["roleRef"].(map[string]any); ok && !strings.HasPrefix(ref["name"].(string), "spillway") {
			what["role"] = ref["name"]
		}
		body, err := json.MarshalIndent(what, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(body))
	}
	slices.Sort(out)
	return out
}

func withImage(values map[string]any) {
	values["image"].(map[string]any)["repository"] = "spillway-node"
}

// TestChartAndManifestsSayTheSame: whoever installs the one or the other gives the node the same rights.
func TestChartAndManifestsSayTheSame(t *testing.T) {
	var plain []map[string]any
	for _, name := range []string{"rbac.yaml", "deployment.yaml"} {
		text := read(t, "deploy/manifests/"+name)
		plain = append(plain, documents(t, name, text)...)
	}
	if diff := cmp.Diff(essence(t, plain), essence(t, renderChart(t, withImage))); diff != "" {
		t.Errorf("chart differs from manifests (-manifests +chart):\n%s", diff)
	}
	var list struct{ Resources []string }
	if err := yaml.Unmarshal([]byte(read(t, "deploy/manifests/kustomization.yaml")), &list); err != nil {
		t.Fatal(err)
	}
	for _, name := range list.Resources {
		if _, err := os.Stat(filepath.Join(root(t), "deploy/manifests", name)); err != nil {
			t.Errorf("kustomization.yaml names %s: %v", name, err)
		}
	}
}

// TestChartValuesArrive sets every value that becomes an argument, and looks for it.
func TestChartValuesArrive(t *testing.T) {
	objects := renderChart(t, func(v map[string]any) {
		withImage(v)
		v["node"] = map[string]any{"name": "burst", "zone": "z1", "labels": map[string]any{"a": "b"}, "taint": false, "capacity": "quota", "port": 11250}
		v["platform"] = map[string]any{"secret": "other", "resourceGroup": "rg", "network": "net", "runtimeClasses": map[string]any{"strong": "gvisor"}, "allow": []any{"unconfined-seccomp", "host-network"}, "roomTimeout": "5m"}
		v["services"], v["clusterDomain"], v["clusterDNS"] = false, "corp.example", "10.0.0.10"
		v["rbac"] = map[string]any{"watchObjects": true, "approveOwnCertificate": false}
		v["tolerations"], v["priorityClassName"] = []any{map[string]any{"operator": "Exists"}}, "system-cluster-critical"
	})
	body, err := json.Marshal(objects)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"--name=burst"`, `"--zone=z1"`, `"--labels=a=b"`, `"--no-taint"`, `"--capacity=quota"`, `"--listen=:11250"`, `"--resource-group=rg"`, `"--network=net"`,
		`"--runtime-class=strong=gvisor"`, `"--allow=unconfined-seccomp"`, `"--allow=host-network"`, `"--room-timeout=5m"`, `"--services=false"`, `"--cluster-domain=corp.example"`, `"--cluster-dns=10.0.0.10"`,
		`"secretName":"other"`, `"containerPort":11250`, `"resourceNames":["burst"]`, `["get","watch"]`, `[{"operator":"Exists"}]`, `"system-cluster-critical"`} {
		if !bytes.Contains(body, []byte(want)) {
			t.Errorf("the rendered chart lacks %s", want)
		}
	}
	if bytes.Contains(body, []byte("signers")) {
		t.Error("the right to approve certificates is there, which was switched off")
	}
}
