package virtualnode

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway.dev/spillway/internal/fault"
)

// create makes the group of a pod, or says why it cannot be made.
func (p *pods) create(ctx context.Context, pod *corev1.Pod, s *podState) (time.Duration, error) {
	f := p.n.facts()
	f.address = addressOf(pod, f)
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
	case kind == fault.Invalid || kind == fault.TooLarge, kind == fault.Denied && ofHost(r):
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
	p.say(pod, s, "FailedPlacement", err.Error())
	return roomPause, p.write(ctx, pod, s, waitingStatus(pod, why{containerCreating, err.Error()}, p.n.facts(), metav1.Now()))
}

// say emits a warning once for each new text.
func (p *pods) say(pod *corev1.Pod, s *podState, reason, message string) {
	if s.trouble != reason+message {
		s.trouble = reason + message
		p.n.recorder.Event(pod, corev1.EventTypeWarning, reason, message)
	}
}

// fail ends a pod for good.
func (p *pods) fail(ctx context.Context, pod *corev1.Pod, s *podState, reason, message string) error {
	p.say(pod, s, reason, message)
	return p.write(ctx, pod, s, refusedStatus(pod, why{reason, message}, p.n.facts(), metav1.Now()))
}

// retryPause is how often a missing reference is looked for; a watch usually tells earlier.
const retryPause = 5 * time.Second

// wait says what a pod waits for: a reference that is not there.
func (p *pods) wait(ctx context.Context, pod *corev1.Pod, s *podState, err error) (time.Duration, error) {
	if m, ok := errors.AsType[*mountError](err); ok {
		p.say(pod, s, "FailedMount", fmt.Sprintf("MountVolume.SetUp failed for volume %q : %v", m.volume, m.err))
		return retryPause, p.write(ctx, pod, s, waitingStatus(pod, why{containerCreating, ""}, p.n.facts(), metav1.Now()))
	}
	if _, ok := errors.AsType[*configError](err); !ok {
		return 0, err
	}
	p.say(pod, s, "Failed", "Error: "+err.Error())
	return retryPause, p.write(ctx, pod, s, waitingStatus(pod, why{"CreateContainerConfigError", err.Error()}, p.n.facts(), metav1.Now()))
}
