package virtualnode

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
)

// measured is a pod with what it uses.
type measured struct {
	pod   *corev1.Pod
	group *client.Group
	stats *host.Stats
}

// measure asks the platform what all pods of this node use: one call, not one for each.
func (s *server) measure(r *http.Request) ([]measured, error) {
	all, err := s.n.platform.ListStats(r.Context(), s.n.cfg.ResourceGroup)
	if err != nil {
		return nil, err
	}
	byName := map[string]*host.Stats{}
	for i := range all {
		byName[all[i].Name] = &all[i].Stats
	}
	var out []measured
	for _, obj := range s.n.pods.informer.GetStore().List() {
		pod := obj.(*corev1.Pod)
		g, gone := s.n.mirror.get(string(pod.UID))
		if g == nil || gone || finished(pod) {
			continue
		}
		if stats := byName[g.Name]; stats != nil {
			out = append(out, measured{pod, g, stats})
		}
	}
	slices.SortFunc(out, func(a, b measured) int {
		return strings.Compare(a.pod.Namespace+"/"+a.pod.Name, b.pod.Namespace+"/"+b.pod.Name)
	})
	return out, nil
}

func number(n int64) *uint64 {
	u := uint64(max(n, 0))
	return &u
}

// summary serves what pods and the node use, as JSON.
func (s *server) summary(w http.ResponseWriter, r *http.Request) {
	pods, err := s.measure(r)
	if err != nil {
		refuse(w, err)
		return
	}
	now := metav1.Now()
	out := statsv1alpha1.Summary{Pods: []statsv1alpha1.PodStats{}, Node: statsv1alpha1.NodeStats{NodeName: s.n.cfg.Name, StartTime: metav1.NewTime(s.n.began)}}
	var cpu, memory int64
	for _, m := range pods {
		p := statsv1alpha1.PodStats{PodRef: statsv1alpha1.PodReference{Name: m.pod.Name, Namespace: m.pod.Namespace, UID: string(m.pod.UID)}, StartTime: m.pod.CreationTimestamp,
			Containers: []statsv1alpha1.ContainerStats{}}
		if m.pod.Status.StartTime != nil {
			p.StartTime = *m.pod.Status.StartTime
		}
		at := metav1.NewTime(m.stats.Time)
		var podCPU, podMemory int64
		for _, c := range m.stats.Containers {
			podCPU, podMemory = podCPU+c.CPUNanos, podMemory+c.Memory
			p.Containers = append(p.Containers, statsv1alpha1.ContainerStats{Name: c.Name, StartTime: metav1.NewTime(m.started(c.Name)),
				CPU:    &statsv1alpha1.CPUStats{Time: at, UsageCoreNanoSeconds: number(c.CPUNanos)},
				Memory: &statsv1alpha1.MemoryStats{Time: at, WorkingSetBytes: number(c.Memory), UsageBytes: number(c.Memory)}})
		}
		p.CPU = &statsv1alpha1.CPUStats{Time: at, UsageCoreNanoSeconds: number(podCPU)}
		p.Memory = &statsv1alpha1.MemoryStats{Time: at, WorkingSetBytes: number(podMemory), UsageBytes: number(podMemory)}
		p.Network = &statsv1alpha1.NetworkStats{Time: at, InterfaceStats: statsv1alpha1.InterfaceStats{Name: "eth0", RxBytes: number(m.stats.NetworkRx), TxBytes: number(m.stats.NetworkTx)}}
		cpu, memory = cpu+podCPU, memory+podMemory
		out.Pods = append(out.Pods, p)
	}
	out.Node.CPU = &statsv1alpha1.CPUStats{Time: now, UsageCoreNanoSeconds: number(cpu)}
	out.Node.Memory = &statsv1alpha1.MemoryStats{Time: now, WorkingSetBytes: number(memory), UsageBytes: number(memory)}
	answerJSON(w, out)
}

// started is when a container's present run began.
func (m *measured) started(name string) time.Time {
	for _, list := range [][]client.Container{m.group.Properties.InitContainers, m.group.Properties.Containers} {
		if c := find(list, name); c != nil && c.Properties.InstanceView != nil && c.Properties.InstanceView.Current != nil {
			return timeOf(c.Properties.InstanceView.Current.Start).Time
		}
	}
	return time.Time{}
}

// metricsType is Prometheus' text format.
const metricsType = "text/plain; version=0.0.4; charset=utf-8"

// resourceMetrics serves what the metrics server reads: samples with the time at which they were taken.
func (s *server) resourceMetrics(w http.ResponseWriter, r *http.Request) {
	pods, err := s.measure(r)
	var b strings.Builder
	failed := 0
	if err != nil {
		failed = 1
	}
	var cpu, memory int64
	containerCPU, containerMemory, containerStart, podCPU, podMemory := newFamily("container_cpu_usage_seconds_total", "counter"), newFamily("container_memory_working_set_bytes", "gauge"),
		newFamily("container_start_time_seconds", "gauge"), newFamily("pod_cpu_usage_seconds_total", "counter"), newFamily("pod_memory_working_set_bytes", "gauge")
	for _, m := range pods {
		at := m.stats.Time.UnixMilli()
		var sumCPU, sumMemory int64
		for _, c := range m.stats.Containers {
			labels := fmt.Sprintf("container=%q,namespace=%q,pod=%q", c.Name, m.pod.Namespace, m.pod.Name)
			containerCPU.add(labels, seconds(c.CPUNanos), at)
			containerMemory.add(labels, float64(c.Memory), at)
			containerStart.add(labels, float64(m.started(c.Name).UnixMilli())/1000, 0)
			sumCPU, sumMemory = sumCPU+c.CPUNanos, sumMemory+c.Memory
		}
		labels := fmt.Sprintf("namespace=%q,pod=%q", m.pod.Namespace, m.pod.Name)
		podCPU.add(labels, seconds(sumCPU), at)
		podMemory.add(labels, float64(sumMemory), at)
		cpu, memory = cpu+sumCPU, memory+sumMemory
	}
	now := time.Now().UnixMilli()
	nodeCPU, nodeMemory, scrape := newFamily("node_cpu_usage_seconds_total", "counter"), newFamily("node_memory_working_set_bytes", "gauge"), newFamily("scrape_error", "gauge")
	// The metrics server takes a counter that falls for a restart: what ended pods have used is kept in it.
	nodeCPU.add("", seconds(s.n.used.add(pods, cpu)), now)
	nodeMemory.add("", float64(max(memory, 1)), now)
	scrape.add("", float64(failed), 0)
	for _, f := range []*family{containerCPU, containerMemory, containerStart, nodeCPU, nodeMemory, podCPU, podMemory, scrape} {
		f.write(&b)
	}
	w.Header().Set("Content-Type", metricsType)
	_, _ = w.Write([]byte(b.String())) // the caller is gone, or not
}

func seconds(nanos int64) float64 { return float64(nanos) / 1e9 }

// family is the samples of one metric.
type family struct {
	name, kind string
	lines      []string
}

func newFamily(name, kind string) *family { return &family{name: name, kind: kind} }

func (f *family) add(labels string, value float64, at int64) {
	line := f.name
	if labels != "" {
		line += "{" + labels + "}"
	}
	line += fmt.Sprintf(" %g", value)
	if at != 0 {
		line += fmt.Sprintf(" %d", at)
	}
	f.lines = append(f.lines, line)
}

func (f *family) write(b *strings.Builder) {
	fmt.Fprintf(b, "# TYPE %s %s\n", f.name, f.kind)
	for _, l := range f.lines {
		b.WriteString(l + "\n")
	}
}
