package test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestPodsUnderKills makes SPILLWAY_PODS pods (default podsUnderKills) from SPILLWAY_SEED (default: the clock).
const (
	podsUnderKills = 60
	podUsers       = 10              // who make and delete pods at the same time
	podCalm        = 2 * time.Second // longest time between two kills
)

// podStorm is a cluster whose pods come and go while its programs are killed.
type podStorm struct {
	*virtualCluster
	seed uint64
	next atomic.Int64
	pods int64
	ran  atomic.Int64
}

// TestPodsUnderKills makes and deletes pods while the node's process, the platform with its agent and the keeper are
// killed at random: every pod that somebody waits for runs, and in the end no group is left.
func TestPodsUnderKills(t *testing.T) {
	c := startCluster(t, "--listen", keptPort(t))
	s := &podStorm{virtualCluster: c, seed: uint64(time.Now().UnixNano()), pods: podsUnderKills}
	for name, set := range map[string]func(string) error{
		"SPILLWAY_PODS": func(text string) (err error) { s.pods, err = strconv.ParseInt(text, 10, 64); return },
		"SPILLWAY_SEED": func(text string) (err error) { s.seed, err = strconv.ParseUint(text, 10, 64); return },
	} {
		if text := os.Getenv(name); text != "" {
			if err := set(text); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
	t.Logf("SPILLWAY_SEED=%d", s.seed)
	ctx, calm := context.WithCancel(t.Context())
	defer calm()
	killed := make(chan map[string]int, 1)
	go func() { killed <- s.kill(ctx) }()
	var users sync.WaitGroup
	for user := range podUsers {
		users.Go(func() { s.use(rand.New(rand.NewPCG(s.seed, uint64(user)))) })
	}
	users.Wait()
	calm()
	kills := <-killed
	s.until(t, "the end of all pods", func(ctx context.Context) error {
		list, err := c.kube.CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
		if err == nil && len(list.Items) > 0 {
			err = fmt.Errorf("%d pods are there, among them %s", len(list.Items), list.Items[0].Name)
		}
		return err
	})
	s.until(t, "the end of all groups", s.empty)
	t.Logf("%d pods, %d of them waited for, kills: %v; groups left: 0", s.pods, s.ran.Load(), kills)
}

// empty says what is left on the platform: groups, and containers that the keeper has.
func (s *podStorm) empty(ctx context.Context) error {
	groups, err := s.client.ListGroups(ctx, "")
	if err != nil {
		return err
	}
	for i := range groups {
		err = errors.Join(err, fmt.Errorf("group %s is left", groups[i].Name))
	}
	records, recordsErr := s.records()
	for _, r := range records {
		err = errors.Join(err, fmt.Errorf("container %s is left", r.ID))
	}
	return errors.Join(err, recordsErr)
}

// kill ends programs at random and brings them back, until ctx ends.
func (s *podStorm) kill(ctx context.Context) map[string]int {
	r := rand.New(rand.NewPCG(s.seed, 1000))
	kills := map[string]int{}
	for {
		select {
		case <-ctx.Done():
			return kills
		case <-time.After(time.Duration(r.Int64N(int64(podCalm)))):
		}
		which := []string{"node", "server", "keeper", "node and server"}[r.IntN(4)]
		kills[which]++
		if which == "keeper" {
			if pid := s.keeperPid(); pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			continue
		}
		if which != "server" {
			s.killNode()
		}
		if which != "node" {
			if err := errors.Join(s.signal(syscall.SIGKILL), s.up()); err != nil {
				s.Errorf("start of the platform after a kill: %v", err)
				return kills
			}
		}
		if which != "server" {
			s.startNode()
		}
	}
}

// use makes pods, waits for some of them, and deletes them all.
func (s *podStorm) use(r *rand.Rand) {
	pods := s.kube.CoreV1().Pods("default")
	for n := s.next.Add(1); n <= s.pods && s.Context().Err() == nil; n = s.next.Add(1) {
		pod := stormPod(fmt.Sprintf("storm-%d", n), r)
		if _, err := pods.Create(s.Context(), pod, metav1.CreateOptions{}); err != nil {
			s.Errorf("create %s: %v", pod.Name, err)
			return
		}
		if r.IntN(3) == 0 {
			time.Sleep(time.Duration(r.IntN(600)) * time.Millisecond)
		} else if err := s.awaitRun(pod.Name); err != nil {
			s.Error(err)
		} else {
			s.ran.Add(1)
		}
		opt := metav1.DeleteOptions{}
		if r.IntN(4) == 0 {
			opt.GracePeriodSeconds = new(int64(0))
		}
		if err := pods.Delete(s.Context(), pod.Name, opt); err != nil && !apierrors.IsNotFound(err) {
			s.Errorf("delete %s: %v", pod.Name, err)
		}
	}
}

// stormPod is one of several kinds of pods.
func stormPod(name string, r *rand.Rand) *corev1.Pod {
	pod := scriptPod(name, obedient)
	pod.Spec.TerminationGracePeriodSeconds = new(int64(2))
	switch r.IntN(4) {
	case 0:
		pod = scriptPod(name, "sleep 0."+strconv.Itoa(r.IntN(9)))
		pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	case 1:
		pod.Spec.InitContainers = []corev1.Container{{Name: "first", Image: image, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sh", "-c", "sleep 0.2"}}}
	}
	return pod
}

// awaitRun waits until a pod has run. A kill of everything at once takes a few seconds to come back from.
func (s *podStorm) awaitRun(name string) error {
	var last error
	for deadline := time.Now().Add(controlPlanePatience); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		pod, err := s.kube.CoreV1().Pods("default").Get(s.Context(), name, metav1.GetOptions{})
		switch {
		case err != nil:
			return fmt.Errorf("pod %s: %w", name, err)
		case pod.Status.Phase == corev1.PodFailed && pod.Spec.RestartPolicy != corev1.RestartPolicyNever:
			return fmt.Errorf("pod %s failed: %s: %s", name, pod.Status.Reason, pod.Status.Message)
		case pod.Status.Phase != corev1.PodPending:
			return nil
		}
		last = fmt.Errorf("pod %s has not run: %+v", name, pod.Status.ContainerStatuses)
	}
	return last
}
