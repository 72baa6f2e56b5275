package virtualnode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/client-go/kubernetes"
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
	mu      sync.Mutex // one worker at a time, by the queue; streams and stats read beside it
	pod     *corev1.Pod
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
	s.mu.Lock()
	s.pod = pod
	s.mu.Unlock()
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
	setConditions(pod, status, true, false, metav1.Now())
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

// create makes the group of a pod, or says why it cannot be made.
func (p *pods) create(ctx context.Context, pod *corev1.Pod, s *podState) (time.Duration, error) {
	f := p.n.facts()
	f.address = placeholder(pod)
	if list := refusals(pod, f, p.n.cfg.Allow); len(list) > 0 {
		message := list[0].String()
		for _, r := range list[1:] {
			message += "; " + r.String()
		}
		return 0, p.fail(ctx, pod, s, "UnsupportedPodSpec", message)
	}
	r, err := translate(translation{pod, p.n.objects, p.n.tokens, f})
	if err != nil {
		return p.wait(ctx, pod, s, err)
	}
	g, err := p.n.platform.PutGroup(ctx, p.n.cfg.ResourceGroup, groupName(pod), r)
	switch kind := fault.KindOf(err); {
	case err == nil:
		s.live, s.trouble = liveBytes(r), ""
		p.n.mirror.put(string(pod.UID), g)
		return p.follow(ctx, pod, s, g)
	case noRoom(err):
		return p.noRoom(ctx, pod, s, err)
	case kind == fault.Invalid || kind == fault.TooLarge:
		return 0, p.fail(ctx, pod, s, refusalReason(err), err.Error())
	default:
		return 0, fmt.Errorf("make group of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
}

// placeholder stands for a pod's address until a host knows it.
func placeholder(pod *corev1.Pod) string { return "@address." + string(pod.UID) + "@" }

// refusalReason is the kubelet's word for what the platform refuses.
func refusalReason(err error) string {
	e, ok := errors.AsType[*fault.Error](err)
	if ok && e.Code == "InvalidSysctl" {
		return "SysctlForbidden"
	}
	return "UnsupportedPodSpec"
}

func noRoom(err error) bool {
	e, ok := errors.AsType[*fault.Error](err)
	return ok && (e.Code == "ServiceUnavailable" && e.Kind == fault.Conflict || e.Code == "ContainerGroupQuotaReached")
}

// roomPause is how often a pod that found no room tries again.
const roomPause = 2 * time.Second

// noRoom tries again for a while, then fails the pod, so that its controller makes another elsewhere.
func (p *pods) noRoom(ctx context.Context, pod *corev1.Pod, s *podState, err error) (time.Duration, error) {
	if s.since.IsZero() {
		s.since = time.Now()
	}
	if time.Since(s.since) >= p.n.cfg.RoomTimeout {
		return 0, p.fail(ctx, pod, s, "OutOfResources", err.Error())
	}
	p.say(pod, s, corev1.EventTypeWarning, "FailedPlacement", err.Error())
	return roomPause, p.write(ctx, pod, s, waitingStatus(pod, containerCreating, err.Error(), p.n.facts(), metav1.Now()))
}

// say emits an event once for each new text.
func (p *pods) say(pod *corev1.Pod, s *podState, kind, reason, message string) {
	if s.trouble != reason+message {
		s.trouble = reason + message
		p.n.recorder.Event(pod, kind, reason, message)
	}
}

// fail ends a pod for good.
func (p *pods) fail(ctx context.Context, pod *corev1.Pod, s *podState, reason, message string) error {
	p.say(pod, s, corev1.EventTypeWarning, reason, message)
	status := failedStatus(pod, reason, message, p.n.facts(), metav1.Now())
	setConditions(pod, status, len(pod.Spec.InitContainers) == 0, false, metav1.Now())
	return p.write(ctx, pod, s, status)
}

// retryPause is how often a missing reference is looked for; a watch usually tells earlier.
const retryPause = 5 * time.Second

// wait says what a pod waits for: a reference that is not there.
func (p *pods) wait(ctx context.Context, pod *corev1.Pod, s *podState, err error) (time.Duration, error) {
	if m, ok := errors.AsType[*mountError](err); ok {
		p.say(pod, s, corev1.EventTypeWarning, "FailedMount", fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", m.volume, m.err))
		return retryPause, p.write(ctx, pod, s, waitingStatus(pod, containerCreating, "", p.n.facts(), metav1.Now()))
	}
	if _, ok := errors.AsType[*configError](err); !ok {
		return 0, err
	}
	p.say(pod, s, corev1.EventTypeWarning, "Failed", "Error: "+err.Error())
	return retryPause, p.write(ctx, pod, s, waitingStatus(pod, "CreateContainerConfigError", err.Error(), p.n.facts(), metav1.Now()))
}

// follow keeps group and pod alike: changes of the pod go down, the group's status goes up.
func (p *pods) follow(ctx context.Context, pod *corev1.Pod, s *podState, group *client.Group) (time.Duration, error) {
	if left, set := deadline(pod, time.Now()); set && left <= 0 {
		status := statusOf(pod, group, p.n.facts(), metav1.Now())
		status.Phase, status.Reason, status.Message = corev1.PodFailed, "DeadlineExceeded", "Pod was active on the node longer than the specified deadline"
		p.n.recorder.Event(pod, corev1.EventTypeNormal, "DeadlineExceeded", status.Message)
		return 0, p.write(ctx, pod, s, status)
	}
	if err := p.write(ctx, pod, s, statusOf(pod, group, p.n.facts(), metav1.Now())); err != nil {
		return 0, err
	}
	again, err := p.update(ctx, pod, s, group)
	if left, set := deadline(pod, time.Now()); set && (again == 0 || left < again) {
		again = left
	}
	return again, err
}

// deadline is how long a pod may still be active.
func deadline(pod *corev1.Pod, now time.Time) (time.Duration, bool) {
	if pod.Spec.ActiveDeadlineSeconds == nil || pod.Status.StartTime == nil {
		return 0, false
	}
	return pod.Status.StartTime.Add(time.Duration(*pod.Spec.ActiveDeadlineSeconds) * time.Second).Sub(now), true
}

// refreshEvery is how often files are looked at that no watch tells about: tokens that are due.
const refreshEvery = time.Minute

// update brings changes of the pod into its running group: files, resources, images, ephemeral containers.
func (p *pods) update(ctx context.Context, pod *corev1.Pod, s *podState, group *client.Group) (time.Duration, error) {
	if ended(group) {
		return 0, nil
	}
	f := p.n.facts()
	f.address = placeholder(pod)
	r, err := translate(translation{pod, p.n.objects, p.n.tokens, f})
	if err != nil {
		// What runs goes on with what it has; a kubelet does the same.
		p.n.log.Debug("pod is not brought up to date", "pod", pod.Namespace+"/"+pod.Name, "error", err)
		return retryPause, nil
	}
	again := time.Duration(0)
	if hasToken(pod) {
		again = refreshEvery
	}
	body := liveBytes(r)
	if s.live == nil && !hasFiles(r) && len(r.Properties.Ephemeral) == 0 {
		s.live = body
	}
	if string(body) == string(s.live) {
		return again, nil
	}
	g, err := p.n.platform.PatchGroup(ctx, p.n.cfg.ResourceGroup, group.Name, json.RawMessage(body))
	if fault.KindOf(err) == fault.Invalid {
		p.say(pod, s, corev1.EventTypeWarning, "FailedUpdate", err.Error())
		return again, nil
	}
	if err != nil {
		return 0, fmt.Errorf("update group of pod %s/%s: %w", pod.Namespace, pod.Name, ignoreMissing(err))
	}
	s.live = body
	p.n.mirror.put(string(pod.UID), g)
	if asksForPtrace(pod) {
		p.say(pod, s, corev1.EventTypeWarning, "CapabilityNotGranted", "spec.ephemeralContainers: SYS_PTRACE is not granted on a shared platform; processes of the debugger's own user can be traced without it")
	}
	return again, nil
}

func hasFiles(r *groupResource) bool {
	for _, v := range r.Properties.Volumes {
		if v.EmptyDir == nil {
			return true
		}
	}
	return false
}

func hasToken(pod *corev1.Pod) bool {
	for _, v := range pod.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, p := range v.Projected.Sources {
			if p.ServiceAccountToken != nil {
				return true
			}
		}
	}
	return false
}

// liveBytes is what of a group can change while it runs, as the API's PATCH takes it.
func liveBytes(r *groupResource) []byte {
	type part struct {
		Name       string         `json:"name"`
		Properties map[string]any `json:"properties"`
	}
	parts := func(list []container) []part {
		var out []part
		for _, c := range list {
			out = append(out, part{c.Name, map[string]any{"image": c.Properties.Image, "resources": c.Properties.Resources}})
		}
		return out
	}
	var files []volume
	for _, v := range r.Properties.Volumes {
		if v.EmptyDir == nil {
			files = append(files, v)
		}
	}
	live := map[string]any{"containers": parts(r.Properties.Containers), "initContainers": parts(r.Properties.InitContainers), "labels": r.Properties.Labels}
	if len(files) > 0 {
		live["volumes"] = files
	}
	if len(r.Properties.Ephemeral) > 0 {
		live["ephemeralContainers"] = r.Properties.Ephemeral
	}
	body, err := json.Marshal(map[string]any{"properties": live})
	if err != nil {
		panic(err) // plain maps, slices and strings
	}
	return body
}

// remove ends a pod that is being deleted: the group first, then the pod, as soon as its containers are gone.
func (p *pods) remove(ctx context.Context, pod *corev1.Pod, s *podState, group *client.Group, gone bool) (time.Duration, error) {
	if group != nil && !gone {
		if s.deleted {
			return 0, p.write(ctx, pod, s, p.leaving(pod, group))
		}
		err := p.n.platform.DeleteGroupWithin(ctx, p.n.cfg.ResourceGroup, group.Name, pod.DeletionGracePeriodSeconds)
		if err != nil && fault.KindOf(err) != fault.NotFound {
			return 0, fmt.Errorf("delete group of pod %s/%s: %w", pod.Namespace, pod.Name, err)
		}
		s.deleted = true
		if err == nil {
			return 0, nil
		}
	}
	if !finished(pod) {
		status := failedStatus(pod, pod.Status.Reason, pod.Status.Message, p.n.facts(), metav1.Now())
		if group != nil {
			status = statusOf(pod, group, p.n.facts(), metav1.Now())
			endAll(status, metav1.Now())
			if status.Phase != corev1.PodSucceeded {
				status.Phase = corev1.PodFailed
			}
		}
		setConditions(pod, status, true, false, metav1.Now())
		if err := p.write(ctx, pod, s, status); err != nil {
			return 0, err
		}
	}
	zero := int64(0)
	err := p.n.kube.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: &zero, Preconditions: metav1.NewUIDPreconditions(string(pod.UID))})
	if err != nil && !notFound(err) && !apierrors.IsConflict(err) {
		return 0, fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return 0, nil
}

// leaving is the status of a pod on its way out: not ready, and running until its containers have ended.
func (p *pods) leaving(pod *corev1.Pod, group *client.Group) *corev1.PodStatus {
	status := statusOf(pod, group, p.n.facts(), metav1.Now())
	if !finished(pod) {
		status.Phase = pod.Status.Phase
	}
	return status
}

// orphanPause is how long the absence of a pod must last before its group goes.
const orphanPause = 2 * time.Second

// orphan removes the group of a pod that is no more. Only the cluster's own word counts, and only while it is the same
// cluster: one whose API is briefly empty loses nothing.
func (p *pods) orphan(ctx context.Context, uid string, group *client.Group, gone bool) (time.Duration, error) {
	if group == nil || gone {
		p.mu.Lock()
		delete(p.known, uid)
		p.mu.Unlock()
		p.n.objects.drop(uid)
		p.n.mirror.forget(uid)
		return 0, nil
	}
	if group.Properties.Desired == "Delete" {
		return 0, nil
	}
	pod, err := p.n.kube.CoreV1().Pods(group.Tags[tagNamespace]).Get(ctx, group.Tags[tagPod], metav1.GetOptions{})
	switch {
	case err == nil && string(pod.UID) == uid && pod.Spec.NodeName == p.n.cfg.Name:
		return orphanPause, nil // the informer is behind
	case err != nil && !notFound(err):
		return 0, err
	}
	same, err := sameCluster(ctx, p.n.kube, p.n.cluster)
	if err != nil || !same {
		p.n.log.Warn("the cluster is not itself: groups are kept", "group", group.Name, "error", err)
		return retryPause, nil
	}
	p.n.log.Info("group without a pod", "group", group.Name, "pod", group.Tags[tagNamespace]+"/"+group.Tags[tagPod])
	return 0, ignoreMissing(p.n.platform.DeleteGroup(ctx, p.n.cfg.ResourceGroup, group.Name, false))
}

// sameCluster says whether the API still is the one that this node joined.
func sameCluster(ctx context.Context, kube kubernetes.Interface, identity string) (bool, error) {
	now, err := clusterIdentity(ctx, kube)
	return now == identity, err
}

// clusterIdentity is the uid of the namespace that every cluster has.
func clusterIdentity(ctx context.Context, kube kubernetes.Interface) (string, error) {
	ns, err := kube.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("read namespace %s: %w", metav1.NamespaceSystem, err)
	}
	return string(ns.UID), nil
}

// write patches a pod's status when it has changed.
func (p *pods) write(ctx context.Context, pod *corev1.Pod, s *podState, status *corev1.PodStatus) error {
	if reflect.DeepEqual(status, &pod.Status) || s.written != nil && reflect.DeepEqual(withoutForeign(status), withoutForeign(s.written)) {
		return nil
	}
	patch, err := statusPatch(pod, status)
	if err != nil {
		return err
	}
	_, err = p.n.kube.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{}, "status")
	if notFound(err) || apierrors.IsConflict(err) {
		return nil // it is gone, or another of that name: its own events tell
	}
	if err != nil {
		return fmt.Errorf("write status of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	s.written = status
	return nil
}

// withoutForeign leaves out the conditions that others write: they must not make ours look changed.
func withoutForeign(s *corev1.PodStatus) *corev1.PodStatus {
	out := s.DeepCopy()
	out.Conditions = nil
	for _, c := range s.Conditions {
		switch c.Type {
		case corev1.PodReadyToStartContainers, corev1.PodInitialized, corev1.PodReady, corev1.ContainersReady:
			out.Conditions = append(out.Conditions, c)
		}
	}
	return out
}

func statusPatch(pod *corev1.Pod, status *corev1.PodStatus) ([]byte, error) {
	before, err := json.Marshal(corev1.Pod{Status: pod.Status})
	if err != nil {
		return nil, err
	}
	// The uid is the condition: the status of one pod must not become another's.
	after, err := json.Marshal(corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: pod.UID}, Status: *status})
	if err != nil {
		return nil, err
	}
	return strategicpatch.CreateTwoWayMergePatch(before, after, corev1.Pod{})
}
