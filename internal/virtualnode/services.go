package virtualnode

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/util/workqueue"

	"spillway.dev/spillway/internal/fault"
)

// serviceFeed makes the cluster's Services into service addresses of the platform, fed from their EndpointSlices. One
// of a cluster's virtual nodes does it: the holder of a lease.
type serviceFeed struct {
	n      *Node
	slices cache.SharedIndexInformer
	queue  workqueue.TypedRateLimitingInterface[string] // namespace/name

	mu   sync.Mutex // guards sent
	sent map[string]sentAddress
}

// sentAddress is what the platform has been told of a Service.
type sentAddress struct {
	name string // of the resource
	body string
}

// address is a service address as the platform's API takes it.
type address struct {
	Tags       map[string]string `json:"tags"`
	Properties addressProperties `json:"properties"`
}

type addressProperties struct {
	Network       string            `json:"network"`
	Address       string            `json:"address"`
	Ports         []addressPort     `json:"ports"`
	Endpoints     []addressEndpoint `json:"endpoints"`
	Affinity      string            `json:"affinity,omitempty"`
	Timeout       int32             `json:"affinityTimeoutSeconds,omitempty"`
	HostEndpoints bool              `json:"hostEndpoints,omitempty"`
	FromHosts     bool              `json:"fromHosts,omitempty"`
}

type addressPort struct {
	Name     string `json:"name,omitempty"`
	Port     int32  `json:"port"`
	Protocol string `json:"protocol"`
}

type addressEndpoint struct {
	Address string         `json:"address"`
	Ports   []endpointPort `json:"ports"`
}

type endpointPort struct {
	Name string `json:"name,omitempty"`
	Port int32  `json:"port"`
}

const tagService = "kubernetes.service"

// byService indexes EndpointSlices by the Service that they belong to.
const byService = "service"

func newServiceFeed(_ context.Context, n *Node) (*serviceFeed, error) {
	f := &serviceFeed{n: n, sent: map[string]sentAddress{}, slices: n.informers.Discovery().V1().EndpointSlices().Informer(),
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](50*time.Millisecond, 30*time.Second))}
	err := f.slices.AddIndexers(cache.Indexers{byService: func(obj any) ([]string, error) {
		if s, ok := obj.(*discoveryv1.EndpointSlice); ok && s.Labels[discoveryv1.LabelServiceName] != "" {
			return []string{s.Namespace + "/" + s.Labels[discoveryv1.LabelServiceName]}, nil
		}
		return nil, nil
	}})
	if err != nil {
		return nil, fmt.Errorf("index endpoint slices: %w", err)
	}
	touch := func(obj any) {
		if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = last.Obj
		}
		switch o := obj.(type) {
		case *corev1.Service:
			f.queue.Add(o.Namespace + "/" + o.Name)
		case *discoveryv1.EndpointSlice:
			if name := o.Labels[discoveryv1.LabelServiceName]; name != "" {
				f.queue.Add(o.Namespace + "/" + name)
			}
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: touch, DeleteFunc: touch, UpdateFunc: func(_, obj any) { touch(obj) }}
	for _, i := range []cache.SharedIndexInformer{n.informers.Core().V1().Services().Informer(), f.slices} {
		if _, err := i.AddEventHandler(handler); err != nil {
			return nil, fmt.Errorf("watch services: %w", err)
		}
	}
	return f, nil
}

// Times of the election among a cluster's virtual nodes.
const (
	electionLease = 15 * time.Second
	electionRenew = 10 * time.Second
	electionRetry = 2 * time.Second
)

// run waits for the lease and feeds as long as this process holds it.
func (f *serviceFeed) run(ctx context.Context) error {
	services := f.n.informers.Core().V1().Services().Informer()
	if !cache.WaitForCacheSync(ctx.Done(), services.HasSynced, f.slices.HasSynced) {
		return nil
	}
	lock := &resourcelock.LeaseLock{LeaseMeta: metav1.ObjectMeta{Name: "spillway-node-services", Namespace: metav1.NamespaceSystem},
		Client: f.n.kube.CoordinationV1(), LockConfig: resourcelock.ResourceLockConfig{Identity: f.n.cfg.Name}}
	for ctx.Err() == nil {
		leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{Lock: lock, ReleaseOnCancel: true, LeaseDuration: electionLease, RenewDeadline: electionRenew, RetryPeriod: electionRetry,
			Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: f.feed, OnStoppedLeading: func() {}}})
	}
	return nil
}

// feed works while ctx lasts: first what the platform has of Services that are no more, then every change.
func (f *serviceFeed) feed(ctx context.Context) {
	for ctx.Err() == nil {
		if err := f.begin(ctx); err == nil {
			break
		} else if ctx.Err() == nil {
			f.n.log.Warn("service addresses of the platform", "error", err)
			pause(ctx, time.Second)
		}
	}
	var all sync.WaitGroup
	stopped := make(chan struct{})
	all.Go(func() { f.reachNodes(ctx) })
	all.Go(func() {
		for {
			key, stop := f.queue.Get()
			if stop || ctx.Err() != nil {
				if !stop {
					f.queue.Add(key) // for whoever leads next
					f.queue.Done(key)
				}
				close(stopped)
				return
			}
			if err := f.sync(ctx, key); err != nil && ctx.Err() == nil {
				f.n.log.Warn("service address", "service", key, "error", err)
				f.queue.AddRateLimited(key)
			} else {
				f.queue.Forget(key)
			}
			f.queue.Done(key)
		}
	})
	select {
	case <-ctx.Done():
		f.queue.Add(wakeUp) // a worker that waits for a key gets one, and ends
		<-stopped
	case <-stopped:
	}
	all.Wait()
}

// wakeUp is a key of no Service.
const wakeUp = "/"

// begin reads what the platform has, and puts every Service into the queue.
func (f *serviceFeed) begin(ctx context.Context) error {
	have, err := f.n.platform.ListServiceAddresses(ctx, f.n.cfg.ResourceGroup)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.sent = map[string]sentAddress{}
	for _, a := range have {
		if a.Tags[tagCluster] == f.n.cluster && a.Tags[tagService] != "" {
			key := a.Tags[tagNamespace] + "/" + a.Tags[tagService]
			f.sent[key] = sentAddress{name: a.Name}
			f.queue.Add(key)
		}
	}
	f.mu.Unlock()
	for _, key := range f.n.informers.Core().V1().Services().Informer().GetStore().ListKeys() {
		f.queue.Add(key)
	}
	return nil
}

// sync makes one Service's address what it should be.
func (f *serviceFeed) sync(ctx context.Context, key string) error {
	namespace, name, _ := strings.Cut(key, "/")
	if name == "" {
		return nil
	}
	service, err := f.n.informers.Core().V1().Services().Lister().Services(namespace).Get(name)
	if err != nil && !notFound(err) {
		return err
	}
	f.mu.Lock()
	before, known := f.sent[key]
	f.mu.Unlock()
	var want *address
	resource := ""
	if service != nil && hasAddress(service) {
		if want = f.addressOf(service); want != nil {
			resource = addressName(service)
		}
	}
	if known && before.name != resource {
		if err := f.n.platform.DeleteServiceAddress(ctx, f.n.cfg.ResourceGroup, before.name); err != nil && fault.KindOf(err) != fault.NotFound {
			return err
		}
		f.forget(key)
	}
	if want == nil {
		return nil
	}
	body, err := json.Marshal(want)
	if err != nil || known && before.body == string(body) {
		return err
	}
	_, err = f.n.platform.PutServiceAddress(ctx, f.n.cfg.ResourceGroup, resource, json.RawMessage(body))
	if kind := fault.KindOf(err); want.Properties.FromHosts && (kind == fault.Invalid || kind == fault.Denied) {
		// The node may give the host's network to pods, the platform does not: then nobody asks from there.
		want.Properties.FromHosts = false
		_, err = f.n.platform.PutServiceAddress(ctx, f.n.cfg.ResourceGroup, resource, want)
	}
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.sent[key] = sentAddress{resource, string(body)}
	f.mu.Unlock()
	return nil
}

func (f *serviceFeed) forget(key string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.sent, key)
}

func hasAddress(s *corev1.Service) bool {
	return s.Spec.Type != corev1.ServiceTypeExternalName && s.Spec.ClusterIP != "" && s.Spec.ClusterIP != corev1.ClusterIPNone && !strings.Contains(s.Spec.ClusterIP, ":")
}

// addressName names a Service's address: readable, and another one when the Service is made anew.
func addressName(s *corev1.Service) string {
	const longest, suffix = 63, 13
	name := s.Namespace + "-" + s.Name
	return strings.TrimRight(name[:min(len(name), longest-suffix)], "-") + "-" + strings.ReplaceAll(string(s.UID), "-", "")[:suffix-1]
}

// addressOf is a Service as a service address, nil when it has no port that the platform balances.
func (f *serviceFeed) addressOf(s *corev1.Service) *address {
	a := &address{Tags: map[string]string{tagCluster: f.n.cluster, tagNamespace: s.Namespace, tagService: s.Name},
		Properties: addressProperties{Network: f.n.cfg.Network, Address: s.Spec.ClusterIP, Endpoints: []addressEndpoint{},
			// The API server itself is such an endpoint.
			HostEndpoints: s.Namespace == metav1.NamespaceDefault && s.Name == "kubernetes"}}
	p := &a.Properties
	names := map[string]string{} // of the Service's ports → of the address's
	for _, port := range s.Spec.Ports {
		if port.Protocol != corev1.ProtocolTCP && port.Protocol != corev1.ProtocolUDP {
			continue
		}
		name := portName(port.Name, port.Port, port.Protocol)
		names[port.Name] = name
		p.Ports = append(p.Ports, addressPort{name, port.Port, string(port.Protocol)})
	}
	if len(p.Ports) == 0 {
		return nil
	}
	if s.Spec.SessionAffinity == corev1.ServiceAffinityClientIP {
		p.Affinity = "ClientIP"
		if c := s.Spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
			p.Timeout = *c.ClientIP.TimeoutSeconds
		}
	}
	list, err := f.slices.GetIndexer().ByIndex(byService, s.Namespace+"/"+s.Name)
	if err != nil {
		return nil // there is such an index
	}
	p.Endpoints = endpointsOf(list, names)
	if f.n.cfg.Allow.HostNetwork { // a pod in the host's network is one of the machine's own ports
		own := func(e addressEndpoint) bool { return e.Address == f.n.cfg.Address }
		p.HostEndpoints, p.FromHosts = p.HostEndpoints || slices.ContainsFunc(p.Endpoints, own), true
	}
	return a
}

// portName is a port's name in the platform's terms: lower-case, and never empty.
func portName(name string, port int32, protocol corev1.Protocol) string {
	if name != "" {
		return name
	}
	return fmt.Sprintf("p%d-%s", port, strings.ToLower(string(protocol)))
}

// endpointsOf joins slices into endpoints: those that are ready, and, when none is, those that still serve while they
// terminate.
func endpointsOf(list []any, names map[string]string) []addressEndpoint {
	ready, terminating := map[string]map[string]int32{}, map[string]map[string]int32{}
	for _, obj := range list {
		s := obj.(*discoveryv1.EndpointSlice)
		if s.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		for i := range s.Endpoints {
			e := &s.Endpoints[i]
			into := ready
			if e.Conditions.Ready != nil && !*e.Conditions.Ready {
				if e.Conditions.Serving == nil || !*e.Conditions.Serving || e.Conditions.Terminating == nil || !*e.Conditions.Terminating {
					continue
				}
				into = terminating
			}
			for _, addr := range e.Addresses {
				for _, p := range s.Ports {
					if p.Port == nil || p.Name == nil || names[*p.Name] == "" {
						continue
					}
					if into[addr] == nil {
						into[addr] = map[string]int32{}
					}
					into[addr][names[*p.Name]] = *p.Port
				}
			}
		}
	}
	if len(ready) == 0 {
		ready = terminating
	}
	out := []addressEndpoint{}
	for addr, ports := range ready {
		e := addressEndpoint{Address: addr}
		for name, port := range ports {
			e.Ports = append(e.Ports, endpointPort{name, port})
		}
		slices.SortFunc(e.Ports, func(a, b endpointPort) int { return strings.Compare(a.Name, b.Name) })
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b addressEndpoint) int { return strings.Compare(a.Address, b.Address) })
	return out
}
