package virtualnode

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway.dev/spillway/internal/client"
)

// Reasons of a waiting container that a kubelet has too.
const (
	containerCreating = "ContainerCreating"
	podInitializing   = "PodInitializing"
)

// statusOf is a pod's status as a kubelet would write it, from what the platform says of its group. It starts from the
// present status, so that what others wrote stays.
func statusOf(pod *corev1.Pod, g *client.Group, f *facts, now metav1.Time) *corev1.PodStatus {
	s := pod.Status.DeepCopy()
	s.ObservedGeneration = pod.Generation
	if s.HostIP == "" {
		s.HostIP, s.HostIPs = f.nodeIP, []corev1.HostIP{{IP: f.nodeIP}}
	}
	if s.StartTime == nil {
		s.StartTime = &now
	}
	view := g.Properties.InstanceView
	if view == nil {
		return s
	}
	if pod.Spec.HostNetwork {
		s.PodIP, s.PodIPs = s.HostIP, []corev1.PodIP{{IP: s.HostIP}}
	} else if view.Address != "" {
		s.PodIP, s.PodIPs = view.Address, []corev1.PodIP{{IP: view.Address}}
	}
	b := statusBuilder{pod: pod, group: g, now: now}
	initialized := b.initialized()
	s.InitContainerStatuses = b.list(pod.Spec.InitContainers, g.Properties.InitContainers, podInitializing)
	waiting := containerCreating
	if !initialized {
		waiting = podInitializing
	}
	s.ContainerStatuses = b.list(pod.Spec.Containers, g.Properties.Containers, waiting)
	s.EphemeralContainerStatuses = b.ephemeral()
	s.Phase = b.phase(view.State)
	if view.Reason != "" && s.Phase == corev1.PodFailed {
		s.Reason, s.Message = reasonAndMessage(view.Reason)
	}
	setConditions(pod, s, reached{initialized, view.Address != ""}, now)
	if waits(g) {
		roomless(pod, s, view.Reason, now)
	}
	return s
}

type (
	groupContainer = client.Container
	moment         = client.Moment
)

type statusBuilder struct {
	pod   *corev1.Pod
	group *client.Group
	now   metav1.Time
}

// initialized says whether the init containers have done their work. Once a container has started they have: a sidecar
// that starts again does not undo it.
func (b *statusBuilder) initialized() bool {
	for _, c := range b.group.Properties.Containers {
		if v := c.Properties.InstanceView; v != nil && (v.RestartCount > 0 || v.Current != nil && v.Current.State != "Waiting") {
			return true
		}
	}
	for i, c := range b.group.Properties.InitContainers {
		v := c.Properties.InstanceView
		if v == nil || v.Current == nil || i >= len(b.pod.Spec.InitContainers) {
			return false
		}
		if sidecar(&b.pod.Spec.InitContainers[i]) {
			if !v.Started {
				return false
			}
		} else if v.Current.State != "Terminated" || v.Current.ExitCode == nil || *v.Current.ExitCode != 0 {
			return false
		}
	}
	return true
}

func sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// list is the statuses of containers, in the pod's order.
func (b *statusBuilder) list(specs []corev1.Container, have []groupContainer, waiting string) []corev1.ContainerStatus {
	var out []corev1.ContainerStatus
	for i := range specs {
		out = append(out, b.one(&specs[i], find(have, specs[i].Name), waiting))
	}
	return out
}

func find(list []groupContainer, name string) *groupContainer {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

func (b *statusBuilder) ephemeral() []corev1.ContainerStatus {
	var out []corev1.ContainerStatus
	for i := range b.pod.Spec.EphemeralContainers {
		c := corev1.Container(b.pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)
		out = append(out, b.one(&c, find(b.group.Properties.Ephemeral, c.Name), containerCreating))
	}
	return out
}

// one is the status of one container.
func (b *statusBuilder) one(spec *corev1.Container, c *groupContainer, waiting string) corev1.ContainerStatus {
	no := false
	s := corev1.ContainerStatus{Name: spec.Name, Image: spec.Image, Started: &no, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: waiting}}}
	if c == nil || c.Properties.InstanceView == nil {
		return s
	}
	v := c.Properties.InstanceView
	s.RestartCount, s.Ready = int32(v.RestartCount), v.Ready != nil && *v.Ready
	s.ImageID = v.ImageDigest
	id := b.containerID(spec.Name, v.RestartCount)
	if v.Current != nil {
		s.State = stateOf(v.Current, id, waiting)
	}
	if v.Previous != nil && v.Previous.State == "Terminated" {
		s.LastTerminationState = stateOf(v.Previous, b.containerID(spec.Name, v.RestartCount-1), "")
	}
	if s.State.Waiting == nil {
		s.ContainerID = id
	} else if t := s.LastTerminationState.Terminated; t != nil {
		s.ContainerID = t.ContainerID
	}
	started := s.State.Running != nil && v.Started
	s.Started = &started
	if b.isInit(spec.Name) {
		// An init container is ready when it has done its work, and not before.
		s.Ready = s.State.Terminated != nil && s.State.Terminated.ExitCode == 0
	} else if s.State.Running == nil {
		s.Ready = false
	}
	b.actual(&s, spec)
	return s
}

// actual is what the container has of its resources: with the platform that is what it asked for.
func (b *statusBuilder) actual(s *corev1.ContainerStatus, spec *corev1.Container) {
	if s.State.Running == nil {
		return
	}
	s.Resources = spec.Resources.DeepCopy()
	s.AllocatedResources = spec.Resources.Requests.DeepCopy()
}

func (b *statusBuilder) isInit(name string) bool {
	for i := range b.pod.Spec.InitContainers {
		if c := &b.pod.Spec.InitContainers[i]; c.Name == name {
			return !sidecar(c)
		}
	}
	return false
}

// containerID names a run of a container: the group, the container and how often it was restarted before.
func (b *statusBuilder) containerID(name string, restarts int) string {
	return "spillway://" + b.group.Properties.UID + "." + name + "." + itoa(max(restarts, 0))
}

// stateOf translates a moment in a container's life.
func stateOf(m *moment, id, waiting string) corev1.ContainerState {
	switch m.State {
	case "Running":
		return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: timeOf(m.Start)}}
	case "Terminated":
		t := &corev1.ContainerStateTerminated{Reason: m.Detail, Message: m.Message, Signal: int32(m.Signal),
			StartedAt: timeOf(m.Start), FinishedAt: timeOf(m.Finish), ContainerID: id}
		if m.ExitCode != nil {
			t.ExitCode = int32(*m.ExitCode)
		} else {
			// A kubelet that does not know how a container ended says so with this code and reason.
			t.ExitCode, t.Reason = 137, "ContainerStatusUnknown"
		}
		if t.Reason == "" || t.ExitCode != 0 && t.Reason == "Completed" {
			t.Reason = "Error"
		}
		return corev1.ContainerState{Terminated: t}
	}
	reason, message := reasonAndMessage(m.Detail)
	if reason == "" || reason == containerCreating {
		reason = waiting
	}
	if m.Message != "" {
		message = m.Message
	}
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
}

// reasonAndMessage takes "Reason: message" apart.
func reasonAndMessage(text string) (string, string) {
	reason, message, ok := strings.Cut(text, ": ")
	if !ok || strings.ContainsAny(reason, " \t") {
		if strings.ContainsAny(text, " \t") {
			return "", text
		}
		return text, ""
	}
	return reason, message
}

func timeOf(text string) metav1.Time {
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil {
		return metav1.Time{}
	}
	return metav1.NewTime(t.Truncate(time.Second))
}

// phase is the pod's phase from the group's state.
func (b *statusBuilder) phase(state string) corev1.PodPhase {
	switch state {
	case "Running":
		return corev1.PodRunning
	case "Succeeded":
		return corev1.PodSucceeded
	case "Failed":
		return corev1.PodFailed
	case "Stopped":
		// Stopped from outside, or on the way to deletion: what its containers did decides.
		return b.outcome()
	}
	return corev1.PodPending
}

func (b *statusBuilder) outcome() corev1.PodPhase {
	for _, c := range b.group.Properties.Containers {
		v := c.Properties.InstanceView
		if v == nil || v.Current == nil || v.Current.State != "Terminated" || v.Current.ExitCode == nil || *v.Current.ExitCode != 0 {
			return corev1.PodFailed
		}
	}
	return corev1.PodSucceeded
}

// reached is what a pod has behind it.
type reached struct {
	initialized bool // its init containers have done their work
	sandbox     bool // it has an address: containers can start
}

// setConditions writes the conditions that are a node's to write.
func setConditions(pod *corev1.Pod, s *corev1.PodStatus, got reached, now metav1.Time) {
	done := s.Phase == corev1.PodSucceeded || s.Phase == corev1.PodFailed
	var notReady, notInitialized []string
	for _, c := range s.ContainerStatuses {
		if !c.Ready {
			notReady = append(notReady, c.Name)
		}
	}
	for i, c := range s.InitContainerStatuses {
		if sidecar(&pod.Spec.InitContainers[i]) {
			if !c.Ready {
				notReady = append(notReady, c.Name)
			}
		} else if !c.Ready {
			notInitialized = append(notInitialized, c.Name)
		}
	}
	ready := condition{kind: corev1.ContainersReady, ok: len(notReady) == 0 && !done && s.Phase == corev1.PodRunning}
	switch {
	case s.Phase == corev1.PodSucceeded:
		ready.reason = "PodCompleted"
	case s.Phase == corev1.PodFailed:
		ready.reason = "PodFailed"
	case !ready.ok:
		ready.reason, ready.message = "ContainersNotReady", "containers with unready status: ["+strings.Join(notReady, " ")+"]"
	}
	initial := condition{kind: corev1.PodInitialized, ok: got.initialized || s.Phase == corev1.PodSucceeded}
	if !initial.ok {
		initial.reason, initial.message = "ContainersNotInitialized", "containers with incomplete status: ["+strings.Join(notInitialized, " ")+"]"
	} else if s.Phase == corev1.PodSucceeded {
		initial.reason = "PodCompleted"
	}
	whole := ready
	whole.kind = corev1.PodReady
	for _, gate := range pod.Spec.ReadinessGates {
		if whole.ok && !conditionTrue(s.Conditions, gate.ConditionType) {
			whole.ok, whole.reason = false, "ReadinessGatesNotReady"
			whole.message = "corresponding condition of pod readiness gate \"" + string(gate.ConditionType) + "\" does not exist or is not True."
		}
	}
	for _, c := range []condition{{kind: corev1.PodReadyToStartContainers, ok: got.sandbox && !done}, initial, whole, ready, {kind: corev1.PodScheduled, ok: true}} {
		c.set(s, pod.Generation, now)
	}
}

// condition is one to be set.
type condition struct {
	kind            corev1.PodConditionType
	ok              bool
	reason, message string
}

func (c condition) set(s *corev1.PodStatus, generation int64, now metav1.Time) {
	status := corev1.ConditionFalse
	if c.ok {
		status = corev1.ConditionTrue
	}
	for i := range s.Conditions {
		old := &s.Conditions[i]
		if old.Type != c.kind {
			continue
		}
		if old.Status != status {
			old.LastTransitionTime = now
		}
		if c.kind != corev1.PodScheduled {
			old.Reason, old.Message = c.reason, c.message
		}
		old.Status, old.ObservedGeneration = status, generation
		return
	}
	s.Conditions = append(s.Conditions, corev1.PodCondition{Type: c.kind, Status: status, Reason: c.reason, Message: c.message,
		LastTransitionTime: now, ObservedGeneration: generation})
}

func conditionTrue(list []corev1.PodCondition, kind corev1.PodConditionType) bool {
	for _, c := range list {
		if c.Type == kind {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// why says why a pod or a container is as it is.
type why struct{ reason, message string }

// failedStatus is the status of a pod that will never run here.
func failedStatus(pod *corev1.Pod, because why, f *facts, now metav1.Time) *corev1.PodStatus {
	s := pod.Status.DeepCopy()
	s.ObservedGeneration = pod.Generation
	s.Phase, s.Reason, s.Message = corev1.PodFailed, because.reason, because.message
	if s.StartTime == nil {
		s.StartTime = &now
	}
	s.HostIP, s.HostIPs = f.nodeIP, []corev1.HostIP{{IP: f.nodeIP}}
	return s
}

// refusedStatus is the status of a pod that the node does not take. Its condition says why, as controllers and people
// look there.
func refusedStatus(pod *corev1.Pod, because why, f *facts, now metav1.Time) *corev1.PodStatus {
	s := failedStatus(pod, because, f, now)
	setConditions(pod, s, reached{initialized: len(pod.Spec.InitContainers) == 0}, now)
	condition{kind: corev1.PodReady, reason: because.reason, message: because.message}.set(s, pod.Generation, now)
	return s
}

// waitingStatus is the status of a pod whose group cannot be made yet.
func waitingStatus(pod *corev1.Pod, because why, f *facts, now metav1.Time) *corev1.PodStatus {
	s := pod.Status.DeepCopy()
	s.ObservedGeneration, s.Phase = pod.Generation, corev1.PodPending
	if s.StartTime == nil {
		s.StartTime = &now
	}
	s.HostIP, s.HostIPs = f.nodeIP, []corev1.HostIP{{IP: f.nodeIP}}
	no := false
	list := func(specs []corev1.Container, because why) []corev1.ContainerStatus {
		var out []corev1.ContainerStatus
		for i := range specs {
			out = append(out, corev1.ContainerStatus{Name: specs[i].Name, Image: specs[i].Image, Started: &no,
				State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: because.reason, Message: because.message}}})
		}
		return out
	}
	if len(pod.Spec.InitContainers) > 0 {
		s.InitContainerStatuses = list(pod.Spec.InitContainers, because)
		s.ContainerStatuses = list(pod.Spec.Containers, why{reason: podInitializing})
	} else {
		s.ContainerStatuses = list(pod.Spec.Containers, because)
	}
	setConditions(pod, s, reached{initialized: len(pod.Spec.InitContainers) == 0}, now)
	return s
}
