package virtualnode

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	k8stesting "k8s.io/client-go/testing"
)

func podOwnedBy(name, kind string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)}, Spec: corev1.PodSpec{NodeName: "n"}}
	if kind != "" {
		p.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: "owner", Controller: new(true)}}
	}
	return p
}

// drained is a cluster of some pods in which an eviction ends the pod, unless hold says that a budget does not allow it.
func drained(hold func(name string) bool, pods ...*corev1.Pod) (*fake.Clientset, *[]string) {
	objects := []runtime.Object{&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}}
	for _, p := range pods {
		objects = append(objects, p)
	}
	kube := fake.NewClientset(objects...)
	var evicted []string
	kube.PrependReactor("create", "pods", func(a k8stesting.Action) (bool, runtime.Object, error) {
		if a.GetSubresource() != "eviction" {
			return false, nil, nil
		}
		name := a.(k8stesting.CreateAction).GetObject().(metav1.Object).GetName()
		if hold(name) {
			return true, nil, apierrors.NewTooManyRequests("budget web needs 2 pods", 1)
		}
		evicted = append(evicted, name)
		return true, nil, kube.Tracker().Delete(corev1.SchemeGroupVersion.WithResource("pods"), "default", name)
	})
	return kube, &evicted
}

func TestDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		done := podOwnedBy("done", "Job")
		done.Status.Phase = corev1.PodSucceeded
		kube, evicted := drained(func(name string) bool { return name == "held" && time.Since(began) < 5*time.Second },
			podOwnedBy("free", "ReplicaSet"), podOwnedBy("held", "ReplicaSet"), podOwnedBy("daemon", "DaemonSet"), done)
		var said []string
		d := Draining{Kube: kube, Node: "n", Say: func(line string) { said = append(said, line) }}
		if err := d.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(*evicted, " "); got != "free held" {
			t.Errorf("evicted %q, want free and then held", got)
		}
		if !strings.Contains(strings.Join(said, "\n"), "default/held (budget web needs 2 pods)") {
			t.Errorf("said %q: nothing of the budget", said)
		}
		n, err := kube.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
		if err != nil || !n.Spec.Unschedulable {
			t.Errorf("the node takes new pods: %v", err)
		}
	})
}

func TestDrainSparesPodsThatNobodyMakesAgain(t *testing.T) {
	kube, evicted := drained(func(string) bool { return false }, podOwnedBy("bare", ""), podOwnedBy("free", "ReplicaSet"))
	d := Draining{Kube: kube, Node: "n", Say: func(string) {}}
	if err := d.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "default/bare") || len(*evicted) > 0 {
		t.Errorf("drain = %v after the eviction of %q, want a refusal that names default/bare", err, *evicted)
	}
	d.Force = true
	if err := d.Run(t.Context()); err != nil || len(*evicted) != 2 {
		t.Errorf("forced drain = %v after the eviction of %q", err, *evicted)
	}
}

func TestDrainGivesUpInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kube, _ := drained(func(string) bool { return true }, podOwnedBy("held", "ReplicaSet"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		d := Draining{Kube: kube, Node: "n", Say: func(string) {}}
		if err := d.Run(ctx); err == nil || !strings.Contains(err.Error(), "default/held") || !strings.Contains(err.Error(), "deadline") {
			t.Errorf("drain = %v, want the deadline and what was waited for", err)
		}
	})
}
