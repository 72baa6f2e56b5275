package virtualnode

import (
	"context"
	"maps"
	"os"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

const goarch = runtime.GOARCH

// kubeletVersion is the release whose behaviour this node follows.
const kubeletVersion = "v1.36.3"

// declaredFeatures are the gates that a scheduler and an API server look for on a node. Those that there are in this
// release concern what the node does not do: WebSockets all the way (an API server that is not told so speaks SPDY to
// it), users of a pod's own on the host's network, a resize of init containers, rules for restarts.
var declaredFeatures = []string{}

// nodeInfo is what a node says of its system: here, of the platform.
func nodeInfo(n *Node) corev1.NodeSystemInfo {
	id := strings.ReplaceAll(n.cluster, "-", "")
	return corev1.NodeSystemInfo{MachineID: id, SystemUUID: n.cluster, BootID: n.cluster, KernelVersion: kernel(), OSImage: "Spillway " + n.cfg.Version,
		ContainerRuntimeVersion: "spillway://" + strings.TrimPrefix(n.cfg.Version, "v"), KubeletVersion: kubeletVersion, OperatingSystem: "linux", Architecture: goarch}
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// capacity is what the scheduler may count on: without limit, or what the subscription's quota has; allocatable is
// what of it others of the subscription have left.
func (n *Node) capacity(ctx context.Context) (capacity, allocatable corev1.ResourceList) {
	all := n.allocatable()
	if !n.cfg.Quota {
		return all, all
	}
	usages, err := n.platform.Usages(ctx)
	if err != nil {
		n.log.Warn("quota of the subscription", "error", err)
		return all, all
	}
	free := maps.Clone(all)
	own := n.ownUse()
	for _, u := range usages {
		switch u.Name.Value {
		case "StandardCores":
			all[corev1.ResourceCPU] = *resource.NewQuantity(u.Limit, resource.DecimalSI)
			// Cores are counted whole: rounded up, so that the scheduler never counts on one that is taken.
			others := max(u.Current-own.milliCPU/1000, 0)
			free[corev1.ResourceCPU] = *resource.NewQuantity(max(u.Limit-others, 0), resource.DecimalSI)
		case "ContainerGroups":
			all[corev1.ResourcePods] = *resource.NewQuantity(u.Limit, resource.DecimalSI)
			free[corev1.ResourcePods] = *resource.NewQuantity(max(u.Limit-max(u.Current-own.groups, 0), 0), resource.DecimalSI)
		}
	}
	return all, free
}

// use is what of a quota is taken.
type use struct{ groups, milliCPU int64 }

// ownUse is what this node's pods have of the subscription's quota: the rest of what is taken others have.
func (n *Node) ownUse() use {
	var out use
	for _, obj := range n.pods.informer.GetStore().List() {
		pod := obj.(*corev1.Pod)
		g, gone := n.mirror.get(string(pod.UID))
		if g == nil || gone {
			continue
		}
		out.groups++
		if finished(pod) || waits(g) { // the quota's use counts what has room
			continue
		}
		for i := range pod.Spec.Containers {
			out.milliCPU += pod.Spec.Containers[i].Resources.Requests.Cpu().MilliValue()
		}
	}
	return out
}

func (n *Node) maxPods() int64 {
	all := n.allocatable()
	return all.Pods().Value()
}

// usedBefore adds what pods have used that are no more, so that the node's counter never falls.
type usedBefore struct {
	mu   sync.Mutex // guards the rest
	last map[string]int64
	gone int64
}

// add gives the node's processor time, of the pods that are there and of all before.
func (u *usedBefore) add(pods []measured, now int64) int64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	present := map[string]int64{}
	for _, m := range pods {
		for _, c := range m.stats.Containers {
			present[string(m.pod.UID)+c.Name] = c.CPUNanos
		}
	}
	for key, nanos := range u.last {
		if present[key] < nanos {
			u.gone += nanos
		}
	}
	u.last = present
	return u.gone + now
}

// resolvConf is where this machine's resolver is configured.
func resolvConf() string {
	body, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return ""
	}
	return string(body)
}
