package virtualnode

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// variables are a container's variables as text: name=value, a secret one with !.
func variables(t *testing.T, cluster *fakeCluster, pod *corev1.Pod) ([]string, error) {
	t.Helper()
	e, err := environmentOf(&translation{pod, cluster, cluster, testFacts()}, &pod.Spec.Containers[0])
	if err != nil {
		return nil, err
	}
	var out []string
	for _, v := range e.vars() {
		if v.Secure != nil {
			out = append(out, v.Name+"!"+*v.Secure)
		} else {
			out = append(out, v.Name+"="+*v.Value)
		}
	}
	return out, nil
}

func named(name string) corev1.LocalObjectReference { return corev1.LocalObjectReference{Name: name} }

func fromConfig(name, prefix string, optional *bool) corev1.EnvFromSource {
	return corev1.EnvFromSource{Prefix: prefix, ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: named(name), Optional: optional}}
}

func fromSecret(name, prefix string, optional *bool) corev1.EnvFromSource {
	return corev1.EnvFromSource{Prefix: prefix, SecretRef: &corev1.SecretEnvSource{LocalObjectReference: named(name), Optional: optional}}
}

func configKey(name, key string, optional *bool) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: named(name), Key: key, Optional: optional}}
}

func secretKey(name, key string, optional *bool) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: named(name), Key: key, Optional: optional}}
}

func field(path string) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
}

func amount(container, name, divisor string) *corev1.EnvVarSource {
	ref := &corev1.ResourceFieldSelector{ContainerName: container, Resource: name}
	if divisor != "" {
		ref.Divisor = resource.MustParse(divisor)
	}
	return &corev1.EnvVarSource{ResourceFieldRef: ref}
}

func TestEnvironment(t *testing.T) {
	yes := ptr(true)
	for _, c := range []struct {
		name string
		from []corev1.EnvFromSource
		env  []corev1.EnvVar
		want []string
		err  string
	}{
		{name: "plain, in order", env: []corev1.EnvVar{{Name: "B", Value: "1"}, {Name: "A", Value: ""}}, want: []string{"B=1", "A="}},
		{name: "the last of a name counts", env: []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "A", Value: "2"}}, want: []string{"A=2"}},
		{name: "env over envFrom, later envFrom over earlier", from: []corev1.EnvFromSource{fromConfig("settings", "", nil), fromSecret("login", "", nil), fromConfig("settings", "X_", nil)},
			env:  []corev1.EnvVar{{Name: "color", Value: "red"}, {Name: "user", Value: "nobody"}},
			want: []string{"app.ini=[app]\n", "color=red", "size=XL", "password!canary", "user=nobody", "X_app.ini=[app]\n", "X_color=blue", "X_size=XL"}},
		{name: "references", env: []corev1.EnvVar{{Name: "A", Value: "a"}, {Name: "B", Value: "$(A)$(A)-$$(A)-$(LATER)-$A-$"}, {Name: "LATER", Value: "x"}, {Name: "C", Value: "$(B"}},
			want: []string{"A=a", "B=aa-$(A)-$(LATER)-$A-$", "LATER=x", "C=$(B"}},
		{name: "a reference is not read twice", env: []corev1.EnvVar{{Name: "A", Value: "$$(B)"}, {Name: "B", Value: "b"}, {Name: "C", Value: "$(A)"}}, want: []string{"A=$(B)", "B=b", "C=$(B)"}},
		{name: "made of a secret is a secret", from: []corev1.EnvFromSource{fromSecret("login", "", nil)}, env: []corev1.EnvVar{{Name: "URL", Value: "$(user)@host"}, {Name: "NOT", Value: "$$(user)"}},
			want: []string{"password!canary", "user!anna", "URL!anna@host", "NOT!$(user)"}},
		{name: "keys", env: []corev1.EnvVar{{Name: "A", ValueFrom: configKey("settings", "color", nil)}, {Name: "B", ValueFrom: secretKey("login", "user", nil)}}, want: []string{"A=blue", "B!anna"}},
		{name: "optional ones that are not there", from: []corev1.EnvFromSource{fromConfig("none", "", yes), fromSecret("none", "", yes)},
			env: []corev1.EnvVar{{Name: "A", ValueFrom: configKey("none", "color", yes)}, {Name: "B", ValueFrom: configKey("settings", "none", yes)},
				{Name: "C", ValueFrom: secretKey("none", "user", yes)}, {Name: "D", ValueFrom: secretKey("login", "none", yes)}, {Name: "E", Value: "e"}},
			want: []string{"E=e"}},
		{name: "an object without keys", from: []corev1.EnvFromSource{fromConfig("empty", "", nil)}},
		{name: "no config map", from: []corev1.EnvFromSource{fromConfig("none", "", nil)}, err: `configmap "none" not found`},
		{name: "no secret", from: []corev1.EnvFromSource{fromSecret("none", "", ptr(false))}, err: `secret "none" not found`},
		{name: "no config map for a key", env: []corev1.EnvVar{{Name: "A", ValueFrom: configKey("none", "color", nil)}}, err: `configmap "none" not found`},
		{name: "no key", env: []corev1.EnvVar{{Name: "A", ValueFrom: configKey("settings", "none", ptr(false))}}, err: "couldn't find key none in ConfigMap shop/settings"},
		{name: "no key of a secret", env: []corev1.EnvVar{{Name: "A", ValueFrom: secretKey("login", "none", nil)}}, err: "couldn't find key none in Secret shop/login"},
		{name: "no such field", env: []corev1.EnvVar{{Name: "A", ValueFrom: field("spec.nothing")}}, err: "unsupported fieldPath: spec.nothing"},
		{name: "no such amount", env: []corev1.EnvVar{{Name: "A", ValueFrom: amount("", "usage.cpu", "")}}, err: "unsupported container resource: usage.cpu"},
		{name: "no such container", env: []corev1.EnvVar{{Name: "A", ValueFrom: amount("nobody", "limits.cpu", "")}}, err: "container nobody not found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cluster := testCluster()
			cluster.all = nil
			got, err := variables(t, cluster, shopPod(func(p *corev1.Pod) { p.Spec.Containers[0].EnvFrom, p.Spec.Containers[0].Env = c.from, c.env }))
			if c.err != "" {
				if _, ok := errors.AsType[*configError](err); !ok || err.Error() != c.err {
					t.Fatalf("error = %v, want *configError %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("variables (-want +got):\n%s", diff)
			}
		})
	}
}

// TestAbsentIsNotUnreadable: what is optional may be absent, but an API that is away says nothing of that.
func TestAbsentIsNotUnreadable(t *testing.T) {
	cluster := testCluster()
	cluster.configMaps, cluster.secrets, cluster.away = nil, nil, errAway
	for _, from := range []corev1.EnvFromSource{fromConfig("none", "", ptr(true)), fromSecret("none", "", ptr(true))} {
		_, err := variables(t, cluster, shopPod(func(p *corev1.Pod) { p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{from} }))
		if err == nil || !strings.Contains(err.Error(), errAway.Error()) {
			t.Errorf("error = %v, want that of the API", err)
		}
	}
}

func TestServiceLinks(t *testing.T) {
	find := func(links *bool, namespace string) map[string]string {
		got, err := variables(t, testCluster(), shopPod(func(p *corev1.Pod) { p.Spec.EnableServiceLinks, p.Namespace = links, namespace }))
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for _, v := range got {
			name, value, _ := strings.Cut(v, "=")
			out[name] = value
		}
		return out
	}
	all := find(nil, "shop")
	for name, want := range map[string]string{"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT_HTTPS": "443", "DATA_BASE_SERVICE_HOST": "10.96.7.7", "DATA_BASE_SERVICE_PORT": "5432",
		"DATA_BASE_SERVICE_PORT_STATS": "9187", "DATA_BASE_PORT": "tcp://10.96.7.7:5432", "DATA_BASE_PORT_9187_UDP": "udp://10.96.7.7:9187", "DATA_BASE_PORT_9187_UDP_PROTO": "udp"} {
		if all[name] != want {
			t.Errorf("%s = %q, want %q", name, all[name], want)
		}
	}
	for name := range all {
		if strings.HasPrefix(name, "HEADLESS") || strings.HasPrefix(name, "ELSEWHERE") {
			t.Errorf("there is a variable %s: of a Service without an address, or of another namespace", name)
		}
	}
	if less := find(ptr(false), "shop"); less["DATA_BASE_SERVICE_HOST"] != "" || less["KUBERNETES_SERVICE_HOST"] != "10.96.0.1" {
		t.Errorf("without service links: %v, want only those of the API", less)
	}
	if own := find(nil, "default"); own["KUBERNETES_SERVICE_HOST"] != "10.96.0.1" || own["DATA_BASE_SERVICE_HOST"] != "" {
		t.Errorf("in the API's own namespace: %v", own)
	}
}

func TestDownwardAPI(t *testing.T) {
	pod := shopPod(func(p *corev1.Pod) {
		p.Labels["tier"] = "web"
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1250m"), corev1.ResourceMemory: resource.MustParse("100Mi")},
			Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}}
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "side"})
		p.Spec.InitContainers = []corev1.Container{{Name: "first", Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}}}}
	})
	for _, c := range []struct {
		from *corev1.EnvVarSource
		want string
	}{
		{field("metadata.name"), "front"},
		{field("metadata.namespace"), "shop"},
		{field("metadata.uid"), "3f2c0000-1111-4222-8333-444455556666"},
		{field("metadata.labels['tier']"), "web"},
		{field("metadata.labels['none']"), ""},
		{field("metadata.annotations['note']"), `say "hi"`},
		{field("metadata.labels"), "app=\"front\"\ntier=\"web\""},
		{field("metadata.annotations"), "a=\"b\"\nnote=\"say \\\"hi\\\"\""},
		{field("spec.nodeName"), "virtual-1"},
		{field("spec.serviceAccountName"), "clerk"},
		{field("status.hostIP"), "192.0.2.10"},
		{field("status.hostIPs"), "192.0.2.10"},
		{field("status.podIP"), "@address.3f2c@"},
		{field("status.podIPs"), "@address.3f2c@"},
		{amount("", "requests.cpu", ""), "2"},
		{amount("", "requests.cpu", "1m"), "1250"},
		{amount("", "requests.memory", ""), "104857600"},
		{amount("", "requests.memory", "1Mi"), "100"},
		{amount("", "requests.memory", "1Gi"), "1"},
		{amount("", "limits.memory", "1Mi"), "1024"},
		{amount("", "limits.cpu", ""), "100"},                   // not set: what the node has
		{amount("side", "limits.memory", "1Gi"), "64"},          // of another container
		{amount("side", "requests.memory", ""), "0"},            // not set, and no limit
		{amount("first", "requests.cpu", ""), "2"},              // not set: its limit
		{amount("", "limits.ephemeral-storage", "1Gi"), "1024"}, // of the node
		{amount("", "requests.ephemeral-storage", ""), "0"},     // nothing
		{amount("first", "limits.cpu", "1m"), "2000"},           // of an init container
		{&corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.name"}}, "front"},
	} {
		pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "V", ValueFrom: c.from}}
		cluster := testCluster()
		cluster.all = nil
		got, err := variables(t, cluster, pod)
		if err != nil || len(got) != 1 || got[0] != "V="+c.want {
			t.Errorf("%v = %q, %v, want %q", c.from, got, err, c.want)
		}
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"", "$", "$$", "$(A)", "$$(A)", "$(A", "$()", "$($(A))", "$(A)$(B)$$$(A)"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got := expand(text, func(string) (string, bool) { return "", false })
		// Nothing is known: but for the doubled sign, every byte stays.
		if want := strings.ReplaceAll(text, "$$", "$"); !strings.Contains(text, "$(") && got != want {
			t.Errorf("expand(%q) = %q, want %q", text, got, want)
		}
		if len(got) > len(text) {
			t.Errorf("expand(%q) = %q: longer than it was", text, got)
		}
	})
}
