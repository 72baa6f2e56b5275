// Package podbench measures what a pod costs on the nodes of a cluster: the time from its creation until it runs and
// from its deletion until it is gone, how many start per second, and how often the API is written to.
//
// It is a client like any other; nodes are compared in one run, pod by pod in turn. Start at Run.
package podbench

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"
)

// Config is one measurement.
type Config struct {
	Kube      kubernetes.Interface
	Namespace string
	Nodes     []string // compared with each other; the first is ours
	Image     string   // with a shell
	Rounds    int      // pods on each node, one after the other
	Burst     int      // pods at once on each node, or as many as it takes
}

// Result is what one node did.
type Result struct {
	Node      string  `json:"node"`
	Running   float64 `json:"createToRunningP50Ms"`
	RunningP9 float64 `json:"createToRunningP99Ms"`
	Gone      float64 `json:"deleteToGoneP50Ms"`
	Writes    float64 `json:"writesPerPod"` // to the API, by everybody, from creation until gone
	Burst     int     `json:"burst,omitempty"`
	PerSecond float64 `json:"burstPodsPerSecond,omitempty"`
}

// patience bounds the wait for one pod, or for a burst.
const patience = 10 * time.Minute

// Run measures every node.
func Run(ctx context.Context, cfg Config) ([]Result, error) {
	ctx, cancel := context.WithTimeout(ctx, patience*time.Duration(1+len(cfg.Nodes)))
	defer cancel()
	running, gone := map[string][]float64{}, map[string][]float64{}
	writes := map[string]int64{}
	for round := range cfg.Rounds {
		for _, node := range cfg.Nodes {
			before, err := apiWrites(ctx, cfg.Kube)
			if err != nil {
				return nil, err
			}
			up, down, err := cfg.one(ctx, fmt.Sprintf("bench-%d-%s", round, node), node)
			if err != nil {
				return nil, err
			}
			after, err := apiWrites(ctx, cfg.Kube)
			if err != nil {
				return nil, err
			}
			running[node], gone[node] = append(running[node], up), append(gone[node], down)
			writes[node] += after - before
		}
	}
	var out []Result
	for _, node := range cfg.Nodes {
		r := Result{Node: node, Running: quantile(running[node], 0.5), RunningP9: quantile(running[node], 0.99), Gone: quantile(gone[node], 0.5),
			Writes: float64(writes[node]) / float64(max(cfg.Rounds, 1))}
		if cfg.Burst > 0 {
			var err error
			if r.Burst, err = cfg.room(ctx, node); err != nil {
				return nil, err
			}
			if r.PerSecond, err = cfg.burst(ctx, node, r.Burst); err != nil {
				return nil, err
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// pod is the payload: it ends at once when it is asked to.
func (cfg *Config) pod(name, node string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: cfg.Namespace, Labels: map[string]string{"bench": "pods", "node": node}},
		Spec: corev1.PodSpec{NodeName: node, RestartPolicy: corev1.RestartPolicyNever, Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
			Containers: []corev1.Container{{Name: "c", Image: cfg.Image, ImagePullPolicy: corev1.PullIfNotPresent,
				Command: []string{"/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"}}}}}
}

// watch follows pods from now on. An API server ends the watches of those who read slowly; this one goes on where it was.
func (cfg *Config) watch(ctx context.Context, opt metav1.ListOptions) (watch.Interface, error) {
	pods := cfg.Kube.CoreV1().Pods(cfg.Namespace)
	list, err := pods.List(ctx, opt)
	if err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	return watchtools.NewRetryWatcherWithContext(ctx, list.ResourceVersion, &cache.ListWatch{WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		o.FieldSelector, o.LabelSelector = opt.FieldSelector, opt.LabelSelector
		return pods.Watch(ctx, o)
	}})
}

// one creates a pod, waits until it runs, deletes it and waits until it is gone: both times in milliseconds.
func (cfg *Config) one(ctx context.Context, name, node string) (up, down float64, err error) {
	pods := cfg.Kube.CoreV1().Pods(cfg.Namespace)
	w, err := cfg.watch(ctx, metav1.ListOptions{FieldSelector: "metadata.name=" + name})
	if err != nil {
		return 0, 0, err
	}
	defer w.Stop()
	began := time.Now()
	if _, err := pods.Create(ctx, cfg.pod(name, node), metav1.CreateOptions{}); err != nil {
		return 0, 0, err
	}
	if err := await(ctx, w, func(e watch.Event, p *corev1.Pod) bool { return p.Status.Phase == corev1.PodRunning }); err != nil {
		return 0, 0, fmt.Errorf("pod %s does not run: %w", name, err)
	}
	up = milliseconds(began)
	began = time.Now()
	if err := pods.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
		return 0, 0, err
	}
	if err := await(ctx, w, func(e watch.Event, _ *corev1.Pod) bool { return e.Type == watch.Deleted }); err != nil {
		return 0, 0, fmt.Errorf("pod %s is not gone: %w", name, err)
	}
	return up, milliseconds(began), nil
}

func milliseconds(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1000 }

func await(ctx context.Context, w watch.Interface, done func(watch.Event, *corev1.Pod) bool) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(patience):
			return fmt.Errorf("nothing within %s", patience)
		case e, ok := <-w.ResultChan():
			if !ok {
				return fmt.Errorf("the watch ended")
			}
			p, isPod := e.Object.(*corev1.Pod)
			if isPod && p.Status.Phase == corev1.PodFailed && e.Type != watch.Deleted && p.DeletionTimestamp == nil {
				return fmt.Errorf("it failed: %s: %s", p.Status.Reason, p.Status.Message)
			}
			if isPod && done(e, p) {
				return nil
			}
		}
	}
}

// room is how many of the pods of a burst a node takes at once: a kubelet has a limit.
func (cfg *Config) room(ctx context.Context, node string) (int, error) {
	n, err := cfg.Kube.CoreV1().Nodes().Get(ctx, node, metav1.GetOptions{})
	if err != nil {
		return 0, fmt.Errorf("read node %s: %w", node, err)
	}
	have, err := cfg.Kube.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{FieldSelector: "spec.nodeName=" + node})
	if err != nil {
		return 0, fmt.Errorf("list the pods of node %s: %w", node, err)
	}
	return min(cfg.Burst, int(n.Status.Allocatable.Pods().Value())-len(have.Items)), nil
}

// burst creates many pods at once and gives how many of them per second came to run.
func (cfg *Config) burst(ctx context.Context, node string, count int) (float64, error) {
	pods := cfg.Kube.CoreV1().Pods(cfg.Namespace)
	selector := metav1.ListOptions{LabelSelector: "bench=pods,node=" + node}
	w, err := cfg.watch(ctx, selector)
	if err != nil {
		return 0, err
	}
	defer w.Stop()
	began := time.Now()
	const creators = 16
	failed := make(chan error, creators)
	for c := range creators {
		go func() {
			for i := c; i < count; i += creators {
				if _, err := pods.Create(ctx, cfg.pod(fmt.Sprintf("burst-%s-%d", node, i), node), metav1.CreateOptions{}); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
	}
	up := map[string]bool{}
	err = await(ctx, w, func(_ watch.Event, p *corev1.Pod) bool {
		if p.Status.Phase == corev1.PodRunning {
			up[p.Name] = true
		}
		return len(up) == count
	})
	rate := float64(count) / time.Since(began).Seconds()
	for range creators {
		if e := <-failed; e != nil && err == nil {
			err = e
		}
	}
	if e := pods.DeleteCollection(ctx, metav1.DeleteOptions{}, selector); err == nil {
		err = e
	}
	for deadline := time.Now().Add(patience); err == nil && time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		list, e := pods.List(ctx, selector)
		if err = e; err == nil && len(list.Items) == 0 {
			return rate, nil
		}
	}
	return rate, err
}

func quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

// apiWrites counts the writes of pods and events that the API has served, by its own metrics.
func apiWrites(ctx context.Context, kube kubernetes.Interface) (int64, error) {
	body, err := kube.CoreV1().RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return 0, fmt.Errorf("read the API server's metrics: %w", err)
	}
	return countWrites(string(body)), nil
}

// countWrites sums the samples of requests that change pods or events.
func countWrites(metrics string) int64 {
	var sum float64
	for line := range strings.Lines(metrics) {
		if !strings.HasPrefix(line, "apiserver_request_total{") || !strings.Contains(line, `resource="pods"`) && !strings.Contains(line, `resource="events"`) {
			continue
		}
		writes := false
		for _, verb := range []string{"POST", "PUT", "PATCH", "DELETE"} {
			writes = writes || strings.Contains(line, `verb="`+verb+`"`)
		}
		var n float64
		if _, err := fmt.Sscanf(line[strings.LastIndexByte(line, ' ')+1:], "%g", &n); writes && err == nil {
			sum += n
		}
	}
	return int64(sum)
}
