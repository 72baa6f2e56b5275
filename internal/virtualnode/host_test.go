package virtualnode

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway.dev/spillway/internal/client"
)

// hostPod asks for all that an administrator can allow.
func hostPod() *corev1.Pod {
	return shopPod(func(p *corev1.Pod) {
		s := &p.Spec
		s.HostNetwork, s.HostPID, s.HostIPC, s.Hostname, s.Subdomain = true, true, true, "till", "tills"
		s.DNSPolicy = corev1.DNSClusterFirst
		s.HostAliases = []corev1.HostAlias{{IP: "192.0.2.7", Hostnames: []string{"printer"}}}
		s.Volumes = []corev1.Volume{{Name: "logs", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/var/log", Type: ptr(corev1.HostPathDirectory)}}},
			{Name: "sys", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/sys"}}}}
		c := &s.Containers[0]
		c.SecurityContext = &corev1.SecurityContext{Privileged: ptr(true)}
		c.VolumeMounts = []corev1.VolumeMount{{Name: "logs", MountPath: "/var/log", ReadOnly: true}, {Name: "sys", MountPath: "/sys"}}
		c.Env = []corev1.EnvVar{{Name: "POD_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
			{Name: "HOST_IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.hostIP"}}}}
	})
}

func TestHostPodBecomesGroup(t *testing.T) {
	cluster, f, pod := testCluster(), testFacts(), hostPod()
	f.address = addressOf(pod, f)
	r, err := translate(translation{pod, cluster, cluster, f})
	if err != nil {
		t.Fatal(err)
	}
	p := &r.Properties
	if !p.HostNetwork || !p.HostPID || !p.HostIPC || p.HostAddress != f.nodeIP || p.Network != "" || p.Address != "" || p.Hostname != "" || p.HostsComment != "" {
		t.Errorf("properties = %+v", p)
	}
	if diff := cmp.Diff([]hostAlias{{"192.0.2.7", []string{"printer"}}}, p.HostAliases); diff != "" {
		t.Errorf("aliases (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(&f.resolver, p.DNS); diff != "" {
		t.Errorf("name servers of ClusterFirst in the host's network (-want the host's +got)\n%s", diff)
	}
	if diff := cmp.Diff([]volume{{Name: "logs", HostPath: &hostPath{"/var/log", "Directory"}}, {Name: "sys", HostPath: &hostPath{Path: "/sys"}}}, p.Volumes); diff != "" {
		t.Errorf("volumes (-want +got)\n%s", diff)
	}
	c := &p.Containers[0].Properties
	if !c.Security.Privileged || !ofHost(r) {
		t.Errorf("security = %+v", c.Security)
	}
	for _, e := range c.Env {
		if (e.Name == "POD_IP" || e.Name == "HOST_IP") && *e.Value != f.nodeIP {
			t.Errorf("%s = %s, want the node's address", e.Name, *e.Value)
		}
	}
	if hasFiles(r) {
		t.Error("paths of the host count as files that can change")
	}
	plain := shopPod(func(*corev1.Pod) {})
	if r, err = translate(translation{plain, cluster, cluster, testFacts()}); err != nil || ofHost(r) {
		t.Errorf("an ordinary pod asks for the host: %v", err)
	}
}

// TestHostPodHasTheNodesAddress: the suite and controllers compare the two.
func TestHostPodHasTheNodesAddress(t *testing.T) {
	f, pod := testFacts(), hostPod()
	g := &client.Group{}
	if err := json.Unmarshal([]byte(`{"properties":{"instanceView":{"state":"Running","address":"198.51.100.9"}}}`), g); err != nil {
		t.Fatal(err)
	}
	s := statusOf(pod, g, f, metav1.Now())
	if s.HostIP != f.nodeIP || s.PodIP != f.nodeIP || len(s.PodIPs) != 1 || s.PodIPs[0].IP != f.nodeIP {
		t.Errorf("hostIP %s, podIP %s, podIPs %v, want %s for all", s.HostIP, s.PodIP, s.PodIPs, f.nodeIP)
	}
}
