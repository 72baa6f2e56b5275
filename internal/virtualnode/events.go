package virtualnode

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"spillway.dev/spillway/internal/client"
)

// eventAt tells one event of the platform from a later one of the same kind.
type eventAt struct {
	count int
	last  string
}

// passEvents tells the cluster what the platform says of a pod's containers since it was looked at last. What happened
// before this process began has been told by the one before it.
func (p *pods) passEvents(pod *corev1.Pod, s *podState, group *client.Group) {
	if group == nil || group.Properties.InstanceView == nil {
		return
	}
	for _, e := range group.Properties.InstanceView.Events {
		p.pass(pod, s, "", &e)
	}
	for _, list := range []struct {
		field      string
		containers []client.Container
	}{{"spec.initContainers", group.Properties.InitContainers}, {"spec.containers", group.Properties.Containers}, {"spec.ephemeralContainers", group.Properties.Ephemeral}} {
		for i := range list.containers {
			c := &list.containers[i]
			if v := c.Properties.InstanceView; v != nil {
				for j := range v.Events {
					p.pass(pod, s, list.field+"{"+c.Name+"}", &v.Events[j])
				}
			}
		}
	}
}

func (p *pods) pass(pod *corev1.Pod, s *podState, field string, e *client.GroupEvent) {
	key := field + "\x00" + e.Name + "\x00" + e.Message
	now := eventAt{e.Count, e.Last}
	if s.seen[key] == now {
		return
	}
	s.seen[key] = now
	if at, err := time.Parse(time.RFC3339Nano, e.Last); err != nil || at.Before(p.n.began) {
		return
	}
	ref := &corev1.ObjectReference{Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID, ResourceVersion: pod.ResourceVersion, FieldPath: field}
	p.n.recorder.Event(ref, e.Type, e.Name, e.Message)
}
