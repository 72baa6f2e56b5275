package virtualnode

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway.dev/spillway/internal/client"
)

// waits says whether a group has no host and is to get one as soon as there is room.
func waits(g *client.Group) bool {
	own := g.Properties.OwnGroup
	return own != nil && own.Host == "" && own.Desired == "Run" && !ended(g)
}

// roomless says in a pod's status why its group waits: of the containers that could start, and in the condition that
// tells whether they can.
func roomless(pod *corev1.Pod, s *corev1.PodStatus, because string, now metav1.Time) {
	reason, message := reasonAndMessage(because)
	list := s.ContainerStatuses
	if len(s.InitContainerStatuses) > 0 {
		list = s.InitContainerStatuses
	}
	for i := range list {
		if w := list[i].State.Waiting; w != nil {
			w.Message = message
		}
	}
	condition{kind: corev1.PodReadyToStartContainers, reason: reason, message: message}.set(s, pod.Generation, now)
}

// awaitRoom counts how long the group of a pod has been waiting, and ends it when that is too long: the pod fails, so
// that its controller makes another elsewhere. left is when to look again, 0 when nothing waits.
func (p *pods) awaitRoom(ctx context.Context, pod *corev1.Pod, s *podState, group *client.Group) (left time.Duration, over bool, err error) {
	if !waits(group) {
		s.since = time.Time{}
		return 0, false, nil
	}
	if s.since.IsZero() {
		s.since = time.Now()
	}
	if left = p.n.cfg.RoomTimeout - time.Since(s.since); left > 0 {
		return left, false, nil
	}
	message := ""
	if v := group.Properties.InstanceView; v != nil {
		_, message = reasonAndMessage(v.Reason)
	}
	if err := ignoreMissing(p.n.platform.Stop(ctx, p.n.cfg.ResourceGroup, group.Name)); err != nil {
		return 0, true, err
	}
	return 0, true, p.fail(ctx, pod, s, "OutOfResources", message)
}
