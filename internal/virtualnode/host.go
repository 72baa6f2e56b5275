package virtualnode

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// managedHosts is how a kubelet marks the /etc/hosts that it has made.
const managedHosts = "Kubernetes-managed hosts file."

// ofHost says whether a group asks for something of the host itself.
func ofHost(r *groupResource) bool {
	p := &r.Properties
	privileged := func(c container) bool { return c.Properties.Security != nil && c.Properties.Security.Privileged }
	return p.HostNetwork || p.HostPID || p.HostIPC || slices.ContainsFunc(p.Volumes, func(v volume) bool { return v.HostPath != nil }) ||
		slices.ContainsFunc(slices.Concat(p.InitContainers, p.Containers, p.Ephemeral), privileged)
}

// addressOf is a pod's address: the node's in the host's network, else a text that stands for it.
func addressOf(pod *corev1.Pod, f *facts) string {
	if pod.Spec.HostNetwork {
		return f.nodeIP
	}
	return placeholder(pod)
}

// hostAddress is the address by which a group in the host's network is to be known; the platform knows IPv4 alone.
func hostAddress(f *facts) string {
	if ip, err := netip.ParseAddr(f.nodeIP); err != nil || !ip.Is4() {
		return ""
	}
	return f.nodeIP
}
