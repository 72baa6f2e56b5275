package virtualnode

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
)

// write patches a pod's status when it has changed.
func (p *pods) write(ctx context.Context, pod *corev1.Pod, s *podState, status *corev1.PodStatus) error {
	if equality.Semantic.DeepEqual(status, &pod.Status) || s.written != nil && equality.Semantic.DeepEqual(withoutForeign(status), withoutForeign(s.written)) {
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
