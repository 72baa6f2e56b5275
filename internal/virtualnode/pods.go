package virtualnode

import (
	"context"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
)

func itoa(n int) string { return strconv.Itoa(n) }

func notFound(err error) bool { return apierrors.IsNotFound(err) }

// pods looks after the pods of one node: one key per pod, by uid, worked off by a few goroutines.
type pods struct {
	n        *Node
	informer cache.SharedIndexInformer
	queue    workqueue.TypedRateLimitingInterface[string]

	mu    sync.Mutex // guards known
	known map[string]*podState
}

// podState is what is remembered of a pod between two looks at it. Nothing of it has to outlive the process.
type podState struct {
	live    []byte             // the changeable part of the group, as sent last
	written *corev1.PodStatus  // status as written last
	since   time.Time          // when it was first refused for want of room
	seen    map[string]eventAt // events passed on
	deleted bool               // the group's deletion was asked for
	trouble string             // why it waits, as said last
}

const byUID = "uid"

func newPods(n *Node) *pods {
	p := &pods{n: n, known: map[string]*podState{},
		queue: workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](50*time.Millisecond, 30*time.Second))}
	selector := fields.OneTermEqualSelector("spec.nodeName", n.cfg.Name)
	p.informer = cache.NewSharedIndexInformer(cache.NewListWatchFromClient(n.kube.CoreV1().RESTClient(), "pods", metav1.NamespaceAll, selector), &corev1.Pod{}, 0,
		cache.Indexers{byUID: func(obj any) ([]string, error) {
			pod, ok := obj.(*corev1.Pod)
			if !ok {
				return nil, nil
			}
			return []string{string(pod.UID)}, nil
		}})
	touch := func(obj any) {
		if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
			obj = last.Obj
		}
		if pod, ok := obj.(*corev1.Pod); ok {
			p.queue.Add(string(pod.UID))
		}
	}
	_, _ = p.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: touch, DeleteFunc: touch, UpdateFunc: func(old, now any) {
		a, b := old.(*corev1.Pod), now.(*corev1.Pod)
		if a.UID != b.UID {
			touch(a)
		}
		touch(b)
	}})
	return p
}

func (p *pods) byUID(uid string) *corev1.Pod {
	list, err := p.informer.GetIndexer().ByIndex(byUID, uid)
	if err != nil || len(list) == 0 {
		return nil
	}
	return list[0].(*corev1.Pod)
}

func (p *pods) state(uid string) *podState {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.known[uid]
	if s == nil {
		s = &podState{seen: map[string]eventAt{}}
		p.known[uid] = s
	}
	return s
}

// workers is how many pods are worked on at a time.
const workers = 16

// run works until ctx ends. What the platform has is known before anything is decided.
func (p *pods) run(ctx context.Context) {
	go p.informer.Run(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), p.informer.HasSynced) {
		return
	}
	select {
	case <-p.n.mirror.synced:
	case <-ctx.Done():
		return
	}
	for _, uid := range p.n.mirror.uids() {
		p.queue.Add(uid)
	}
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for p.work(ctx) {
			}
		})
	}
	<-ctx.Done()
	p.queue.ShutDown()
	all.Wait()
}

func (p *pods) work(ctx context.Context) bool {
	uid, stop := p.queue.Get()
	if stop {
		return false
	}
	defer p.queue.Done(uid)
	again, err := p.sync(ctx, uid)
	switch {
	case err != nil && ctx.Err() == nil:
		p.n.log.Warn("pod", "uid", uid, "error", err)
		p.queue.AddRateLimited(uid)
	case again > 0:
		p.queue.Forget(uid)
		p.queue.AddAfter(uid, again)
	default:
		p.queue.Forget(uid)
	}
	return true
}

// sync brings one pod and its group together, and says when to look again.
func (p *pods) sync(ctx context.Context, uid string) (time.Duration, error) {
	pod := p.byUID(uid)
	group, gone := p.n.mirror.get(uid)
	if pod == nil {
		return p.orphan(ctx, uid, group, gone)
	}
	s := p.state(uid)
	p.n.objects.use(pod)
	p.passEvents(pod, s, group)
	switch {
	case pod.DeletionTimestamp != nil:
		return p.remove(ctx, pod, s, group, gone)
	case finished(pod):
		return 0, p.finish(ctx, pod, s, group, gone)
	case gone:
		return 0, p.vanished(ctx, pod, s, group)
	case group == nil:
		return p.create(ctx, pod, s)
	}
	return p.follow(ctx, pod, s, group)
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// finish writes the last status of a finished pod when it is not the whole truth yet: its containers ended after the
// pod was failed.
func (p *pods) finish(ctx context.Context, pod *corev1.Pod, s *podState, group *client.Group, gone bool) error {
	if group == nil || gone {
		return nil
	}
	if group.Properties.Desired == "Run" && !ended(group) {
		// Failed by somebody: the deadline, or an eviction. Its containers have nothing to run for.
		return ignoreMissing(p.n.platform.Stop(ctx, p.n.cfg.ResourceGroup, group.Name))
	}
	if !ended(group) && group.State() != "Stopped" {
		return nil
	}
	status := statusOf(pod, group, p.n.facts(), metav1.Now())
	status.Phase, status.Reason, status.Message = pod.Status.Phase, pod.Status.Reason, pod.Status.Message
	return p.write(ctx, pod, s, status)
}

func ended(g *client.Group) bool { return g.State() == "Succeeded" || g.State() == "Failed" }

func ignoreMissing(err error) error {
	if fault.KindOf(err) == fault.NotFound {
		return nil
	}
	return err
}

// vanished fails a pod whose group somebody else has deleted: its controller makes another.
func (p *pods) vanished(ctx context.Context, pod *corev1.Pod, s *podState, last *client.Group) error {
	status := statusOf(pod, last, p.n.facts(), metav1.Now())
	endAll(status, metav1.Now())
	status.Phase, status.Reason, status.Message = corev1.PodFailed, "NotFound", "the pod's container group was deleted on the platform"
	setConditions(pod, status, reached{initialized: true}, metav1.Now())
	return p.write(ctx, pod, s, status)
}

// endAll says of containers that still seemed to run that nobody knows how they ended.
func endAll(s *corev1.PodStatus, now metav1.Time) {
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			c := &list[i]
			if c.State.Running == nil {
				continue
			}
			c.State = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: 137, Reason: "ContainerStatusUnknown",
				Message: "the container could not be located when the pod was deleted", StartedAt: c.State.Running.StartedAt, FinishedAt: now, ContainerID: c.ContainerID}}
			c.Ready = false
		}
	}
}
