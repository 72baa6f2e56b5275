package virtualnode

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"spillway.dev/spillway/internal/client"
)

var testNow = metav1.NewTime(time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC))

// groupOf reads a group as the platform answers: its state, and the instance view of each container.
func groupOf(t *testing.T, state, address string, views map[string]string) *client.Group {
	t.Helper()
	part := func(names ...string) []map[string]any {
		list := []map[string]any{}
		for _, n := range names {
			props := map[string]any{"image": "shop/" + n}
			if v, ok := views[n]; ok {
				props["instanceView"] = json.RawMessage(v)
			}
			list = append(list, map[string]any{"name": n, "properties": props})
		}
		return list
	}
	body, err := json.Marshal(map[string]any{"name": "front-1", "properties": map[string]any{"uid": "abc", "desired": "Run", "host": "h1",
		"instanceView":   map[string]any{"state": state, "address": address, "events": []any{}},
		"initContainers": part("first", "side"), "containers": part("main", "other"), "ephemeralContainers": part("look")}})
	if err != nil {
		t.Fatal(err)
	}
	g := &client.Group{}
	if err := json.Unmarshal(body, g); err != nil {
		t.Fatal(err)
	}
	return g
}

// Instance views as the platform writes them.
const (
	running    = `{"restartCount":0,"ready":true,"started":true,"image":"sha256:aa","currentState":{"state":"Running","startTime":"2026-03-04T05:00:00.123Z","detailStatus":""},"events":[]}`
	unready    = `{"restartCount":0,"ready":false,"started":true,"currentState":{"state":"Running","startTime":"2026-03-04T05:00:00Z","detailStatus":""},"events":[]}`
	starting   = `{"restartCount":0,"ready":false,"started":false,"currentState":{"state":"Running","startTime":"2026-03-04T05:00:00Z","detailStatus":""},"events":[]}`
	done       = `{"restartCount":0,"currentState":{"state":"Terminated","startTime":"2026-03-04T05:00:00Z","finishTime":"2026-03-04T05:00:01Z","exitCode":0,"detailStatus":"Completed"},"events":[]}`
	failed     = `{"restartCount":0,"currentState":{"state":"Terminated","startTime":"2026-03-04T05:00:00Z","finishTime":"2026-03-04T05:00:01Z","exitCode":3,"detailStatus":"Error","message":"no disk"},"events":[]}`
	killed     = `{"restartCount":0,"currentState":{"state":"Terminated","startTime":"2026-03-04T05:00:00Z","finishTime":"2026-03-04T05:00:01Z","exitCode":137,"signal":9,"detailStatus":"OOMKilled"},"events":[]}`
	unknown    = `{"restartCount":0,"currentState":{"state":"Terminated","startTime":"2026-03-04T05:00:00Z","detailStatus":"Unknown"},"events":[]}`
	pulling    = `{"restartCount":0,"currentState":{"state":"Waiting","detailStatus":"ImagePullBackOff: Back-off pulling image \"shop/main\""},"events":[]}`
	looping    = `{"restartCount":4,"ready":false,"currentState":{"state":"Waiting","detailStatus":"CrashLoopBackOff: back-off 40s restarting failed container"},"previousState":{"state":"Terminated","startTime":"2026-03-04T05:00:00Z","finishTime":"2026-03-04T05:00:01Z","exitCode":1,"detailStatus":"Error"},"events":[]}`
	waitingNow = `{"restartCount":0,"currentState":{"state":"Waiting","detailStatus":""},"events":[]}`
)

// statusPod has an init container, a sidecar, two containers and an ephemeral one.
func statusPod() *corev1.Pod {
	always := corev1.ContainerRestartPolicyAlways
	return shopPod(func(p *corev1.Pod) {
		p.Spec.InitContainers = []corev1.Container{{Name: "first", Image: "shop/first"}, {Name: "side", Image: "shop/side", RestartPolicy: &always}}
		p.Spec.Containers = []corev1.Container{{Name: "main", Image: "shop/main"}, {Name: "other", Image: "shop/other"}}
		p.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Name: "look"}}}
	})
}

// shown is a container's state in one word, and what matters beside.
func shown(c corev1.ContainerStatus) string {
	text := "?"
	switch s := c.State; {
	case s.Running != nil:
		text = "Running"
	case s.Terminated != nil:
		text = "Terminated:" + s.Terminated.Reason + ":" + itoa(int(s.Terminated.ExitCode))
	case s.Waiting != nil:
		text = "Waiting:" + s.Waiting.Reason
	}
	if c.Ready {
		text += " ready"
	}
	if c.Started != nil && *c.Started {
		text += " started"
	}
	if c.RestartCount > 0 {
		text += " restarts=" + itoa(int(c.RestartCount))
	}
	return text
}

func conditions(s *corev1.PodStatus) string {
	var out []string
	for _, c := range s.Conditions {
		text := string(c.Type) + "=" + string(c.Status)
		if c.Reason != "" {
			text += ":" + c.Reason
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func TestStatusOfContainers(t *testing.T) {
	for _, c := range []struct {
		name, state      string
		views            map[string]string
		phase            corev1.PodPhase
		first, side      string
		main, conditions string
	}{
		{"nothing yet", "Pending", nil, corev1.PodPending, "Waiting:PodInitializing", "Waiting:PodInitializing", "Waiting:PodInitializing",
			"PodReadyToStartContainers=True Initialized=False:ContainersNotInitialized Ready=False:ContainersNotReady ContainersReady=False:ContainersNotReady PodScheduled=True"},
		{"the first runs", "Pending", map[string]string{"first": starting}, corev1.PodPending, "Running", "Waiting:PodInitializing", "Waiting:PodInitializing",
			"PodReadyToStartContainers=True Initialized=False:ContainersNotInitialized Ready=False:ContainersNotReady ContainersReady=False:ContainersNotReady PodScheduled=True"},
		{"the sidecar has not started", "Pending", map[string]string{"first": done, "side": starting, "main": waitingNow}, corev1.PodPending, "Terminated:Completed:0 ready", "Running", "Waiting:PodInitializing",
			"PodReadyToStartContainers=True Initialized=False:ContainersNotInitialized Ready=False:ContainersNotReady ContainersReady=False:ContainersNotReady PodScheduled=True"},
		{"init is over", "Pending", map[string]string{"first": done, "side": running, "main": waitingNow}, corev1.PodPending, "Terminated:Completed:0 ready", "Running ready started", "Waiting:ContainerCreating",
			"PodReadyToStartContainers=True Initialized=True Ready=False:ContainersNotReady ContainersReady=False:ContainersNotReady PodScheduled=True"},
		{"an image that is not there", "Pending", map[string]string{"first": done, "side": running, "main": pulling}, corev1.PodPending, "Terminated:Completed:0 ready", "Running ready started", "Waiting:ImagePullBackOff",
			"PodReadyToStartContainers=True Initialized=True Ready=False:ContainersNotReady ContainersReady=False:ContainersNotReady PodScheduled=True"},
		{"all runs", "Running", map[string]string{"first": done, "side": running, "main": running, "other": running}, corev1.PodRunning, "Terminated:Completed:0 ready", "Running ready started", "Running ready started",
			"PodReadyToStartContainers=True Initialized=True Ready=True ContainersReady=True PodScheduled=True"},
		{"not ready", "Running", map[string]string{"first": done, "side": running, "main": unready, "other": running}, corev1.PodRunning, "Terminated:Completed:0 ready", "Running ready started", "Running started",
			"PodReadyToStartContainers=True Initialized=True Ready=False:ContainersNotReady ContainersReady=False:ContainersNotReady PodScheduled=True"},
		{"a sidecar that is not ready", "Running", map[string]string{"first": done, "side": unready, "main": running, "other": running}, corev1.PodRunning, "Terminated:Completed:0 ready", "Running started", "Running ready started",
			"PodReadyToStartContainers=True Initialized=True Ready=False:ContainersNotReady ContainersReady=False:ContainersNotReady PodScheduled=True"},
		{"a sidecar starts again", "Running", map[string]string{"first": done, "side": waitingNow, "main": running, "other": running}, corev1.PodRunning, "Terminated:Completed:0 ready", "Waiting:PodInitializing", "Running ready started",
			"PodReadyToStartContainers=True Initialized=True Ready=False:ContainersNotReady ContainersReady=False:ContainersNotReady PodScheduled=True"},
		{"it crashes again and again", "Running", map[string]string{"first": done, "side": running, "main": looping, "other": running}, corev1.PodRunning, "Terminated:Completed:0 ready", "Running ready started", "Waiting:CrashLoopBackOff restarts=4",
			"PodReadyToStartContainers=True Initialized=True Ready=False:ContainersNotReady ContainersReady=False:ContainersNotReady PodScheduled=True"},
		{"done", "Succeeded", map[string]string{"first": done, "side": done, "main": done, "other": done}, corev1.PodSucceeded, "Terminated:Completed:0 ready", "Terminated:Completed:0", "Terminated:Completed:0",
			"PodReadyToStartContainers=False Initialized=True:PodCompleted Ready=False:PodCompleted ContainersReady=False:PodCompleted PodScheduled=True"},
		{"failed", "Failed", map[string]string{"first": done, "side": done, "main": failed, "other": done}, corev1.PodFailed, "Terminated:Completed:0 ready", "Terminated:Completed:0", "Terminated:Error:3",
			"PodReadyToStartContainers=False Initialized=True Ready=False:PodFailed ContainersReady=False:PodFailed PodScheduled=True"},
		{"out of memory", "Failed", map[string]string{"first": done, "side": done, "main": killed, "other": done}, corev1.PodFailed, "Terminated:Completed:0 ready", "Terminated:Completed:0", "Terminated:OOMKilled:137",
			"PodReadyToStartContainers=False Initialized=True Ready=False:PodFailed ContainersReady=False:PodFailed PodScheduled=True"},
		{"nobody saw how it ended", "Failed", map[string]string{"first": done, "side": done, "main": unknown, "other": done}, corev1.PodFailed, "Terminated:Completed:0 ready", "Terminated:Completed:0", "Terminated:ContainerStatusUnknown:137",
			"PodReadyToStartContainers=False Initialized=True Ready=False:PodFailed ContainersReady=False:PodFailed PodScheduled=True"},
		{"init has failed", "Failed", map[string]string{"first": failed}, corev1.PodFailed, "Terminated:Error:3", "Waiting:PodInitializing", "Waiting:PodInitializing",
			"PodReadyToStartContainers=False Initialized=False:ContainersNotInitialized Ready=False:PodFailed ContainersReady=False:PodFailed PodScheduled=True"},
		{"stopped after its work", "Stopped", map[string]string{"first": done, "side": done, "main": done, "other": done}, corev1.PodSucceeded, "Terminated:Completed:0 ready", "Terminated:Completed:0", "Terminated:Completed:0",
			"PodReadyToStartContainers=False Initialized=True:PodCompleted Ready=False:PodCompleted ContainersReady=False:PodCompleted PodScheduled=True"},
		{"stopped in its work", "Stopped", map[string]string{"first": done, "side": done, "main": killed, "other": done}, corev1.PodFailed, "Terminated:Completed:0 ready", "Terminated:Completed:0", "Terminated:OOMKilled:137",
			"PodReadyToStartContainers=False Initialized=True Ready=False:PodFailed ContainersReady=False:PodFailed PodScheduled=True"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := statusOf(statusPod(), groupOf(t, c.state, "10.1.0.7", c.views), testFacts(), testNow)
			if s.Phase != c.phase {
				t.Errorf("phase = %s, want %s", s.Phase, c.phase)
			}
			if got := shown(s.InitContainerStatuses[0]); got != c.first {
				t.Errorf("first = %s, want %s", got, c.first)
			}
			if got := shown(s.InitContainerStatuses[1]); got != c.side {
				t.Errorf("side = %s, want %s", got, c.side)
			}
			if got := shown(s.ContainerStatuses[0]); got != c.main {
				t.Errorf("main = %s, want %s", got, c.main)
			}
			if got := conditions(s); got != c.conditions {
				t.Errorf("conditions = %s\nwant         %s", got, c.conditions)
			}
			if s.ObservedGeneration != 3 || s.PodIP != "10.1.0.7" || len(s.PodIPs) != 1 || s.HostIP != "192.0.2.10" || s.StartTime == nil {
				t.Errorf("generation, addresses or start are missing: %+v", s)
			}
			if len(s.EphemeralContainerStatuses) != 1 || shown(s.EphemeralContainerStatuses[0]) != "Waiting:ContainerCreating" {
				t.Errorf("ephemeral = %+v", s.EphemeralContainerStatuses)
			}
		})
	}
}

func TestStatusDetails(t *testing.T) {
	s := statusOf(statusPod(), groupOf(t, "Running", "10.1.0.7", map[string]string{"first": failed, "main": looping, "other": running, "look": done}), testFacts(), testNow)
	main, other := s.ContainerStatuses[0], s.ContainerStatuses[1]
	if w := main.State.Waiting; w.Message != "back-off 40s restarting failed container" {
		t.Errorf("message = %q", w.Message)
	}
	last := main.LastTerminationState.Terminated
	if last == nil || last.ExitCode != 1 || last.ContainerID != "spillway://abc.main.3" || main.ContainerID != last.ContainerID {
		t.Errorf("last = %+v, id = %q: a container that waits has the id of its last run", last, main.ContainerID)
	}
	if other.ContainerID != "spillway://abc.other.0" || other.ImageID != "sha256:aa" || other.State.Running.StartedAt.String() != metav1.NewTime(time.Date(2026, 3, 4, 5, 0, 0, 0, time.UTC)).String() {
		t.Errorf("other = %+v", other)
	}
	if first := s.InitContainerStatuses[0].State.Terminated; first.Message != "no disk" || first.FinishedAt.IsZero() {
		t.Errorf("first = %+v", first)
	}
	if look := shown(s.EphemeralContainerStatuses[0]); look != "Terminated:Completed:0" {
		t.Errorf("look = %s: an ephemeral container is never ready", look)
	}
}

// TestTransitionTimes: a time changes with the status of its condition, and with nothing else.
func TestTransitionTimes(t *testing.T) {
	pod := statusPod()
	views := map[string]string{"first": done, "side": running, "main": unready, "other": running}
	pod.Status = *statusOf(pod, groupOf(t, "Running", "10.1.0.7", views), testFacts(), testNow)
	later := metav1.NewTime(testNow.Add(time.Minute))
	if diff := cmp.Diff(&pod.Status, statusOf(pod, groupOf(t, "Running", "10.1.0.7", views), testFacts(), later)); diff != "" {
		t.Errorf("the same group gives another status (-then +now):\n%s", diff)
	}
	views["main"] = running
	for _, c := range statusOf(pod, groupOf(t, "Running", "10.1.0.7", views), testFacts(), later).Conditions {
		want := testNow
		if c.Type == corev1.PodReady || c.Type == corev1.ContainersReady {
			want = later
		}
		if !c.LastTransitionTime.Equal(&want) {
			t.Errorf("transition of %s = %s, want %s", c.Type, c.LastTransitionTime, want)
		}
	}
}

// TestOthersConditionsStay: controllers write readiness gates and whatever else into the same list.
func TestOthersConditionsStay(t *testing.T) {
	pod := statusPod()
	pod.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "shop.example/open"}}
	g := groupOf(t, "Running", "10.1.0.7", map[string]string{"first": done, "side": running, "main": running, "other": running})
	s := statusOf(pod, g, testFacts(), testNow)
	if got, want := conditions(s), "PodReadyToStartContainers=True Initialized=True Ready=False:ReadinessGatesNotReady ContainersReady=True PodScheduled=True"; got != want {
		t.Errorf("conditions = %s, want %s", got, want)
	}
	pod.Status.Conditions = []corev1.PodCondition{{Type: "shop.example/open", Status: corev1.ConditionTrue}, {Type: "other.example/thing", Status: corev1.ConditionFalse}}
	s = statusOf(pod, g, testFacts(), testNow)
	if got := conditions(s); !strings.HasPrefix(got, "shop.example/open=True other.example/thing=False ") || !strings.Contains(got, " Ready=True ") {
		t.Errorf("conditions = %s, want the others' first, and ready", got)
	}
}

func TestStatusOfPodsWithoutGroup(t *testing.T) {
	pod := statusPod()
	pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue, Reason: "Bound", LastTransitionTime: testNow}}
	s := waitingStatus(pod, why{"CreateContainerConfigError", `secret "none" not found`}, testFacts(), testNow)
	if s.Phase != corev1.PodPending || shown(s.InitContainerStatuses[0]) != "Waiting:CreateContainerConfigError" || shown(s.ContainerStatuses[0]) != "Waiting:PodInitializing" {
		t.Errorf("waiting = %+v", s)
	}
	if got := s.InitContainerStatuses[0].State.Waiting.Message; got != `secret "none" not found` {
		t.Errorf("message = %q", got)
	}
	if s.Conditions[0].Reason != "Bound" {
		t.Errorf("the scheduler's condition became %+v", s.Conditions[0])
	}
	pod.Spec.InitContainers = nil
	s = waitingStatus(pod, why{"CreateContainerConfigError", "x"}, testFacts(), testNow)
	if shown(s.ContainerStatuses[0]) != "Waiting:CreateContainerConfigError" || len(s.InitContainerStatuses) != 0 {
		t.Errorf("waiting without init containers = %+v", s)
	}
	s = failedStatus(pod, why{"UnsupportedPodSpec", "spec.hostNetwork: no"}, testFacts(), testNow)
	if s.Phase != corev1.PodFailed || s.Reason != "UnsupportedPodSpec" || s.Message != "spec.hostNetwork: no" || s.StartTime == nil || s.HostIP != "192.0.2.10" {
		t.Errorf("failed = %+v", s)
	}
	if pod.Status.Phase != "" {
		t.Error("the pod itself was changed")
	}
}

// TestEndAll: of containers that were running when their group went, nobody knows how they ended.
func TestEndAll(t *testing.T) {
	s := statusOf(statusPod(), groupOf(t, "Running", "10.1.0.7", map[string]string{"first": done, "side": running, "main": running, "other": failed}), testFacts(), testNow)
	endAll(s, testNow)
	for name, want := range map[string]string{shown(s.InitContainerStatuses[0]): "Terminated:Completed:0 ready", shown(s.InitContainerStatuses[1]): "Terminated:ContainerStatusUnknown:137 started",
		shown(s.ContainerStatuses[0]): "Terminated:ContainerStatusUnknown:137 started", shown(s.ContainerStatuses[1]): "Terminated:Error:3"} {
		if strings.TrimSuffix(name, " started") != strings.TrimSuffix(want, " started") {
			t.Errorf("container = %s, want %s", name, want)
		}
	}
}

func TestReasonAndMessage(t *testing.T) {
	for text, want := range map[string][2]string{
		"":                               {"", ""},
		"OOMKilled":                      {"OOMKilled", ""},
		"CrashLoopBackOff: back-off 10s": {"CrashLoopBackOff", "back-off 10s"},
		"a text: of words":               {"", "a text: of words"},
		"just words":                     {"", "just words"},
		"A: b: c":                        {"A", "b: c"},
	} {
		if reason, message := reasonAndMessage(text); reason != want[0] || message != want[1] {
			t.Errorf("reasonAndMessage(%q) = %q, %q, want %q", text, reason, message, want)
		}
	}
}

// TestStatusPatchHoldsItsPod: a patch must not land on another pod of the same name.
func TestStatusPatchHoldsItsPod(t *testing.T) {
	pod := statusPod()
	pod.Status.Conditions = []corev1.PodCondition{{Type: "shop.example/open", Status: corev1.ConditionTrue}}
	s := statusOf(pod, groupOf(t, "Running", "10.1.0.7", map[string]string{"main": running}), testFacts(), testNow)
	patch, err := statusPatch(pod, s)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Metadata struct{ UID string }
		Status   struct {
			Phase      string
			Conditions []struct{ Type string }
		}
	}
	if err := json.Unmarshal(patch, &got); err != nil {
		t.Fatal(err)
	}
	if got.Metadata.UID != string(pod.UID) || got.Status.Phase != "Running" {
		t.Errorf("patch = %s, want the pod's uid and its phase", patch)
	}
	for _, c := range got.Status.Conditions {
		if c.Type == "shop.example/open" {
			t.Errorf("patch = %s: it writes another's condition", patch)
		}
	}
}

// TestRefusalIsACondition looks for the field where controllers look.
func TestRefusalIsACondition(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c"}}}}
	s := refusedStatus(pod, why{"UnsupportedPodSpec", "spec.hostPID: refused"}, &facts{}, metav1.Now())
	if s.Phase != corev1.PodFailed || s.Reason != "UnsupportedPodSpec" {
		t.Errorf("phase %s, reason %s; want a failed pod", s.Phase, s.Reason)
	}
	for _, c := range s.Conditions {
		if c.Type == corev1.PodReady {
			if c.Status != corev1.ConditionFalse || c.Reason != "UnsupportedPodSpec" || c.Message != "spec.hostPID: refused" {
				t.Errorf("condition Ready = %+v, want one that names the field", c)
			}
			return
		}
	}
	t.Error("there is no condition Ready")
}
