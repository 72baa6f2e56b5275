package test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/tools/remotecommand"
)

// virtualCluster is a control plane with one virtual node, which has the rights of deploy/manifests and no others.
type virtualCluster struct {
	*platform
	dir     string
	address string // of API and node, on loopback
	config  *rest.Config
	kube    kubernetes.Interface

	mu   sync.Mutex // guards node
	node *exec.Cmd
}

// builtNode is the virtual node's program.
var builtNode = sync.OnceValues(func() (string, error) {
	out := filepath.Join(work, "node", "spillway-node") // not beside spillway, which would find it there
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "./cmd/spillway-node")
	cmd.Dir, cmd.Env = "..", append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build spillway-node: %w\n%s", err, msg)
	}
	return out, nil
})

// startCluster brings one up; args are the platform's.
func startCluster(t *testing.T, args ...string) *virtualCluster {
	t.Helper()
	program, err := filepath.Abs("../bin/spillway-kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Skip("bin/spillway-kubernetes is missing: make kubernetes")
	}
	p := startPlatform(t, options{args: args})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	c := &virtualCluster{platform: p, dir: filepath.Join(work, "kubernetes-"+p.id), address: ownAddress(t, p.id)}
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c.startControlPlane(program)
	if c.config, err = clientcmd.BuildConfigFromFlags("", filepath.Join(c.dir, "kubeconfig")); err != nil {
		t.Fatal(err)
	}
	c.config.QPS = -1
	if c.kube, err = kubernetes.NewForConfig(c.config); err != nil {
		t.Fatal(err)
	}
	c.grant("namespace.yaml", "rbac.yaml")
	c.nodeKubeconfig()
	c.startNode()
	t.Cleanup(c.stopNode)
	return c
}

// ownAddress puts an address on loopback that no other platform's test has: API servers refuse nodes on 127.0.0.0/8.
func ownAddress(t *testing.T, instance string) string {
	t.Helper()
	id, err := hex.DecodeString(instance)
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.AddrFrom4([4]byte{10, 251, id[0], id[1]}).String()
	if out, err := exec.Command("ip", "address", "add", addr+"/32", "dev", "lo").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = exec.Command("ip", "address", "del", addr+"/32", "dev", "lo").Run() })
	return addr
}

// controlPlanePatience is how long a control plane may take until it is ready, on a machine with other work.
const controlPlanePatience = 2 * time.Minute

func (c *virtualCluster) startControlPlane(program string) {
	c.Helper()
	cmd := exec.Command(program, "--data-dir", c.dir, "--listen", "127.0.0.1:0", "--advertise-address", c.address)
	var log lockedBuffer
	cmd.Stderr = &log
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		c.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { end(cmd) })
	ready := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(stdout).ReadString('\n')
		ready <- line
	}()
	select {
	case line := <-ready:
		if !strings.HasPrefix(line, "ready ") {
			c.Fatalf("the control plane said %q\n%s", line, log.String())
		}
	case <-time.After(controlPlanePatience):
		c.Fatalf("the control plane is not ready after %s\n%s", controlPlanePatience, log.String())
	}
}

// end stops a process and waits for it. An API server would wait for its clients.
func end(cmd *exec.Cmd) {
	_ = cmd.Process.Signal(syscall.SIGTERM)
	killed := time.AfterFunc(3*time.Second, func() { _ = cmd.Process.Kill() })
	defer killed.Stop()
	_ = cmd.Wait()
}

// grant applies manifests as they are shipped.
func (c *virtualCluster) grant(names ...string) {
	c.Helper()
	for _, name := range names {
		body, err := os.ReadFile(filepath.Join("../deploy/manifests", name))
		if err != nil {
			c.Fatal(err)
		}
		for _, d := range strings.Split("\n"+string(body), "\n---\n") {
			if err := c.create([]byte(d)); err != nil {
				c.Fatalf("%s: %v\n%s", name, err, d)
			}
		}
	}
}

func (c *virtualCluster) create(doc []byte) error {
	obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(doc, nil, nil)
	if err != nil {
		return err
	}
	ctx, opt := c.Context(), metav1.CreateOptions{}
	switch o := obj.(type) {
	case *corev1.Namespace:
		_, err = c.kube.CoreV1().Namespaces().Create(ctx, o, opt)
	case *corev1.ServiceAccount:
		_, err = c.kube.CoreV1().ServiceAccounts(o.Namespace).Create(ctx, o, opt)
	case *rbacv1.ClusterRole:
		_, err = c.kube.RbacV1().ClusterRoles().Create(ctx, o, opt)
	case *rbacv1.ClusterRoleBinding:
		_, err = c.kube.RbacV1().ClusterRoleBindings().Create(ctx, o, opt)
	case *rbacv1.Role:
		_, err = c.kube.RbacV1().Roles(o.Namespace).Create(ctx, o, opt)
	case *rbacv1.RoleBinding:
		_, err = c.kube.RbacV1().RoleBindings(o.Namespace).Create(ctx, o, opt)
	default:
		err = fmt.Errorf("an object that this test does not know: %T", obj)
	}
	return err
}

// nodeKubeconfig writes the configuration of the node's service account.
func (c *virtualCluster) nodeKubeconfig() {
	c.Helper()
	token, err := c.kube.CoreV1().ServiceAccounts("spillway").CreateToken(c.Context(), "spillway-node", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		c.Fatal(err)
	}
	cfg := clientcmdapi.NewConfig()
	cfg.Clusters["test"] = &clientcmdapi.Cluster{Server: c.config.Host, CertificateAuthorityData: c.config.CAData}
	cfg.AuthInfos["test"] = &clientcmdapi.AuthInfo{Token: token.Status.Token}
	cfg.Contexts["test"] = &clientcmdapi.Context{Cluster: "test", AuthInfo: "test"}
	cfg.CurrentContext = "test"
	if err := clientcmd.WriteToFile(*cfg, c.dir+"/node.kubeconfig"); err != nil {
		c.Fatal(err)
	}
}

// startNode starts the virtual node's process; its log goes on in one file over its starts.
func (c *virtualCluster) startNode() {
	c.Helper()
	program, err := builtNode()
	if err != nil {
		c.Fatal(err)
	}
	log, err := os.OpenFile(c.dir+"/node.log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(program, "--kubeconfig", c.dir+"/node.kubeconfig", "--config", filepath.Join(c.platform.dir, "client.json"), "--name", "spillway", "--no-taint",
		"--address", c.address, "--listen", c.address+":0")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	c.mu.Lock()
	c.node = cmd
	c.mu.Unlock()
}

func (c *virtualCluster) stopNode() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.node != nil {
		end(c.node)
		c.node = nil
	}
	body, _ := os.ReadFile(c.dir + "/node.log")
	if bytes.Contains(body, []byte("forbidden")) {
		c.Errorf("the node lacks a right:\n%s", body)
	} else if c.Failed() {
		c.Logf("log of the node:\n%s", body[max(0, len(body)-8000):])
	}
}

// killNode ends the node's process as nobody likes it.
func (c *virtualCluster) killNode() {
	c.mu.Lock()
	defer c.mu.Unlock()
	_ = c.node.Process.Kill()
	_ = c.node.Wait()
	c.node = nil
}

// until asks until there is no error.
func (c *virtualCluster) until(t *testing.T, what string, ask func(context.Context) error) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(controlPlanePatience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = ask(t.Context()); err == nil {
			return
		}
	}
	t.Fatalf("waited in vain for %s: %v", what, err)
}

// running waits until a pod is ready, and gives it.
func (c *virtualCluster) running(t *testing.T, name string) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	c.until(t, "pod "+name, func(ctx context.Context) error {
		var err error
		if pod, err = c.kube.CoreV1().Pods("default").Get(ctx, name, metav1.GetOptions{}); err != nil {
			return err
		}
		for _, condition := range pod.Status.Conditions {
			if condition.Type == corev1.PodReady && condition.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("phase %s %s: %+v", pod.Status.Phase, pod.Status.Reason, pod.Status.ContainerStatuses)
	})
	return pod
}

// shell runs a script in a pod by way of the API server.
func (c *virtualCluster) shell(t *testing.T, pod, script string) (string, error) {
	t.Helper()
	req := c.kube.CoreV1().RESTClient().Post().Resource("pods").Namespace("default").Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: []string{"sh", "-c", script}, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	executor, err := remotecommand.NewWebSocketExecutor(c.config, "GET", req.URL().String())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var out lockedBuffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &out})
	return strings.TrimSpace(out.String()), err
}

// gone says whether the group of a pod is no more.
func (c *virtualCluster) gone(ctx context.Context, pod *corev1.Pod) error {
	list, err := c.client.ListGroups(ctx, "")
	if err != nil {
		return err
	}
	for i := range list {
		if list[i].Tags["kubernetes.uid"] == string(pod.UID) {
			return errors.New("group " + list[i].Name + " is still there")
		}
	}
	return nil
}
