package test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
)

// nodeAgent is a pod as a node agent's: of the host, and listening on the host's address alone.
func nodeAgent(port int) corev1.PodSpec {
	from := func(path string) *corev1.EnvVarSource {
		return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
	}
	spec := podTemplate("agent", fmt.Sprintf("mkdir /www; echo from-the-host >/www/index.html; head -n 1 /etc/hosts; cmp /etc/hosts /host/etc/hosts && echo same; ls -d /proc/$KEEPER; echo $HOST_IP=$POD_IP; exec httpd -f -p $HOST_IP:%d -h /www", port), corev1.RestartPolicyAlways).Spec
	yes := true
	spec.HostNetwork, spec.HostPID, spec.HostIPC = true, true, true
	spec.Volumes = []corev1.Volume{{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}}}
	c := &spec.Containers[0]
	c.SecurityContext = &corev1.SecurityContext{Privileged: &yes}
	c.VolumeMounts = []corev1.VolumeMount{{Name: "host", MountPath: "/host", ReadOnly: true}}
	c.Env = []corev1.EnvVar{{Name: "HOST_IP", ValueFrom: from("status.hostIP")}, {Name: "POD_IP", ValueFrom: from("status.podIP")}}
	c.Ports = []corev1.ContainerPort{{ContainerPort: int32(port)}}
	c.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt(port)}}}
	return spec
}

// TestPodsOfTheHost runs a pod as node agents are on a cluster whose administrator allows it: with the node's address,
// ready at that, behind a Service that other pods ask.
func TestPodsOfTheHost(t *testing.T) {
	p := nodeless(t, "--allow", everything)
	kube := p.cluster()
	port := freePort(t)
	agent := nodeAgent(port)
	agent.Containers[0].Env = append(agent.Containers[0].Env, corev1.EnvVar{Name: "KEEPER", Value: itoa(p.keeperPid())})
	pod := p.createPod(kube, "agent", agent)
	if _, err := kube.CoreV1().Services("default").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "agent"},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "agent"}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt(port)}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p.eventually("a ready agent", func(ctx context.Context) (err error) {
		if pod, err = kube.CoreV1().Pods("default").Get(ctx, "agent", metav1.GetOptions{}); err == nil && (len(pod.Status.ContainerStatuses) == 0 || !pod.Status.ContainerStatuses[0].Ready) {
			err = fmt.Errorf("not ready: %s %s", pod.Status.Phase, pod.Status.Message)
		}
		return err
	})
	s := pod.Status
	if s.HostIP == "" || s.PodIP != s.HostIP || len(s.PodIPs) != 1 || s.PodIPs[0].IP != s.HostIP {
		t.Errorf("hostIP %s, podIP %s, podIPs %v: want the node's address for all", s.HostIP, s.PodIP, s.PodIPs)
	}
	if out, err := fetch(fmt.Sprintf("http://%s:%d/", s.HostIP, port)); out != "from-the-host" {
		t.Errorf("at the node's address = %q, %v", out, err)
	}
	log := p.podLog(kube, "agent")
	for _, want := range []string{"same", "/proc/" + itoa(p.keeperPid()), s.HostIP + "=" + s.HostIP} {
		if !strings.Contains(log, want) {
			t.Errorf("the agent did not see %q:\n%s", want, log)
		}
	}
	if strings.HasPrefix(log, "# Kubernetes-managed hosts file.") {
		t.Errorf("its /etc/hosts is a pod's:\n%s", log)
	}
	p.createPod(kube, "ask", podTemplate("ask", "head -n 1 /etc/hosts; until wget -qO- http://$AGENT_SERVICE_HOST/; do sleep 0.2; done", corev1.RestartPolicyNever).Spec)
	p.eventually("a pod that asks by the Service", func(ctx context.Context) error {
		pod, err := kube.CoreV1().Pods("default").Get(ctx, "ask", metav1.GetOptions{})
		if err == nil && pod.Status.Phase != corev1.PodSucceeded {
			err = errors.New("it is " + string(pod.Status.Phase))
		}
		return err
	})
	// The cluster's names and Services are there in the host's network, too.
	looker := podTemplate("look", asking, corev1.RestartPolicyOnFailure).Spec
	looker.Containers[0].Command[2] = strings.ReplaceAll(strings.ReplaceAll(looker.Containers[0].Command[2], "web.default", "agent.default"), "grep ^web-", "grep from-the-host")
	looker.HostNetwork, looker.DNSPolicy = true, corev1.DNSClusterFirstWithHostNet
	p.createPod(kube, "look", looker)
	p.eventually("a pod that asks from the host's network", func(ctx context.Context) error {
		pod, err := kube.CoreV1().Pods("default").Get(ctx, "look", metav1.GetOptions{})
		if err == nil && (pod.Status.Phase != corev1.PodSucceeded || !strings.Contains(p.podLog(kube, "look"), "from-the-host")) {
			err = errors.New("it is " + string(pod.Status.Phase))
		}
		return err
	})
	if log := p.podLog(kube, "ask"); !strings.HasPrefix(log, "# Kubernetes-managed hosts file.\n") || !strings.Contains(log, "from-the-host") {
		t.Errorf("the pod that asked said\n%s", log)
	}
	if err := kube.CoreV1().Pods("default").Delete(t.Context(), "agent", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	p.eventually("the end of the agent", func(context.Context) error {
		if _, err := fetch(fmt.Sprintf("http://%s:%d/", s.HostIP, port)); err == nil {
			return errors.New("it still answers")
		}
		return nil
	})
}

// createPod makes a pod as soon as its service account is there.
func (p *platform) createPod(kube kubernetes.Interface, name string, spec corev1.PodSpec) *corev1.Pod {
	p.Helper()
	var pod *corev1.Pod
	p.eventually("creation of pod "+name, func(ctx context.Context) (err error) {
		pod, err = kube.CoreV1().Pods("default").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": name}}, Spec: spec}, metav1.CreateOptions{})
		return err
	})
	return pod
}

func (p *platform) podLog(kube kubernetes.Interface, name string) string {
	p.Helper()
	body, err := kube.CoreV1().Pods("default").GetLogs(name, &corev1.PodLogOptions{}).DoRaw(p.Context())
	if err != nil {
		p.Fatalf("log of pod %s: %v", name, err)
	}
	return string(body)
}
