package virtualnode

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

var update = flag.Bool("update", false, "rewrite the golden groups")

// podGroup is the group of testdata/pod.yaml. It lies with the API's golden requests: their own test proves that the
// API takes it.
const podGroup = "../../api/golden/2026-11-01-spillway/pod.request.json"

func TestPodBecomesGroup(t *testing.T) {
	cluster := testCluster()
	r, err := translate(translation{readPod(t, "testdata/pod.yaml"), cluster, cluster, testFacts()})
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	if err := enc.Encode(r); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(podGroup, out.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(podGroup)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), out.String()); diff != "" {
		t.Errorf("group differs (-want +got):\n%s", diff)
	}
}

// TestTranslationIsTheSameEveryTime would find maps that are walked in their own order: a group that looks changed is
// sent again.
func TestTranslationIsTheSameEveryTime(t *testing.T) {
	pod, cluster := readPod(t, "testdata/pod.yaml"), testCluster()
	var first []byte
	for range 20 {
		r, err := translate(translation{pod, cluster, cluster, testFacts()})
		if err != nil {
			t.Fatal(err)
		}
		body := liveBytes(r)
		if first != nil && !bytes.Equal(first, body) {
			t.Fatalf("two translations of one pod differ:\n%s\n%s", first, body)
		}
		first = body
	}
}

// TestWhatIsMissingIsSaid finds the kubelet's words for each thing that a pod refers to and that is not there.
func TestWhatIsMissingIsSaid(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*corev1.PodSpec)
		want   string
		volume string
	}{
		"config volume": {func(s *corev1.PodSpec) {
			s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}}}}}
		}, `configmap "none" not found`, "v"},
		"secret volume": {func(s *corev1.PodSpec) {
			s.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "none"}}}}
		}, `secret "none" not found`, "v"},
		"env": {func(s *corev1.PodSpec) {
			s.Containers[0].Env = []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "login"}, Key: "none"}}}}
		}, "couldn't find key none in Secret shop/login", ""},
		"sub path": {func(s *corev1.PodSpec) {
			s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", SubPathExpr: "$(NOBODY)/x"}}
		}, `failed to prepare subPathExpr "$(NOBODY)/x"`, ""},
		"sub path that climbs": {func(s *corev1.PodSpec) {
			s.Containers[0].Env = []corev1.EnvVar{{Name: "UP", Value: ".."}}
			s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", SubPathExpr: "a/$(UP)"}}
		}, "failed to prepare subPathExpr", ""},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := testCluster()
			_, err := translate(translation{shopPod(func(p *corev1.Pod) { c.change(&p.Spec) }), cluster, cluster, testFacts()})
			if _, ok := errors.AsType[*configError](err); !ok || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("error = %v, want a *configError with %q", err, c.want)
			}
			m, ok := errors.AsType[*mountError](err)
			if ok != (c.volume != "") || ok && m.volume != c.volume {
				t.Errorf("mount error = %v, want one of volume %q", m, c.volume)
			}
		})
	}
}

func TestGroupNamesAreValidAndTheirOwn(t *testing.T) {
	name := func(pod, uid string) string {
		return groupName(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: pod, UID: types.UID(uid)}})
	}
	const uid = "3f2c0000-1111-4222-8333-444455556666"
	for pod, want := range map[string]string{
		"web":                           "web-3f2c00001111",
		"web.example.com":               "web-example-com-3f2c00001111",
		strings.Repeat("a", 253):        strings.Repeat("a", 50) + "-3f2c00001111",
		strings.Repeat("a", 49) + "-bc": strings.Repeat("a", 49) + "-3f2c00001111",
	} {
		if got := name(pod, uid); got != want || len(got) > 63 {
			t.Errorf("groupName(%q) = %q, want %q", pod, got, want)
		}
	}
	if name("web", uid) == name("web", "3f2c0000-1112-4222-8333-444455556666") {
		t.Error("two pods of one name have one group")
	}
}

func TestHostnames(t *testing.T) {
	for _, c := range []struct {
		change     func(*corev1.PodSpec)
		name, want string
		alias      string // name in the cluster's DNS
	}{
		{nil, "front", "front", ""},
		{nil, strings.Repeat("a", 62) + ".b", strings.Repeat("a", 62), ""},
		{func(s *corev1.PodSpec) { s.Hostname = "till" }, "front", "till", ""},
		{func(s *corev1.PodSpec) { s.Subdomain = "tills" }, "front", "front", "front.tills.shop.svc.cluster.local"},
		{func(s *corev1.PodSpec) { s.Hostname, s.Subdomain = "till", "tills" }, "front", "till", "till.tills.shop.svc.cluster.local"},
		{func(s *corev1.PodSpec) { s.Subdomain, s.SetHostnameAsFQDN = "tills", ptr(true) }, "front", "front.tills.shop.svc.cluster.local", "front.tills.shop.svc.cluster.local"},
		{func(s *corev1.PodSpec) { s.SetHostnameAsFQDN = ptr(true) }, "front", "front", ""},
		{func(s *corev1.PodSpec) { s.Hostname, s.HostnameOverride = "till", ptr("over.ride") }, "front", "over.ride", ""},
	} {
		pod := shopPod(func(p *corev1.Pod) {
			p.Name = c.name
			if c.change != nil {
				c.change(&p.Spec)
			}
		})
		if got := hostnameOf(pod, testFacts()); got != c.want {
			t.Errorf("hostnameOf(%+v) = %q, want %q", pod.Spec, got, c.want)
		}
		alias := ""
		for _, a := range aliasesOf(pod, testFacts()) {
			alias = a.Hostnames[0]
		}
		if alias != c.alias {
			t.Errorf("name of its own in /etc/hosts = %q, want %q", alias, c.alias)
		}
	}
}

func TestDNSPolicies(t *testing.T) {
	cluster := "shop.svc.cluster.local svc.cluster.local cluster.local corp.example"
	for _, c := range []struct {
		name   string
		policy corev1.DNSPolicy
		own    *corev1.PodDNSConfig
		noDNS  bool // the cluster has no name server
		want   *dnsConfig
	}{
		{"cluster first", corev1.DNSClusterFirst, nil, false, &dnsConfig{[]string{"10.96.0.10"}, cluster, "ndots:5"}},
		{"not said", "", nil, false, &dnsConfig{[]string{"10.96.0.10"}, cluster, "ndots:5"}},
		{"the machine's", corev1.DNSDefault, nil, false, &dnsConfig{[]string{"192.0.2.53"}, "corp.example", "timeout:2"}},
		{"a cluster without", corev1.DNSClusterFirst, nil, true, &dnsConfig{[]string{"192.0.2.53"}, "corp.example", "timeout:2"}},
		{"none", corev1.DNSNone, nil, false, nil},
		{"only its own", corev1.DNSNone, &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.99"}, Searches: []string{"x.example"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: ptr("1")}}},
			false, &dnsConfig{[]string{"192.0.2.99"}, "x.example", "ndots:1"}},
		{"both", corev1.DNSClusterFirst, &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.99"}, Searches: []string{"x.example"}, Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: ptr("1")}, {Name: "edns0"}}},
			false, &dnsConfig{[]string{"10.96.0.10", "192.0.2.99"}, cluster + " x.example", "ndots:1 edns0"}},
	} {
		f := testFacts()
		if c.noDNS {
			f.clusterDNS = ""
		}
		got := dnsOf(shopPod(func(p *corev1.Pod) { p.Spec.DNSPolicy, p.Spec.DNSConfig = c.policy, c.own }), f)
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
		if diff := cmp.Diff(testFacts().resolver, f.resolver); diff != "" {
			t.Errorf("%s has changed what all pods share:\n%s", c.name, diff)
		}
	}
}

func TestHostResolver(t *testing.T) {
	got := hostResolver("# made by hand\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver ::1\nnameserver 2001:db8::53\nnameserver rubbish\nsearch a.example\nsearch b.example c.example\noptions ndots:3 rotate\nnameserver\n")
	want := dnsConfig{[]string{"192.0.2.1", "2001:db8::53"}, "b.example c.example", "ndots:3 rotate"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("hostResolver (-want +got):\n%s", diff)
	}
}

func TestRegistryLogins(t *testing.T) {
	for _, c := range []struct {
		name string
		kind corev1.SecretType
		key  string
		body string
		want []credential
	}{
		{"names and passwords", corev1.SecretTypeDockerConfigJson, corev1.DockerConfigJsonKey, `{"auths":{"b.example":{"username":"u","password":"p"},"https://a.example:5000/v1/":{"username":"v","password":"q"}}}`,
			[]credential{{"b.example", "u", "p"}, {"a.example:5000", "v", "q"}}},
		{"encoded", corev1.SecretTypeDockerConfigJson, corev1.DockerConfigJsonKey, `{"auths":{"a.example":{"auth":"dTpwOndpdGg6Y29sb25z"}}}`, []credential{{"a.example", "u", "p:with:colons"}}},
		{"the old file", corev1.SecretTypeDockercfg, corev1.DockerConfigKey, `{"a.example":{"username":"u","password":"p"}}`, []credential{{"a.example", "u", "p"}}},
		{"an entry that is none", corev1.SecretTypeDockerConfigJson, corev1.DockerConfigJsonKey, `{"auths":{"a.example":{},"b.example":{"auth":"!!"}}}`, nil},
		{"rubbish", corev1.SecretTypeDockerConfigJson, corev1.DockerConfigJsonKey, `{`, nil},
		{"another kind", corev1.SecretTypeOpaque, corev1.DockerConfigJsonKey, `{"auths":{"a.example":{"username":"u","password":"p"}}}`, nil},
	} {
		got := registryLogins(&corev1.Secret{Type: c.kind, Data: map[string][]byte{c.key: []byte(c.body)}})
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// TestFirstPullSecretWins is the order in which a kubelet tries them.
func TestFirstPullSecretWins(t *testing.T) {
	cluster := testCluster()
	for name, password := range map[string]string{"first": "one", "second": "two"} {
		cluster.secrets["shop/"+name] = &corev1.Secret{Type: corev1.SecretTypeDockercfg, Data: map[string][]byte{corev1.DockerConfigKey: []byte(`{"a.example":{"username":"u","password":"` + password + `"}}`)}}
	}
	pod := shopPod(func(p *corev1.Pod) {
		p.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "gone"}, {Name: "first"}, {Name: "second"}}
	})
	r, err := translate(translation{pod, cluster, cluster, testFacts()})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]credential{{"a.example", "u", "one"}}, r.Properties.Credentials); diff != "" {
		t.Errorf("credentials (-want +got):\n%s", diff)
	}
	cluster.away = errAway
	if _, err := translate(translation{pod, cluster, cluster, testFacts()}); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("with an API that is away: %v, want an error that names the secret", err)
	}
}

// TestSecurityContextsJoin proves that the container's word comes before the pod's.
func TestSecurityContextsJoin(t *testing.T) {
	pod := shopPod(func(p *corev1.Pod) {
		p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr(int64(1)), RunAsGroup: ptr(int64(2)), RunAsNonRoot: ptr(true), FSGroup: ptr(int64(4)), SupplementalGroups: []int64{3}}
	})
	want := &security{User: ptr(int64(1)), Group: ptr(int64(2)), NonRoot: true, AllowEscalation: true, Groups: []int64{3, 4}}
	if diff := cmp.Diff(want, securityOf(pod, &pod.Spec.Containers[0])); diff != "" {
		t.Errorf("the pod's (-want +got):\n%s", diff)
	}
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{RunAsUser: ptr(int64(10)), RunAsNonRoot: ptr(false), AllowPrivilegeEscalation: ptr(false), ReadOnlyRootFilesystem: ptr(true),
		Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"CAP_CHOWN", "KILL"}, Drop: []corev1.Capability{"ALL"}}}
	want = &security{User: ptr(int64(10)), Group: ptr(int64(2)), ReadOnlyRoot: true, Groups: []int64{3, 4}, Capabilities: &capabilities{Add: []string{"CHOWN", "KILL"}, Drop: []string{"ALL"}}}
	if diff := cmp.Diff(want, securityOf(pod, &pod.Spec.Containers[0])); diff != "" {
		t.Errorf("the container's (-want +got):\n%s", diff)
	}
	if len(pod.Spec.SecurityContext.SupplementalGroups) != 1 {
		t.Error("the pod itself was changed")
	}
}
