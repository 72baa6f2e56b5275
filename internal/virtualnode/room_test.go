package virtualnode

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"spillway.dev/spillway/internal/client"
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

// TestPodsWaitForRoomSoLong: a pod whose group waits longer than it may fails, and its group is stopped.
func TestPodsWaitForRoomSoLong(t *testing.T) {
	stopped := ""
	platform := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/token") {
			_, _ = io.WriteString(w, `{"access_token":"t","expires_in":3600,"token_type":"Bearer"}`)
			return
		}
		stopped = r.URL.Path
		w.WriteHeader(http.StatusNoContent)
	}))
	defer platform.Close()
	c, err := client.New(client.Config{Endpoint: platform.URL, TenantID: "tenant", SubscriptionID: "sub", ClientID: "a", ClientSecret: "b", ResourceGroup: "rg"})
	if err != nil {
		t.Fatal(err)
	}
	pod := shopPod(nil)
	n := &Node{platform: c, kube: fake.NewClientset(pod), recorder: record.NewFakeRecorder(10)}
	n.cfg.RoomTimeout, n.cfg.ClusterDNS = time.Hour, "10.96.0.10"
	p, s := &pods{n: n}, &podState{}
	g := groupOf(t, "Pending", "", nil)
	g.Properties.Host, g.Properties.InstanceView.Reason = "", "FailedPlacement: no host is connected"
	if left, over, err := p.awaitRoom(t.Context(), pod, s, g); left < 59*time.Minute || over || err != nil || stopped != "" {
		t.Errorf("awaitRoom at first = %s, %t, %v; stopped %q", left, over, err, stopped)
	}
	s.since = s.since.Add(-time.Hour)
	if _, over, err := p.awaitRoom(t.Context(), pod, s, g); !over || err != nil || !strings.HasSuffix(stopped, "/containerGroups/front-1/stop") {
		t.Errorf("awaitRoom after an hour = %t, %v; stopped %q", over, err, stopped)
	}
	now, err := n.kube.CoreV1().Pods(pod.Namespace).Get(t.Context(), pod.Name, metav1.GetOptions{})
	if err != nil || now.Status.Phase != corev1.PodFailed || now.Status.Reason != "OutOfResources" || now.Status.Message != "no host is connected" {
		t.Errorf("the pod is %+v, %v", now.Status, err)
	}
	g.Properties.Host = "h1"
	if left, over, err := p.awaitRoom(t.Context(), pod, s, g); left != 0 || over || err != nil || !s.since.IsZero() {
		t.Errorf("awaitRoom with a host = %s, %t, %v", left, over, err)
	}
}
