package virtualnode

import (
	"context"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	corelisters "k8s.io/client-go/listers/core/v1"
)

// objectCache reads the ConfigMaps and Secrets that this node's pods use, and no others: each by its name. It watches
// them one by one where the node's rights allow it, and reads them again now and then where they do not.
type objectCache struct {
	kube    kubernetes.Interface
	svc     corelisters.ServiceLister
	changed func(uid string)
	log     *slog.Logger
	ctx     context.Context // of the node

	mu      sync.Mutex // guards the rest
	objects map[objectKey]*object
	byPod   map[string]map[objectKey]bool
}

type objectKey struct {
	secret          bool
	namespace, name string
}

// object is one that is kept, with the pods that use it.
type object struct {
	pods  map[string]bool
	stop  context.CancelFunc
	ready chan struct{} // closed when it was read once
	once  sync.Once

	mu        sync.Mutex // guards value and err
	configMap *corev1.ConfigMap
	secret    *corev1.Secret
	err       error
}

func newObjectCache(ctx context.Context, kube kubernetes.Interface, svc corelisters.ServiceLister, changed func(string), log *slog.Logger) *objectCache {
	return &objectCache{kube: kube, svc: svc, changed: changed, log: log, ctx: ctx, objects: map[objectKey]*object{}, byPod: map[string]map[objectKey]bool{}}
}

// use notes what a pod refers to: that is kept from now on, and what no pod refers to any more is let go.
func (c *objectCache) use(pod *corev1.Pod) {
	keys := map[objectKey]bool{}
	if !finished(pod) {
		references(pod, func(k objectKey) { keys[k] = true })
	}
	c.set(string(pod.UID), keys)
}

// drop forgets a pod.
func (c *objectCache) drop(uid string) { c.set(uid, nil) }

func (c *objectCache) set(uid string, keys map[objectKey]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range keys {
		o := c.objects[k]
		if o == nil {
			o = &object{pods: map[string]bool{}, ready: make(chan struct{})}
			var ctx context.Context
			ctx, o.stop = context.WithCancel(c.ctx)
			c.objects[k] = o
			go c.keep(ctx, k, o)
		}
		o.pods[uid] = true
	}
	for k := range c.byPod[uid] {
		if keys[k] {
			continue
		}
		if o := c.objects[k]; o != nil {
			if delete(o.pods, uid); len(o.pods) == 0 {
				o.stop()
				delete(c.objects, k)
			}
		}
	}
	if c.byPod[uid] = keys; len(keys) == 0 {
		delete(c.byPod, uid)
	}
}

// references gives every ConfigMap and Secret that a pod names.
func references(pod *corev1.Pod, use func(objectKey)) {
	config := func(name string) { use(objectKey{false, pod.Namespace, name}) }
	secret := func(name string) { use(objectKey{true, pod.Namespace, name}) }
	for _, s := range pod.Spec.ImagePullSecrets {
		secret(s.Name)
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		switch {
		case v.ConfigMap != nil:
			config(v.ConfigMap.Name)
		case v.Secret != nil:
			secret(v.Secret.SecretName)
		case v.Projected != nil:
			for _, p := range v.Projected.Sources {
				if p.ConfigMap != nil {
					config(p.ConfigMap.Name)
				}
				if p.Secret != nil {
					secret(p.Secret.Name)
				}
			}
		}
	}
	each := func(c *corev1.Container) {
		for _, f := range c.EnvFrom {
			if f.ConfigMapRef != nil {
				config(f.ConfigMapRef.Name)
			}
			if f.SecretRef != nil {
				secret(f.SecretRef.Name)
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom == nil {
				continue
			}
			if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
				config(r.Name)
			}
			if r := e.ValueFrom.SecretKeyRef; r != nil {
				secret(r.Name)
			}
		}
	}
	for i := range pod.Spec.InitContainers {
		each(&pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		each(&pod.Spec.Containers[i])
	}
	for i := range pod.Spec.EphemeralContainers {
		plain := corev1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		each(&plain)
	}
}

// How often an object is read again that may not be watched, and one that is not there: pods wait for it.
const (
	pollEvery   = 30 * time.Second
	missingPoll = 2 * time.Second
)

// keep reads an object and follows its changes.
func (c *objectCache) keep(ctx context.Context, k objectKey, o *object) {
	for ctx.Err() == nil {
		version, err := c.read(ctx, k, o)
		missing := notFound(err)
		if err != nil && !missing {
			pause(ctx, time.Second)
			continue
		}
		w, err := c.watch(ctx, k, version)
		switch {
		case apierrors.IsForbidden(err) && missing:
			pause(ctx, missingPoll)
		case apierrors.IsForbidden(err):
			pause(ctx, pollEvery)
		case err != nil:
			pause(ctx, time.Second)
		default:
			c.follow(ctx, w, o)
		}
	}
}

// read fetches an object's present state and gives the version from which to watch.
func (c *objectCache) read(ctx context.Context, k objectKey, o *object) (string, error) {
	var version string
	var m *corev1.ConfigMap
	var s *corev1.Secret
	var err error
	if k.secret {
		if s, err = c.kube.CoreV1().Secrets(k.namespace).Get(ctx, k.name, metav1.GetOptions{}); err == nil {
			version = s.ResourceVersion
		}
	} else if m, err = c.kube.CoreV1().ConfigMaps(k.namespace).Get(ctx, k.name, metav1.GetOptions{}); err == nil {
		version = m.ResourceVersion
	}
	c.store(o, m, s, err)
	return version, err
}

// store takes over a state and wakes the pods when it is another one.
func (c *objectCache) store(o *object, m *corev1.ConfigMap, s *corev1.Secret, err error) {
	if err != nil {
		m, s = nil, nil
	}
	o.mu.Lock()
	same := version(o.configMap, o.secret) == version(m, s) && notFound(o.err) == notFound(err)
	o.configMap, o.secret, o.err = m, s, err
	o.mu.Unlock()
	first := false
	o.once.Do(func() { close(o.ready); first = true })
	if same || first && err == nil {
		return
	}
	c.mu.Lock()
	var pods []string
	for uid := range o.pods {
		pods = append(pods, uid)
	}
	c.mu.Unlock()
	for _, uid := range pods {
		c.changed(uid)
	}
}

func version(m *corev1.ConfigMap, s *corev1.Secret) string {
	switch {
	case m != nil:
		return string(m.UID) + m.ResourceVersion
	case s != nil:
		return string(s.UID) + s.ResourceVersion
	}
	return ""
}

func (c *objectCache) watch(ctx context.Context, k objectKey, version string) (watch.Interface, error) {
	opt := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", k.name).String(), ResourceVersion: version}
	if k.secret {
		return c.kube.CoreV1().Secrets(k.namespace).Watch(ctx, opt)
	}
	return c.kube.CoreV1().ConfigMaps(k.namespace).Watch(ctx, opt)
}

// follow takes over changes until the watch ends.
func (c *objectCache) follow(ctx context.Context, w watch.Interface, o *object) {
	defer w.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-w.ResultChan():
			if !ok || e.Type == watch.Error {
				return
			}
			m, _ := e.Object.(*corev1.ConfigMap)
			s, _ := e.Object.(*corev1.Secret)
			if e.Type == watch.Deleted {
				c.store(o, nil, nil, apierrors.NewNotFound(schema.GroupResource{}, ""))
			} else {
				c.store(o, m, s, nil)
			}
		}
	}
}

// readPatience is how long a translation waits for an object that is being read for the first time.
const readPatience = 10 * time.Second

func (c *objectCache) get(k objectKey) (*object, error) {
	c.mu.Lock()
	o := c.objects[k]
	c.mu.Unlock()
	if o == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "objects"}, k.name)
	}
	select {
	case <-o.ready:
		return o, nil
	case <-time.After(readPatience):
		return nil, apierrors.NewTimeoutError("the API has not answered for "+k.name, 1)
	case <-c.ctx.Done():
		return nil, c.ctx.Err()
	}
}

func (c *objectCache) configMap(namespace, name string) (*corev1.ConfigMap, error) {
	o, err := c.get(objectKey{false, namespace, name})
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.configMap, o.err
}

func (c *objectCache) secret(namespace, name string) (*corev1.Secret, error) {
	o, err := c.get(objectKey{true, namespace, name})
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.secret, o.err
}

// services implements objects.
func (c *objectCache) services(namespace string) []*corev1.Service {
	list, err := c.svc.Services(namespace).List(everything)
	if err != nil {
		return nil // a lister of a cache has no errors
	}
	if namespace != metav1.NamespaceDefault {
		if api, err := c.svc.Services(metav1.NamespaceDefault).Get("kubernetes"); err == nil {
			list = append(list, api)
		}
	}
	return list
}
