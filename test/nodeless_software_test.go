package test

import (
	"context"
	"fmt"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
)

// TestNodelessSoftware runs real software on a cluster without nodes: nginx as a Deployment behind a Service, which an
// autoscaler makes larger under load and smaller after it, and redis as a StatefulSet whose pod comes back under its
// name.
func TestNodelessSoftware(t *testing.T) {
	p := nodeless(t)
	if !exists("../bin/metrics-server") {
		t.Skip("bin/metrics-server is missing: make kubernetes")
	}
	const conf = "daemon off;\nerror_log stderr;\npid /tmp/nginx.pid;\nevents {}\nhttp { access_log off; server { listen 80; root /www; } }\n"
	const nginx, redis = "registry.test/nginx:2", "registry.test/redis:2"
	for _, err := range []error{
		p.importImage(debian(t, nginx, v1.Config{Cmd: []string{"/usr/sbin/nginx", "-c", "/etc/test.conf"}}, []string{"nginx"},
			entry{path: "etc/test.conf", body: conf, mode: 0o644}, entry{path: "www/index.html", body: "nginx is here", mode: 0o644}, entry{path: "var/lib/nginx", dir: true}), nil),
		p.importImage(debian(t, redis, v1.Config{Cmd: []string{"/usr/bin/redis-server", "--bind", "0.0.0.0", "--protected-mode", "no"}}, []string{"redis-server", "redis-tools", "dash"}), nil),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	kube := p.cluster()
	t.Run("software", func(t *testing.T) {
		for name, test := range map[string]func(*platform, kubernetes.Interface, string){"redis": redisAsStatefulSet, "nginx": nginxUnderLoad} {
			ref := map[string]string{"redis": redis, "nginx": nginx}[name]
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(p.in(t), kube, ref)
			})
		}
	})
}

func pod(app, ref string, command ...string) corev1.PodTemplateSpec {
	t := podTemplate(app, "", corev1.RestartPolicyAlways)
	t.Spec.Containers[0].Image, t.Spec.Containers[0].Command = ref, command
	return t
}

func tcpReady(port int32) *corev1.Probe {
	return &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(port)}}}
}

// expose makes a Service in front of an app; headless without an address of its own.
func (p *platform) expose(kube kubernetes.Interface, app string, port int32, headless bool) {
	p.Helper()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: app}, Spec: corev1.ServiceSpec{Selector: map[string]string{"app": app}, Ports: []corev1.ServicePort{{Port: port}}}}
	if headless {
		s.Spec.ClusterIP = corev1.ClusterIPNone
	}
	if _, err := kube.CoreV1().Services("default").Create(p.Context(), s, metav1.CreateOptions{}); err != nil {
		p.Fatal(err)
	}
}

// redisAsStatefulSet writes to one of two members and reads it back by way of its name from the other; then the pod is
// deleted and comes back under the same name.
func redisAsStatefulSet(p *platform, kube kubernetes.Interface, ref string) {
	template := pod("redis", ref)
	template.Spec.Containers[0].ReadinessProbe = tcpReady(6379)
	p.expose(kube, "redis", 6379, true)
	sets := kube.AppsV1().StatefulSets("default")
	if _, err := sets.Create(p.Context(), &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "redis"}, Spec: appsv1.StatefulSetSpec{Replicas: new(int32(2)), ServiceName: "redis",
		Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "redis"}}, Template: template}}, metav1.CreateOptions{}); err != nil {
		p.Fatal(err)
	}
	both := func(ctx context.Context) error {
		s, err := sets.Get(ctx, "redis", metav1.GetOptions{})
		if err == nil && s.Status.ReadyReplicas != 2 {
			err = fmt.Errorf("%d of 2 are ready", s.Status.ReadyReplicas)
		}
		return err
	}
	p.eventually("two members of redis", both)
	// A name of the cluster leads from one member to the other, through the cluster's name server.
	ask := func(member, host, command string) (string, error) {
		group, err := p.groupOf(kube, member)
		if err != nil {
			return "", err
		}
		out, code, err := p.tryExec(group, "c", "redis-cli -h "+host+" "+command)
		if err == nil && code != 0 {
			err = fmt.Errorf("exit code %d: %s", code, out)
		}
		return out, err
	}
	p.eventually("a value over the name of a member", func(context.Context) error {
		out, err := ask("redis-1", "redis-0.redis.default.svc.cluster.local", "set key kept")
		if err == nil && out != "OK" {
			err = fmt.Errorf("set = %q", out)
		}
		return err
	})
	if out, err := ask("redis-0", "localhost", "get key"); err != nil || out != "kept" {
		p.Errorf("get key = %q, %v, want kept", out, err)
	}
	before, err := kube.CoreV1().Pods("default").Get(p.Context(), "redis-1", metav1.GetOptions{})
	if err != nil {
		p.Fatal(err)
	}
	if err := kube.CoreV1().Pods("default").Delete(p.Context(), "redis-1", metav1.DeleteOptions{}); err != nil {
		p.Fatal(err)
	}
	p.eventually("another redis-1", func(ctx context.Context) error {
		after, err := kube.CoreV1().Pods("default").Get(ctx, "redis-1", metav1.GetOptions{})
		if err == nil && after.UID == before.UID {
			err = fmt.Errorf("it is the one that was deleted")
		}
		return err
	})
	p.eventually("two members again", both)
}

// groupOf is the name of a pod's group.
func (p *platform) groupOf(kube kubernetes.Interface, name string) (string, error) {
	pod, err := kube.CoreV1().Pods("default").Get(p.Context(), name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	list, err := p.client.ListGroups(p.Context(), "")
	if err != nil {
		return "", err
	}
	for i := range list {
		if list[i].Tags["kubernetes.uid"] == string(pod.UID) {
			return list[i].Name, nil
		}
	}
	return "", fmt.Errorf("pod %s has no group", name)
}

// nginxUnderLoad lets a HorizontalPodAutoscaler add pods to a Deployment while others ask it for pages as fast as they
// can, and take them away again when nobody asks.
func nginxUnderLoad(p *platform, kube kubernetes.Interface, ref string) {
	web := pod("nginx", ref)
	web.Spec.Containers[0].ReadinessProbe = tcpReady(80)
	web.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m")}
	p.expose(kube, "nginx", 80, false)
	deployments, scalers := kube.AppsV1().Deployments("default"), kube.AutoscalingV2().HorizontalPodAutoscalers("default")
	p.deploy(kube, "nginx", 1, web)
	p.eventually("a ready nginx", func(ctx context.Context) error { return ready(ctx, kube, "nginx", 1) })
	now := &autoscalingv2.HPAScalingRules{StabilizationWindowSeconds: new(int32(0))}
	if _, err := scalers.Create(p.Context(), &autoscalingv2.HorizontalPodAutoscaler{ObjectMeta: metav1.ObjectMeta{Name: "nginx"}, Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
		ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "nginx"}, MinReplicas: new(int32(1)), MaxReplicas: 3,
		Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{Name: corev1.ResourceCPU,
			Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: new(int32(50))}}}},
		Behavior: &autoscalingv2.HorizontalPodAutoscalerBehavior{ScaleDown: now, ScaleUp: now}}}, metav1.CreateOptions{}); err != nil {
		p.Fatal(err)
	}
	service, err := kube.CoreV1().Services("default").Get(p.Context(), "nginx", metav1.GetOptions{})
	if err != nil {
		p.Fatal(err)
	}
	p.deploy(kube, "load", 1, podTemplate("load", "while :; do wget -q -O /dev/null http://"+service.Spec.ClusterIP+"/; done", corev1.RestartPolicyAlways))
	replicas := func(enough func(int32) bool) func(context.Context) error {
		return func(ctx context.Context) error {
			d, err := deployments.Get(ctx, "nginx", metav1.GetOptions{})
			if err != nil || enough(d.Status.ReadyReplicas) {
				return err
			}
			h, err := scalers.Get(ctx, "nginx", metav1.GetOptions{})
			return fmt.Errorf("%d replicas are ready, the autoscaler says %+v %v", d.Status.ReadyReplicas, h.Status, err)
		}
	}
	p.eventually("more pods under load", replicas(func(n int32) bool { return n > 1 }))
	if err := deployments.Delete(p.Context(), "load", metav1.DeleteOptions{}); err != nil {
		p.Fatal(err)
	}
	p.eventually("one pod after the load", replicas(func(n int32) bool { return n == 1 }))
}

func (p *platform) deploy(kube kubernetes.Interface, app string, replicas int32, template corev1.PodTemplateSpec) {
	p.Helper()
	if _, err := kube.AppsV1().Deployments("default").Create(p.Context(), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: app},
		Spec: appsv1.DeploymentSpec{Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}, Template: template}}, metav1.CreateOptions{}); err != nil {
		p.Fatal(err)
	}
}
