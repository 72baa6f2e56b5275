package virtualnode

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
)

// endpoint is one of a slice; a condition that is not given is left to the reader, as the API has it.
func endpoint(address string, ready, serving, terminating *bool) discoveryv1.Endpoint {
	return discoveryv1.Endpoint{Addresses: []string{address}, Conditions: discoveryv1.EndpointConditions{Ready: ready, Serving: serving, Terminating: terminating}}
}

// slice has ports as name=number.
func slice(endpoints []discoveryv1.Endpoint, ports ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{AddressType: discoveryv1.AddressTypeIPv4, Endpoints: endpoints}
	for _, p := range ports {
		name, number, _ := strings.Cut(p, "=")
		var n int32
		if _, err := fmt.Sscan(number, &n); err != nil {
			panic(err)
		}
		s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Port: &n})
	}
	return s
}

// listed is endpoints as text: address with its ports.
func listed(list []addressEndpoint) string {
	var out []string
	for _, e := range list {
		text := e.Address
		for _, p := range e.Ports {
			text += fmt.Sprintf(" %s=%d", p.Name, p.Port)
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

func TestEndpointsOfSlices(t *testing.T) {
	yes, no := ptr(true), ptr(false)
	names := map[string]string{"http": "http", "metrics": "metrics"}
	six := slice([]discoveryv1.Endpoint{endpoint("2001:db8::1", yes, nil, nil)}, "http=8080")
	six.AddressType = discoveryv1.AddressTypeIPv6
	for _, c := range []struct {
		name string
		list []*discoveryv1.EndpointSlice
		want string
	}{
		{"none", nil, ""},
		{"ready, and not said", []*discoveryv1.EndpointSlice{slice([]discoveryv1.Endpoint{endpoint("10.0.0.2", yes, yes, no), endpoint("10.0.0.1", nil, nil, nil)}, "http=8080")}, "10.0.0.1 http=8080, 10.0.0.2 http=8080"},
		{"not ready", []*discoveryv1.EndpointSlice{slice([]discoveryv1.Endpoint{endpoint("10.0.0.1", no, nil, nil), endpoint("10.0.0.2", yes, nil, nil)}, "http=8080")}, "10.0.0.2 http=8080"},
		{"ready ones before those that go", []*discoveryv1.EndpointSlice{slice([]discoveryv1.Endpoint{endpoint("10.0.0.1", no, yes, yes), endpoint("10.0.0.2", yes, yes, no)}, "http=8080")}, "10.0.0.2 http=8080"},
		{"those that go when none is ready", []*discoveryv1.EndpointSlice{slice([]discoveryv1.Endpoint{endpoint("10.0.0.1", no, yes, yes), endpoint("10.0.0.2", no, no, yes), endpoint("10.0.0.3", no, yes, no)}, "http=8080")}, "10.0.0.1 http=8080"},
		{"several slices, a port in each", []*discoveryv1.EndpointSlice{slice([]discoveryv1.Endpoint{endpoint("10.0.0.1", yes, nil, nil)}, "http=8080", "metrics=9090"),
			slice([]discoveryv1.Endpoint{endpoint("10.0.0.2", yes, nil, nil)}, "http=8081"), slice([]discoveryv1.Endpoint{endpoint("10.0.0.1", yes, nil, nil)}, "http=8080")},
			"10.0.0.1 http=8080 metrics=9090, 10.0.0.2 http=8081"},
		{"a port that the Service does not have", []*discoveryv1.EndpointSlice{slice([]discoveryv1.Endpoint{endpoint("10.0.0.1", yes, nil, nil)}, "admin=1")}, ""},
		{"another family", []*discoveryv1.EndpointSlice{six}, ""},
	} {
		var list []any
		for _, s := range c.list {
			list = append(list, s)
		}
		if got := listed(endpointsOf(list, names)); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// feedOf has slices of shop/web in its cache, and no connection to anything.
func feedOf(t *testing.T, list ...*discoveryv1.EndpointSlice) *serviceFeed {
	t.Helper()
	n := &Node{cluster: "c1", cfg: Config{Network: "k8s-c1"}, informers: informers.NewSharedInformerFactory(fake.NewClientset(), 0)}
	f, err := newServiceFeed(t.Context(), n)
	if err != nil {
		t.Fatal(err)
	}
	for i, s := range list {
		s.Namespace, s.Name, s.Labels = "shop", fmt.Sprint("web-", i), map[string]string{discoveryv1.LabelServiceName: "web"}
		if err := f.slices.GetIndexer().Add(s); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func TestServiceBecomesAddress(t *testing.T) {
	f := feedOf(t, slice([]discoveryv1.Endpoint{endpoint("10.0.0.1", ptr(true), nil, nil)}, "http=8080", "=53"))
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "web", UID: "3f2c0000-1111-4222-8333-444455556666"},
		Spec: corev1.ServiceSpec{ClusterIP: "10.96.1.2", SessionAffinity: corev1.ServiceAffinityClientIP, SessionAffinityConfig: &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr(int32(90))}},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80, Protocol: corev1.ProtocolTCP}, {Port: 53, Protocol: corev1.ProtocolUDP}, {Name: "sctp", Port: 9, Protocol: corev1.ProtocolSCTP}}}}
	want := &address{Tags: map[string]string{tagCluster: "c1", tagNamespace: "shop", tagService: "web"}, Properties: addressProperties{Network: "k8s-c1", Address: "10.96.1.2", Affinity: "ClientIP", Timeout: 90,
		Ports:     []addressPort{{"http", 80, "TCP"}, {"p53-udp", 53, "UDP"}},
		Endpoints: []addressEndpoint{{"10.0.0.1", []endpointPort{{"http", 8080}, {"p53-udp", 53}}}}}}
	if diff := cmp.Diff(want, f.addressOf(s)); diff != "" {
		t.Errorf("address (-want +got):\n%s", diff)
	}
	if got := addressName(s); got != "web-3f2c00001111" && !strings.HasSuffix(got, "-3f2c00001111") {
		t.Errorf("name = %q, want the Service's and its uid", got)
	}
	s.Spec.Ports = s.Spec.Ports[2:]
	if got := f.addressOf(s); got != nil {
		t.Errorf("a Service of SCTP alone became %+v", got)
	}
	api := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "https", Port: 443, Protocol: corev1.ProtocolTCP}}}}
	got := f.addressOf(api)
	if !got.Properties.HostEndpoints || got.Properties.Endpoints == nil {
		t.Errorf("the API's Service became %+v: its endpoints are hosts, and the list is there when it is empty", got.Properties)
	}
}

func TestServicesWithAnAddress(t *testing.T) {
	for _, c := range []struct {
		spec corev1.ServiceSpec
		want bool
	}{
		{corev1.ServiceSpec{ClusterIP: "10.96.0.5"}, true},
		{corev1.ServiceSpec{ClusterIP: "10.96.0.5", Type: corev1.ServiceTypeLoadBalancer}, true},
		{corev1.ServiceSpec{ClusterIP: corev1.ClusterIPNone}, false},
		{corev1.ServiceSpec{}, false},
		{corev1.ServiceSpec{ClusterIP: "2001:db8::5"}, false},
		{corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "x.example"}, false},
	} {
		if got := hasAddress(&corev1.Service{Spec: c.spec}); got != c.want {
			t.Errorf("hasAddress(%+v) = %v, want %v", c.spec, got, c.want)
		}
	}
}
