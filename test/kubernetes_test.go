package test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilexec "k8s.io/client-go/util/exec"
)

// obedient ends as soon as it is told to.
const obedient = "trap 'exit 0' TERM; echo up; while :; do sleep 1000 & wait; done"

// scriptPod is a pod of one container that runs a shell script.
func scriptPod(name, script string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: image, ImagePullPolicy: corev1.PullIfNotPresent,
		Command: []string{"sh", "-c", script}}}}}
}

func (c *virtualCluster) createPod(t *testing.T, pod *corev1.Pod) *corev1.Pod {
	t.Helper()
	out, err := c.kube.CoreV1().Pods("default").Create(t.Context(), pod, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestVirtualNode runs pods on a virtual node that has the rights of the shipped manifests, and kills its process.
func TestVirtualNode(t *testing.T) {
	c := startCluster(t)
	c.until(t, "the node", func(ctx context.Context) error {
		n, err := c.kube.CoreV1().Nodes().Get(ctx, "spillway", metav1.GetOptions{})
		if err == nil && (len(n.Status.Conditions) == 0 || n.Labels["type"] != "virtual-kubelet") {
			err = errors.New("no status yet")
		}
		return err
	})
	// Logs and commands work once the cluster has signed the node's certificate.
	c.createPod(t, scriptPod("caller", obedient))
	c.running(t, "caller")
	c.until(t, "the certificate", func(context.Context) error { _, err := c.shell(t, "caller", "true"); return err })
	t.Run("pods", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *virtualCluster){"service": testService, "config": testConfig, "streams": testStreams, "deletion": testDeletion, "refusal": testRefusal} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, c)
			})
		}
	})
	t.Run("kill", func(t *testing.T) { testKill(t, c) })
}

// testService reaches a Deployment's pods, once they are ready, by the address of their Service.
func testService(t *testing.T, c *virtualCluster) {
	labels := map[string]string{"app": "web"}
	web := scriptPod("web", "hostname >/tmp/index.html; sleep 1; exec httpd -f -p 8080 -h /tmp")
	web.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/index.html", Port: intstr.FromString("http")}}}
	web.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}}
	_, err := c.kube.AppsV1().Deployments("default").Create(t.Context(), &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: appsv1.DeploymentSpec{Replicas: new(int32(2)),
		Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: web.Spec}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	service, err := c.kube.CoreV1().Services("default").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromString("http")}}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Every pod answers, and no call is refused once one is ready.
	seen := map[string]bool{}
	c.until(t, "answers of two pods", func(context.Context) error {
		out, err := c.shell(t, "caller", "timeout 2 wget -qO- http://"+service.Spec.ClusterIP+"/")
		if err != nil && len(seen) > 0 {
			t.Errorf("a call failed after %d pods had answered: %v %s", len(seen), err, out)
		}
		if err == nil {
			seen[out] = true
		}
		if len(seen) < 2 {
			return fmt.Errorf("%d pods have answered, the last call gave %q, %v", len(seen), out, err)
		}
		return nil
	})
	for host := range seen {
		if !strings.HasPrefix(host, "web-") {
			t.Errorf("an answer was %q, want a pod's name", host)
		}
	}
}

// testConfig changes a ConfigMap under a running pod.
func testConfig(t *testing.T, c *virtualCluster) {
	settings := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}, Data: map[string]string{"color": "blue"}}
	pod := scriptPod("reader", obedient)
	pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v"}}
	pod.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "COLOR", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}, Key: "color"}}}}
	c.createPod(t, pod)
	// It waits for what is not there yet, and says so.
	c.until(t, "the reason why it waits", func(ctx context.Context) error {
		list, err := c.kube.CoreV1().Events("default").List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=reader,reason=FailedMount"})
		if err == nil && len(list.Items) == 0 {
			err = errors.New("no event")
		}
		return err
	})
	settings, err := c.kube.CoreV1().ConfigMaps("default").Create(t.Context(), settings, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.running(t, "reader")
	if out, err := c.shell(t, "reader", "echo $COLOR $(cat /v/color)"); err != nil || out != "blue blue" {
		t.Errorf("the pod sees %q, %v, want blue twice", out, err)
	}
	settings.Data["color"] = "green"
	if _, err := c.kube.CoreV1().ConfigMaps("default").Update(t.Context(), settings, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.until(t, "the change", func(context.Context) error {
		if out, err := c.shell(t, "reader", "cat /v/color"); err != nil || out != "green" {
			return fmt.Errorf("it sees %q, %w", out, err)
		}
		return nil
	})
}

// testStreams reads logs and exit codes through the API server.
func testStreams(t *testing.T, c *virtualCluster) {
	pod := c.createPod(t, scriptPod("streams", "echo one; echo two; "+obedient))
	c.running(t, pod.Name)
	out, err := c.shell(t, pod.Name, "echo hello; exit 7")
	var code utilexec.CodeExitError
	if !errors.As(err, &code) || code.Code != 7 || out != "hello" {
		t.Errorf("exec = %q, %v, want hello and exit code 7", out, err)
	}
	c.until(t, "logs", func(ctx context.Context) error {
		body, err := c.kube.CoreV1().Pods("default").GetLogs(pod.Name, &corev1.PodLogOptions{}).DoRaw(ctx)
		if err == nil && string(body) != "one\ntwo\nup\n" {
			err = fmt.Errorf("logs are %q", body)
		}
		return err
	})
	body, err := c.kube.CoreV1().Pods("default").GetLogs(pod.Name, &corev1.PodLogOptions{TailLines: new(int64(1))}).DoRaw(t.Context())
	if err != nil || string(body) != "up\n" {
		t.Errorf("the last line is %q, %v", body, err)
	}
	done := scriptPod("done", "echo bye; exit 3")
	done.Spec.RestartPolicy = corev1.RestartPolicyNever
	c.createPod(t, done)
	c.until(t, "the end of a pod", func(ctx context.Context) error {
		p, err := c.kube.CoreV1().Pods("default").Get(ctx, "done", metav1.GetOptions{})
		if err != nil || p.Status.Phase != corev1.PodFailed {
			return fmt.Errorf("phase %s, %w", p.Status.Phase, err)
		}
		if s := p.Status.ContainerStatuses[0].State.Terminated; s == nil || s.ExitCode != 3 || s.Reason != "Error" {
			t.Errorf("terminated = %+v, want exit code 3", s)
		}
		return nil
	})
}

// testDeletion ends a pod whose container obeys: nobody waits for the rest of its grace period.
func testDeletion(t *testing.T, c *virtualCluster) {
	pod := scriptPod("brief", obedient)
	pod.Spec.TerminationGracePeriodSeconds = new(int64(30))
	c.createPod(t, pod)
	running := c.running(t, pod.Name)
	began := time.Now()
	if err := c.kube.CoreV1().Pods("default").Delete(t.Context(), pod.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.until(t, "the end of a deleted pod", func(ctx context.Context) error { return c.absent(ctx, pod.Name) })
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the deletion took %s with a grace period of 30 s, want less than 5 s", took)
	}
	c.until(t, "the end of its group", func(ctx context.Context) error { return c.gone(ctx, running) })
}

func (c *virtualCluster) absent(ctx context.Context, name string) error {
	_, err := c.kube.CoreV1().Pods("default").Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return errors.Join(errors.New("it is still there"), err)
}

// testRefusal asks for what a shared platform cannot give.
func testRefusal(t *testing.T, c *virtualCluster) {
	pod := scriptPod("greedy", obedient)
	pod.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc"}}}}
	c.createPod(t, pod)
	c.until(t, "the refusal", func(ctx context.Context) error {
		p, err := c.kube.CoreV1().Pods("default").Get(ctx, pod.Name, metav1.GetOptions{})
		if err == nil && (p.Status.Phase != corev1.PodFailed || p.Status.Reason != "UnsupportedPodSpec" || !strings.Contains(p.Status.Message, "spec.volumes[0].hostPath")) {
			err = fmt.Errorf("phase %s, reason %s, message %q", p.Status.Phase, p.Status.Reason, p.Status.Message)
		}
		return err
	})
	c.until(t, "its event", func(ctx context.Context) error {
		list, err := c.kube.CoreV1().Events("default").List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.name=greedy,reason=UnsupportedPodSpec"})
		if err == nil && len(list.Items) == 0 {
			err = errors.New("no event")
		}
		return err
	})
}

// testKill kills the node's process. Meanwhile a pod is deleted for good and another is made: the next process removes
// the group of the one, runs the other and restarts nothing.
func testKill(t *testing.T, c *virtualCluster) {
	stays := c.running(t, c.createPod(t, scriptPod("stays", "echo $$ >/tmp/pid; "+obedient)).Name)
	goes := c.running(t, c.createPod(t, scriptPod("goes", obedient)).Name)
	began, err := c.shell(t, stays.Name, "stat -c %Y /tmp/pid")
	if err != nil {
		t.Fatal(err)
	}
	c.killNode()
	if err := c.kube.CoreV1().Pods("default").Delete(t.Context(), goes.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
		t.Fatal(err)
	}
	c.createPod(t, scriptPod("late", obedient))
	if c.gone(t.Context(), goes) == nil {
		t.Error("a group went while there was nobody to remove it")
	}
	c.startNode()
	c.until(t, "the end of a group whose pod went unseen", func(ctx context.Context) error { return c.gone(ctx, goes) })
	c.running(t, "late")
	after, err := c.kube.CoreV1().Pods("default").Get(t.Context(), stays.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	was, is := stays.Status.ContainerStatuses[0], after.Status.ContainerStatuses[0]
	if was.ContainerID != is.ContainerID || is.RestartCount != 0 || after.Status.Phase != corev1.PodRunning {
		t.Errorf("container = %s, restarts %d, phase %s after the kill, was %s", is.ContainerID, is.RestartCount, after.Status.Phase, was.ContainerID)
	}
	// The serving certificate is a new one: streams work again once it is signed.
	c.until(t, "exec after the kill", func(context.Context) error {
		out, err := c.shell(t, stays.Name, "stat -c %Y /tmp/pid")
		if err == nil && out != began {
			t.Errorf("the container began at %s, it had at %s", out, began)
		}
		return err
	})
}
