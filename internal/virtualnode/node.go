package virtualnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcore "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"spillway.dev/spillway/internal/client"
)

// Config is one virtual node.
type Config struct {
	Name          string
	Kube          *rest.Config
	Platform      *client.Client
	ResourceGroup string            // "": that of the platform's configuration
	Network       string            // virtual network of the cluster's pods; "": named after the cluster
	Address       string            // at which the API server reaches this process
	Listen        string            // HOST:PORT of the kubelet API
	Zone          string            // "": none
	Taint         bool              // keeps pods away that do not tolerate virtual nodes
	Quota         bool              // capacity is what the subscription has; false: unlimited
	Labels        map[string]string // further labels of the node
	ClusterDNS    string            // address of the cluster's name server; "": found at the Service kube-dns
	ClusterDomain string
	Isolation     map[string]string // runtime class → isolation class
	Allow         Permissions
	RoomTimeout   time.Duration // how long a pod may find no room before it fails
	Services      bool          // feed the cluster's Services to the platform
	Version       string
	Log           *slog.Logger
}

// Node is a running virtual node.
type Node struct {
	cfg      Config
	kube     kubernetes.Interface
	platform *client.Client
	log      *slog.Logger
	cluster  string // identity of the cluster
	recorder record.EventRecorder
	began    time.Time

	informers informers.SharedInformerFactory // of the whole cluster: Services and their endpoints
	objects   *objectCache
	tokens    *tokenCache
	mirror    *mirror
	pods      *pods
	used      usedBefore
}

var everything = labels.Everything()

// The taint and labels by which clusters know virtual nodes.
const (
	taintKey       = "virtual-kubelet.io/provider"
	taintValue     = "spillway"
	unlimitedCPU   = "100000"
	unlimitedMem   = "1Pi"
	unlimitedPods  = "100000"
	unlimitedDisk  = "1Pi"
	leaseSeconds   = 40
	leaseRenewal   = 10 * time.Second
	statusInterval = 5 * time.Minute
	statusCheck    = 10 * time.Second
)

// Run runs a virtual node until ctx ends. The node stays registered: its pods go on, and the next start adopts them.
func Run(ctx context.Context, cfg Config) error {
	n := &Node{cfg: cfg, platform: cfg.Platform, log: cfg.Log, began: time.Now()}
	var err error
	if n.kube, err = kubernetes.NewForConfig(cfg.Kube); err != nil {
		return fmt.Errorf("client of the cluster: %w", err)
	}
	if n.cluster, err = n.awaitCluster(ctx); err != nil {
		return err
	}
	if n.cfg.Network == "" {
		n.cfg.Network = "k8s-" + n.cluster[:8]
	}
	events := record.NewBroadcaster(record.WithContext(ctx))
	defer events.Shutdown()
	events.StartRecordingToSink(&typedcore.EventSinkImpl{Interface: n.kube.CoreV1().Events("")})
	n.recorder = events.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "kubelet", Host: cfg.Name})

	n.informers = informers.NewSharedInformerFactory(n.kube, 0)
	services := n.informers.Core().V1().Services()
	n.tokens = newTokenCache(ctx, n.kube)
	n.mirror = newMirror(n, func(uid string) { n.pods.queue.Add(uid) })
	n.pods = newPods(n)
	n.objects = newObjectCache(ctx, n.kube, services.Lister(), func(uid string) { n.pods.queue.Add(uid) }, n.log)

	run, loops := errgroup.WithContext(ctx)
	if n.cfg.Services {
		f, err := newServiceFeed(loops, n)
		if err != nil {
			return err
		}
		run.Go(func() error { return f.run(loops) })
	}
	n.informers.Start(loops.Done())
	server, err := newServer(loops, n)
	if err != nil {
		return err
	}
	run.Go(func() error { return server.run(loops) })
	run.Go(func() error { n.mirror.run(loops); return nil })
	if !cache.WaitForCacheSync(loops.Done(), services.Informer().HasSynced) {
		return run.Wait()
	}
	// Nobody binds a pod before this process can run it.
	run.Go(func() error { n.pods.run(loops); return nil })
	run.Go(func() error { return n.register(loops) })
	run.Go(func() error { n.renewLease(loops); return nil })
	err = run.Wait()
	if errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// awaitCluster waits until the cluster's API answers, and gives its identity.
func (n *Node) awaitCluster(ctx context.Context) (string, error) {
	for {
		identity, err := clusterIdentity(ctx, n.kube)
		if err == nil {
			return identity, nil
		}
		if apierrors.IsUnauthorized(err) || apierrors.IsForbidden(err) || ctx.Err() != nil {
			return "", err
		}
		n.log.Warn("the cluster does not answer yet", "error", err)
		pause(ctx, time.Second)
	}
}

// mine says whether a group belongs to a pod of this node.
func (n *Node) mine(g *client.Group) bool {
	return g.Tags[tagCluster] == n.cluster && g.Tags[tagNode] == n.cfg.Name && g.Tags[tagUID] != ""
}

// facts is what translations know of the node and its cluster now.
func (n *Node) facts() *facts {
	f := &facts{nodeName: n.cfg.Name, nodeIP: n.cfg.Address, allocatable: n.allocatable(), clusterDNS: n.cfg.ClusterDNS, domain: n.cfg.ClusterDomain,
		resolver: hostResolver(resolvConf()), network: n.cfg.Network, cluster: n.cluster, isolation: n.cfg.Isolation}
	if f.clusterDNS == "" {
		if s, err := n.informers.Core().V1().Services().Lister().Services(metav1.NamespaceSystem).Get("kube-dns"); err == nil {
			f.clusterDNS = s.Spec.ClusterIP
		}
	}
	return f
}

func (n *Node) allocatable() corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(unlimitedCPU), corev1.ResourceMemory: resource.MustParse(unlimitedMem),
		corev1.ResourcePods: resource.MustParse(unlimitedPods), corev1.ResourceEphemeralStorage: resource.MustParse(unlimitedDisk)}
}

// register keeps the Node object there and true: also when somebody deletes it.
func (n *Node) register(ctx context.Context) error {
	var written time.Time
	var last string
	for ctx.Err() == nil {
		have, err := n.kube.CoreV1().Nodes().Get(ctx, n.cfg.Name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			if have, err = n.kube.CoreV1().Nodes().Create(ctx, n.object(), metav1.CreateOptions{}); err == nil {
				n.log.Info("node registered", "node", n.cfg.Name)
			}
			last = ""
		case err == nil:
			err = n.repairMeta(ctx, have)
		}
		if err == nil {
			status := n.status(ctx, have)
			body, _ := json.Marshal(withoutHeartbeats(status))
			if string(body) != last || time.Since(written) >= statusInterval || !n.isReady(have) {
				if err = n.writeStatus(ctx, status); err == nil {
					last, written = string(body), time.Now()
				}
			}
		}
		if err != nil && ctx.Err() == nil {
			n.log.Warn("node status", "error", err)
			pause(ctx, time.Second)
			continue
		}
		pause(ctx, statusCheck)
	}
	return nil
}

func (n *Node) isReady(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// object is the Node as it is made.
func (n *Node) object() *corev1.Node {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.cfg.Name, Labels: n.labels()}}
	node.Spec.ProviderID = "spillway://" + n.cluster + "/" + n.cfg.Name
	if n.cfg.Taint {
		node.Spec.Taints = []corev1.Taint{{Key: taintKey, Value: taintValue, Effect: corev1.TaintEffectNoSchedule}}
	}
	return node
}

func (n *Node) labels() map[string]string {
	l := map[string]string{corev1.LabelOSStable: "linux", corev1.LabelArchStable: goarch, corev1.LabelHostname: n.cfg.Name,
		"type": "virtual-kubelet", "kubernetes.io/role": "agent", corev1.LabelNodeExcludeBalancers: "", corev1.LabelInstanceTypeStable: "spillway"}
	if n.cfg.Zone != "" {
		l[corev1.LabelTopologyZone] = n.cfg.Zone
	}
	maps.Copy(l, n.cfg.Labels)
	return l
}

// repairMeta puts back labels and the taint that a former registration, of another version, did not have.
func (n *Node) repairMeta(ctx context.Context, have *corev1.Node) error {
	missing := map[string]string{}
	for k, v := range n.labels() {
		if got, ok := have.Labels[k]; !ok || got != v {
			missing[k] = v
		}
	}
	tainted := false
	for _, t := range have.Spec.Taints {
		tainted = tainted || t.Key == taintKey
	}
	if len(missing) == 0 && tainted == n.cfg.Taint {
		return nil
	}
	node := have.DeepCopy()
	if node.Labels == nil {
		node.Labels = map[string]string{}
	}
	maps.Copy(node.Labels, missing)
	if tainted != n.cfg.Taint {
		kept := node.Spec.Taints[:0]
		for _, t := range node.Spec.Taints {
			if t.Key != taintKey {
				kept = append(kept, t)
			}
		}
		node.Spec.Taints = append(kept, n.object().Spec.Taints...)
	}
	_, err := n.kube.CoreV1().Nodes().Update(ctx, node, metav1.UpdateOptions{})
	return err
}

// status is what this node says of itself.
func (n *Node) status(ctx context.Context, have *corev1.Node) *corev1.NodeStatus {
	s := have.Status.DeepCopy()
	s.Capacity, s.Allocatable = n.capacity(ctx)
	s.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: n.cfg.Address}, {Type: corev1.NodeHostName, Address: n.cfg.Name}}
	s.DaemonEndpoints.KubeletEndpoint.Port = portNumber(n.cfg.Listen)
	s.NodeInfo = nodeInfo(n)
	s.Images = nil
	s.DeclaredFeatures = declaredFeatures
	s.Features = nil
	s.RuntimeHandlers = []corev1.NodeRuntimeHandler{{Name: ""}}
	now := metav1.Now()
	for _, c := range []corev1.NodeCondition{
		{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse, Reason: "KubeletHasSufficientMemory", Message: "kubelet has sufficient memory available"},
		{Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse, Reason: "KubeletHasNoDiskPressure", Message: "kubelet has no disk pressure"},
		{Type: corev1.NodePIDPressure, Status: corev1.ConditionFalse, Reason: "KubeletHasSufficientPID", Message: "kubelet has sufficient PID available"},
		{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: "RouteCreated", Message: "the platform's virtual network carries this node's pods"},
		{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "the platform answers"},
	} {
		setNodeCondition(s, c, now)
	}
	return s
}

func setNodeCondition(s *corev1.NodeStatus, c corev1.NodeCondition, now metav1.Time) {
	c.LastHeartbeatTime, c.LastTransitionTime = now, now
	for i := range s.Conditions {
		if old := &s.Conditions[i]; old.Type == c.Type {
			if old.Status == c.Status {
				c.LastTransitionTime = old.LastTransitionTime
			}
			*old = c
			return
		}
	}
	s.Conditions = append(s.Conditions, c)
}

// withoutHeartbeats is a status whose bytes change only when something changes.
func withoutHeartbeats(s *corev1.NodeStatus) *corev1.NodeStatus {
	out := s.DeepCopy()
	for i := range out.Conditions {
		out.Conditions[i].LastHeartbeatTime = metav1.Time{}
	}
	return out
}

func (n *Node) writeStatus(ctx context.Context, s *corev1.NodeStatus) error {
	body, err := json.Marshal(map[string]any{"status": s})
	if err != nil {
		return err
	}
	_, err = n.kube.CoreV1().Nodes().Patch(ctx, n.cfg.Name, types.StrategicMergePatchType, body, metav1.PatchOptions{}, "status")
	return err
}

func portNumber(listen string) int32 {
	_, port, err := net.SplitHostPort(listen)
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(port, 10, 32)
	return int32(n)
}
