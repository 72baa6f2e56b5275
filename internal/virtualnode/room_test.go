package virtualnode

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestStatusOfPodsThatWaitForRoom: the pod says why the platform has no place for its group.
func TestStatusOfPodsThatWaitForRoom(t *testing.T) {
	for _, init := range []bool{false, true} {
		pod := statusPod()
		if !init {
			pod.Spec.InitContainers = nil
		}
		g := groupOf(t, "Pending", "", nil)
		g.Properties.Host = ""
		g.Properties.InstanceView.Reason = "FailedPlacement: 3 hosts: 2 lack memory, 1 is cordoned"
		s := statusOf(pod, g, testFacts(), testNow)
		list := s.ContainerStatuses
		if init {
			list = s.InitContainerStatuses
		}
		const want = "3 hosts: 2 lack memory, 1 is cordoned"
		if w := list[0].State.Waiting; s.Phase != corev1.PodPending || w == nil || w.Message != want {
			t.Errorf("the pod is %s, its first container %+v", s.Phase, list[0].State)
		}
		found := false
		for _, c := range s.Conditions {
			if c.Type == corev1.PodReadyToStartContainers {
				found = c.Status == corev1.ConditionFalse && c.Reason == "FailedPlacement" && c.Message == want
			}
		}
		if !found {
			t.Errorf("the conditions are %+v", s.Conditions)
		}
		if !waits(g) {
			t.Error("the group does not wait")
		}
		g.Properties.Desired = "Stop"
		if waits(g) {
			t.Error("a stopped group waits")
		}
	}
}
