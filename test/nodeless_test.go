package test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
)

// clusterPatience bounds waits for a whole cluster, which has four programs to start.
const clusterPatience = 2 * time.Minute

// nodeless is a platform with a Kubernetes beside it, started with further arguments.
func nodeless(t *testing.T, args ...string) *platform {
	t.Helper()
	bin, err := filepath.Abs("../bin")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"spillway-kubernetes", "spillway-node", "coredns"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			t.Skipf("bin/%s is missing: make build kubernetes", name)
		}
	}
	p := startPlatform(t, options{args: append([]string{"--kubernetes", "--kubernetes-listen", "127.0.0.1:0"}, args...),
		env: []string{"PATH=" + bin + ":" + os.Getenv("PATH")}})
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		for _, name := range []string{"control-plane.log", "node.log"} {
			body, _ := os.ReadFile(filepath.Join(p.dir, "kubernetes", name))
			t.Logf("%s:\n%s", name, body[max(0, len(body)-4000):])
		}
	})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	return p
}

// cluster connects to the API of the platform's Kubernetes.
func (p *platform) cluster() kubernetes.Interface {
	p.Helper()
	var kube kubernetes.Interface
	p.eventually("the API", func(ctx context.Context) error {
		cfg, err := clientcmd.BuildConfigFromFlags("", filepath.Join(p.dir, "kubernetes", "kubeconfig"))
		if err != nil {
			return err
		}
		cfg.Timeout = 10 * time.Second
		if kube, err = kubernetes.NewForConfig(cfg); err != nil {
			return err
		}
		_, err = kube.CoreV1().ServiceAccounts("default").Get(ctx, "default", metav1.GetOptions{})
		return err
	})
	return kube
}

// eventually asks until there is no error.
func (p *platform) eventually(what string, ask func(context.Context) error) {
	p.Helper()
	var err error
	for deadline := time.Now().Add(clusterPatience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err = ask(p.Context()); err == nil {
			return
		}
	}
	p.Fatalf("waited in vain for %s: %v", what, err)
}

// children are the process ids of the platform's control plane and node.
func (p *platform) children() (control, node int) {
	of := func(name, arg string) int {
		return findProcess(func(argv []string) bool {
			return filepath.Base(argv[0]) == name && strings.Contains(strings.Join(argv, " "), arg)
		})
	}
	return of("spillway-kubernetes", " "+p.dir+"/kubernetes "), of("spillway-node", " "+p.dir+"/client.json ")
}

func podTemplate(app, command string, policy corev1.RestartPolicy) corev1.PodTemplateSpec {
	grace := int64(1)
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{RestartPolicy: policy, TerminationGracePeriodSeconds: &grace, Containers: []corev1.Container{{Name: "c", Image: image,
			ImagePullPolicy: corev1.PullNever, Command: []string{"sh", "-c", command}}}}}
}

// TestNodelessKubernetes brings a cluster up with one flag and runs a Deployment behind a Service there, which a Job
// finds by its name; kills the platform, whose children must not outlive it, and finds the same pods again.
func TestNodelessKubernetes(t *testing.T) {
	p := nodeless(t)
	kube := p.cluster()
	two := int32(2)
	web := podTemplate("web", "mkdir /www; hostname >/www/index.html; exec httpd -f -p 8080 -h /www", corev1.RestartPolicyAlways)
	web.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}}}
	p.deploy(kube, "web", two, web)
	if _, err := kube.CoreV1().Services("default").Create(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "web"}, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}}}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	p.eventually("two ready pods", func(ctx context.Context) error { return ready(ctx, kube, "web", two) })
	p.eventually("the name server", func(ctx context.Context) error {
		d, err := kube.AppsV1().Deployments("kube-system").Get(ctx, "coredns", metav1.GetOptions{})
		if err == nil && d.Status.AvailableReplicas == 0 {
			err = errors.New("not available")
		}
		return err
	})
	p.asks(kube, "first")
	before := uids(t, kube)

	control, node := p.children()
	if control == 0 || node == 0 {
		t.Fatalf("control plane = process %d, node = process %d", control, node)
	}
	_ = p.signal(syscall.SIGKILL)
	waitFor(t, "the end of the children", func() bool { c, n := p.children(); return c+n == 0 })
	if err := p.up(); err != nil {
		t.Fatal(err)
	}
	kube = p.cluster()
	p.asks(kube, "second")
	if after := uids(t, kube); after != before {
		t.Errorf("pods after a kill of everything: %s, before: %s", after, before)
	}
	if control, _ = p.children(); syscall.Kill(control, syscall.SIGKILL) != nil {
		t.Fatal("there is no control plane to kill")
	}
	p.eventually("another control plane", func(context.Context) error {
		if c, _ := p.children(); c == 0 || c == control {
			return errors.New("none yet")
		}
		return nil
	})
	p.asks(p.cluster(), "third")
}

func ready(ctx context.Context, kube kubernetes.Interface, name string, want int32) error {
	d, err := kube.AppsV1().Deployments("default").Get(ctx, name, metav1.GetOptions{})
	if err == nil && d.Status.ReadyReplicas != want {
		err = errors.New("not ready")
	}
	return err
}

// uids are the pods of web that are there, and how often their containers have started again.
func uids(t *testing.T, kube kubernetes.Interface) string {
	t.Helper()
	pods, err := kube.CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for i := range pods.Items {
		for _, c := range pods.Items[i].Status.ContainerStatuses {
			all = append(all, string(pods.Items[i].UID)+" "+c.ContainerID)
		}
	}
	return strings.Join(all, ", ")
}

// asking resolves the Service by itself: a static busybox resolves no names for its other applets.
const asking = `ip=$(nslookup web.default.svc.cluster.local | awk '/^Name/ {found=1} found && /^Address/ {print $2}'); echo "web is at $ip"
wget -q -O- "http://$ip/" | grep ^web-`

// asks runs a Job that finds the Service by its name, and waits until it has.
func (p *platform) asks(kube kubernetes.Interface, name string) {
	p.Helper()
	limit := int32(20)
	job := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: batchv1.JobSpec{BackoffLimit: &limit,
		Template: podTemplate("ask", asking, corev1.RestartPolicyOnFailure)}}
	p.eventually("creation of job "+name, func(ctx context.Context) error {
		_, err := kube.BatchV1().Jobs("default").Create(ctx, job, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) {
			return nil
		}
		return err
	})
	p.eventually("success of job "+name, func(ctx context.Context) error {
		j, err := kube.BatchV1().Jobs("default").Get(ctx, name, metav1.GetOptions{})
		if err == nil && j.Status.Succeeded == 0 {
			err = errors.New("no success yet")
		}
		return err
	})
}

// TestNodelessSaysWhatIsMissing starts it without its programs.
func TestNodelessSaysWhatIsMissing(t *testing.T) {
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin.spillway, "up", "--data-dir", t.TempDir(), "--listen", "127.0.0.1:0", "--kubernetes")
	cmd.Env = []string{"PATH=/nonexistent"}
	out, err := cmd.CombinedOutput()
	if text := string(out); err == nil || !strings.Contains(text, "spillway-kubernetes, spillway-node, coredns") || !strings.Contains(text, "make build kubernetes") {
		t.Errorf("up --kubernetes without its programs: %v, %s", err, out)
	}
}
