package virtualnode

import (
	"errors"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"
)

// fakeCluster is what a pod may refer to, in memory.
type fakeCluster struct {
	configMaps map[string]*corev1.ConfigMap // namespace/name
	secrets    map[string]*corev1.Secret
	all        []*corev1.Service
	away       error // what every read answers, when the API is away
}

var (
	_ objects = (*fakeCluster)(nil)
	_ tokens  = (*fakeCluster)(nil)
)

func (c *fakeCluster) configMap(namespace, name string) (*corev1.ConfigMap, error) {
	if m := c.configMaps[namespace+"/"+name]; m != nil || c.away != nil {
		return m, c.away
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
}

func (c *fakeCluster) secret(namespace, name string) (*corev1.Secret, error) {
	if s := c.secrets[namespace+"/"+name]; s != nil || c.away != nil {
		return s, c.away
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
}

func (c *fakeCluster) services(namespace string) []*corev1.Service {
	var out []*corev1.Service
	for _, s := range c.all {
		if s.Namespace == namespace || s.Namespace == "default" && s.Name == "kubernetes" {
			out = append(out, s)
		}
	}
	return out
}

func (c *fakeCluster) token(pod *corev1.Pod, p *corev1.ServiceAccountTokenProjection) (string, error) {
	if c.away != nil {
		return "", c.away
	}
	return "token of " + pod.Spec.ServiceAccountName + " for " + p.Audience, nil
}

var errAway = errors.New("the API is away")

// testCluster has one of everything that the tests' pods refer to.
func testCluster() *fakeCluster {
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "shop", Name: name} }
	service := func(namespace, name, address string, ports ...corev1.ServicePort) *corev1.Service {
		return &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.ServiceSpec{ClusterIP: address, Ports: ports}}
	}
	return &fakeCluster{
		configMaps: map[string]*corev1.ConfigMap{
			"shop/settings": {ObjectMeta: meta("settings"), Data: map[string]string{"color": "blue", "size": "XL", "app.ini": "[app]\n"}, BinaryData: map[string][]byte{"logo": {0, 1, 0xff}}},
			"shop/empty":    {ObjectMeta: meta("empty")},
		},
		secrets: map[string]*corev1.Secret{
			"shop/login":    {ObjectMeta: meta("login"), Data: map[string][]byte{"user": []byte("anna"), "password": []byte("canary")}},
			"shop/registry": {ObjectMeta: meta("registry"), Type: corev1.SecretTypeDockerConfigJson, Data: map[string][]byte{corev1.DockerConfigJsonKey: []byte(`{"auths":{"https://images.example/v2/":{"username":"puller","password":"canary"}}}`)}},
		},
		all: []*corev1.Service{
			service("default", "kubernetes", "10.96.0.1", corev1.ServicePort{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP}),
			service("shop", "data-base", "10.96.7.7", corev1.ServicePort{Name: "sql", Port: 5432, Protocol: corev1.ProtocolTCP}, corev1.ServicePort{Name: "stats", Port: 9187, Protocol: corev1.ProtocolUDP}),
			service("shop", "headless", corev1.ClusterIPNone, corev1.ServicePort{Port: 80, Protocol: corev1.ProtocolTCP}),
			service("other", "elsewhere", "10.96.8.8", corev1.ServicePort{Port: 80, Protocol: corev1.ProtocolTCP}),
		},
	}
}

func testFacts() *facts {
	return &facts{nodeName: "virtual-1", nodeIP: "192.0.2.10", clusterDNS: "10.96.0.10", domain: "cluster.local", network: "k8s-c1u57e4a", cluster: "c1u57e4a-0000-4000-8000-000000000000",
		resolver:    dnsConfig{Servers: []string{"192.0.2.53"}, Search: "corp.example", Options: "timeout:2"},
		isolation:   map[string]string{"gvisor": "gvisor"},
		address:     "@address.3f2c@",
		allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100"), corev1.ResourceMemory: resource.MustParse("64Gi"), corev1.ResourceEphemeralStorage: resource.MustParse("1Ti")}}
}

// readPod reads a pod of testdata.
func readPod(t *testing.T, path string) *corev1.Pod {
	t.Helper()
	body, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(body, pod); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return pod
}

func ptr[T any](v T) *T { return &v }

// shopPod is a pod of one container, changed by the test.
func shopPod(change func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "front", UID: "3f2c0000-1111-4222-8333-444455556666", Generation: 3, Labels: map[string]string{"app": "front"}, Annotations: map[string]string{"note": "say \"hi\"", "a": "b"}},
		Spec: corev1.PodSpec{RestartPolicy: corev1.RestartPolicyAlways, ServiceAccountName: "clerk", DNSPolicy: corev1.DNSClusterFirst, Containers: []corev1.Container{{Name: "main", Image: "shop/front:1"}}}}
	if change != nil {
		change(pod)
	}
	return pod
}
