// Package addon puts into a cluster what makes its control plane useful: a name server, and the figures that
// autoscaling reads. Both run as pods.
//
// Applying is server-side and idempotent: every start of the control plane does it again, whatever was there before.
// Start at Apply.
package addon

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"slices"
	"text/template"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
)

//go:embed *.yaml
var manifests embed.FS

// Names of the add-ons there are.
const (
	CoreDNS       = "coredns"
	MetricsServer = "metrics-server"
)

// Known says whether there is such an add-on.
func Known(name string) bool { return slices.Contains([]string{CoreDNS, MetricsServer}, name) }

// Values are what the manifests leave open. The last three are base64, as manifests hold bytes.
type Values struct {
	Image      string // of the add-on
	Domain     string // of the cluster
	ClusterDNS string // address of the name server
	Certificate, Key,
	Authority string // with which the add-on serves
}

// manager owns the fields that Apply writes.
const manager = "spillway-kubernetes"

// cluster is what it takes to apply.
type cluster struct {
	kube    kubernetes.Interface
	objects dynamic.Interface
	kinds   *restmapper.DeferredDiscoveryRESTMapper
}

func connect(cfg *rest.Config) (*cluster, error) {
	kube, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	objects, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, err
	}
	d, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, err
	}
	return &cluster{kube, objects, restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(d))}, nil
}

// Apply makes the objects of one add-on what its manifest says.
func Apply(ctx context.Context, cfg *rest.Config, name string, v Values) error {
	c, err := connect(cfg)
	if err != nil {
		return err
	}
	list, err := render(name, v)
	if err != nil {
		return err
	}
	for _, o := range list {
		if err := c.apply(ctx, o); err != nil {
			return fmt.Errorf("apply %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return nil
}

// render gives the objects of an add-on.
func render(name string, v Values) ([]*unstructured.Unstructured, error) {
	t, err := template.New(name+".yaml").Option("missingkey=error").ParseFS(manifests, name+".yaml")
	if err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if err := t.Execute(&text, v); err != nil {
		return nil, err
	}
	var list []*unstructured.Unstructured
	for d := yaml.NewYAMLOrJSONDecoder(&text, text.Len()); ; {
		o := &unstructured.Unstructured{}
		if err := d.Decode(o); errors.Is(err, io.EOF) {
			return list, nil
		} else if err != nil {
			return nil, fmt.Errorf("manifest of %s: %w", name, err)
		}
		list = append(list, o)
	}
}

func (c *cluster) apply(ctx context.Context, o *unstructured.Unstructured) error {
	kind := o.GroupVersionKind()
	m, err := c.kinds.RESTMapping(kind.GroupKind(), kind.Version)
	if err != nil {
		return err
	}
	var to dynamic.ResourceInterface = c.objects.Resource(m.Resource)
	if ns := o.GetNamespace(); ns != "" {
		to = c.objects.Resource(m.Resource).Namespace(ns)
	}
	_, err = to.Apply(ctx, o.GetName(), o, metav1.ApplyOptions{FieldManager: manager, Force: true})
	return err
}

// AwaitDNS waits until names of the cluster can be asked: a node has been heard of since a moment, and the name server
// is available on it.
func AwaitDNS(ctx context.Context, cfg *rest.Config, since time.Time) error {
	c, err := connect(cfg)
	if err != nil {
		return err
	}
	const interval = 200 * time.Millisecond
	for ; ctx.Err() == nil; pause(ctx, interval) {
		if c.heardOf(ctx, since) && c.available(ctx) {
			return nil
		}
	}
	return ctx.Err()
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// heardOf says whether any node has renewed its lease since a moment. What the API says of pods before that is memory.
func (c *cluster) heardOf(ctx context.Context, since time.Time) bool {
	leases, err := c.kube.CoordinationV1().Leases("kube-node-lease").List(ctx, metav1.ListOptions{})
	if err != nil {
		return false
	}
	for i := range leases.Items {
		if t := leases.Items[i].Spec.RenewTime; t != nil && t.After(since) {
			return true
		}
	}
	return false
}

func (c *cluster) available(ctx context.Context) bool {
	d, err := c.kube.AppsV1().Deployments(metav1.NamespaceSystem).Get(ctx, CoreDNS, metav1.GetOptions{})
	return err == nil && d.Status.ObservedGeneration >= d.Generation && d.Status.AvailableReplicas > 0
}
