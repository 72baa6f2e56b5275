package virtualnode

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
)

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
		status := failedStatus(pod, why{pod.Status.Reason, pod.Status.Message}, p.n.facts(), metav1.Now())
		if group != nil {
			status = statusOf(pod, group, p.n.facts(), metav1.Now())
			endAll(status, metav1.Now())
			if status.Phase != corev1.PodSucceeded {
				status.Phase = corev1.PodFailed
			}
		}
		setConditions(pod, status, reached{initialized: true}, metav1.Now())
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
		p.n.tokens.drop(uid)
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
