package virtualnode

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
)

// follow keeps group and pod alike: changes of the pod go down, the group's status goes up.
func (p *pods) follow(ctx context.Context, pod *corev1.Pod, s *podState, group *client.Group) (time.Duration, error) {
	if left, set := deadline(pod, time.Now()); set && left <= 0 {
		status := statusOf(pod, group, p.n.facts(), metav1.Now())
		status.Phase, status.Reason, status.Message = corev1.PodFailed, "DeadlineExceeded", "Pod was active on the node longer than the specified deadline"
		p.n.recorder.Event(pod, corev1.EventTypeNormal, "DeadlineExceeded", status.Message)
		return 0, p.write(ctx, pod, s, status)
	}
	room, over, err := p.awaitRoom(ctx, pod, s, group)
	if over || err != nil {
		return 0, err
	}
	if err := p.write(ctx, pod, s, statusOf(pod, group, p.n.facts(), metav1.Now())); err != nil {
		return 0, err
	}
	again, err := p.update(ctx, pod, s, group)
	if room > 0 && (again == 0 || room < again) {
		again = room
	}
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
	f.address = addressOf(pod, f)
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
		p.say(pod, s, "FailedUpdate", err.Error())
		return again, nil
	}
	if err != nil {
		return 0, fmt.Errorf("update group of pod %s/%s: %w", pod.Namespace, pod.Name, ignoreMissing(err))
	}
	s.live = body
	p.n.mirror.put(string(pod.UID), g)
	if asksForPtrace(pod) {
		p.say(pod, s, "CapabilityNotGranted", "spec.ephemeralContainers: SYS_PTRACE is not granted on a shared platform; processes of the debugger's own user can be traced without it")
	}
	return again, nil
}

func hasFiles(r *groupResource) bool {
	return slices.ContainsFunc(r.Properties.Volumes, func(v volume) bool { return v.hasFiles() })
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
		if v.hasFiles() {
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
