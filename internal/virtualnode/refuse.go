package virtualnode

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// refusal is a field of a pod that cannot be honoured.
type refusal struct {
	field, why string
}

func (r refusal) String() string { return r.field + ": " + r.why }

// refusals lists every field of a pod that the platform cannot honour. A pod with one is failed at once, so that
// nothing is dropped silently.
func refusals(pod *corev1.Pod, f *facts, allow Permissions) []refusal {
	var out []refusal
	refuse := func(field, why string, args ...any) { out = append(out, refusal{field, fmt.Sprintf(why, args...)}) }
	s := &pod.Spec
	for _, h := range []struct {
		set, allowed bool
		field, word  string
	}{{s.HostNetwork, allow.HostNetwork, "hostNetwork", "host-network"}, {s.HostPID, allow.HostPID, "hostPID", "host-pid"}, {s.HostIPC, allow.HostIPC, "hostIPC", "host-ipc"}} {
		if h.set && !h.allowed {
			refuse("spec."+h.field, "%s", unless("the pod would share namespaces of a host that is not its own", h.word))
		}
	}
	if s.HostUsers != nil && !*s.HostUsers {
		refuse("spec.hostUsers", "user namespaces are not available")
	}
	if s.RuntimeClassName != nil {
		if _, ok := f.isolation[*s.RuntimeClassName]; !ok {
			refuse("spec.runtimeClassName", "no isolation class is mapped to %q on this node", *s.RuntimeClassName)
		}
	}
	if len(s.ResourceClaims) > 0 {
		refuse("spec.resourceClaims", "there are no devices")
	}
	if s.Resources != nil {
		refuse("spec.resources", "amounts for the pod as a whole are not available; give them to its containers")
	}
	if s.OS != nil && s.OS.Name != corev1.Linux {
		refuse("spec.os.name", "the node runs Linux")
	}
	refuseVolumes(s, allow, refuse)
	refusePodSecurity(s.SecurityContext, allow, refuse)
	for i := range s.Containers {
		if s.Containers[i].RestartPolicy != nil {
			refuse(fmt.Sprintf("spec.containers[%d].restartPolicy", i), "all containers have the pod's restartPolicy")
		}
	}
	for _, list := range []struct {
		name       string
		containers []corev1.Container
	}{{"initContainers", s.InitContainers}, {"containers", s.Containers}} {
		for i := range list.containers {
			field := fmt.Sprintf("spec.%s[%d]", list.name, i)
			if !s.HostNetwork { // there the ports are the host's anyhow
				refuseHostPorts(field, &list.containers[i], refuse)
			}
			refuseContainer(field, &list.containers[i], allow, refuse)
		}
	}
	return out
}

func refuseHostPorts(field string, c *corev1.Container, refuse func(string, string, ...any)) {
	for i, p := range c.Ports {
		if p.HostPort != 0 {
			refuse(fmt.Sprintf("%s.ports[%d].hostPort", field, i), "a pod has an address of its own, and no ports of a host")
		}
	}
}

func refuseVolumes(s *corev1.PodSpec, allow Permissions, refuse func(string, string, ...any)) {
	for i := range s.Volumes {
		v := &s.Volumes[i]
		field := fmt.Sprintf("spec.volumes[%d]", i)
		switch {
		case v.HostPath != nil && allow.HostPath:
		case v.HostPath != nil:
			refuse(field+".hostPath", "%s", unless("a tenant has no path of a host", "host-path"))
		case v.Projected != nil:
			for j, p := range v.Projected.Sources {
				if p.ClusterTrustBundle != nil || p.PodCertificate != nil {
					refuse(fmt.Sprintf("%s.projected.sources[%d]", field, j), "only configMap, secret, downwardAPI and serviceAccountToken are available")
				}
			}
		case v.EmptyDir != nil:
			if m := v.EmptyDir.Medium; strings.HasPrefix(string(m), "HugePages") {
				refuse(field+".emptyDir.medium", "%s is not available", m)
			}
		case v.ConfigMap == nil && v.Secret == nil && v.DownwardAPI == nil:
			refuse(field, "of the volume types emptyDir, configMap, secret, downwardAPI and projected are available")
		}
	}
}

func refusePodSecurity(s *corev1.PodSecurityContext, allow Permissions, refuse func(string, string, ...any)) {
	if s == nil {
		return
	}
	refuseSeccomp("spec.securityContext.seccompProfile", s.SeccompProfile, allow, refuse)
	refuseAppArmor("spec.securityContext.appArmorProfile", s.AppArmorProfile, refuse)
	if p := s.SupplementalGroupsPolicy; p != nil && *p == corev1.SupplementalGroupsPolicyStrict {
		refuse("spec.securityContext.supplementalGroupsPolicy", "groups of the image's /etc/group are always joined: only Merge is available")
	}
	if s.WindowsOptions != nil {
		refuse("spec.securityContext.windowsOptions", "the node runs Linux")
	}
}

func refuseSeccomp(field string, p *corev1.SeccompProfile, allow Permissions, refuse func(string, string, ...any)) {
	switch {
	case p == nil || p.Type == corev1.SeccompProfileTypeRuntimeDefault:
	case p.Type == corev1.SeccompProfileTypeUnconfined && allow.UnconfinedSeccomp:
	case p.Type == corev1.SeccompProfileTypeUnconfined:
		refuse(field, "containers always run under the platform's profile; use RuntimeDefault, or --allow unconfined-seccomp of the node, which runs them under it all the same")
	default:
		refuse(field, "profiles that lie on a node are not available; use RuntimeDefault")
	}
}

func refuseAppArmor(field string, p *corev1.AppArmorProfile, refuse func(string, string, ...any)) {
	if p != nil && p.Type == corev1.AppArmorProfileTypeLocalhost {
		refuse(field, "profiles that lie on a node are not available; use RuntimeDefault")
	}
}

func refuseContainer(field string, c *corev1.Container, allow Permissions, refuse func(string, string, ...any)) {
	for i := range c.Env {
		if from := c.Env[i].ValueFrom; from != nil && from.FileKeyRef != nil {
			refuse(fmt.Sprintf("%s.env[%d].valueFrom.fileKeyRef", field, i), "variables cannot be read from files of a volume")
		}
	}
	for i, m := range c.VolumeMounts {
		if m.MountPropagation != nil && *m.MountPropagation == corev1.MountPropagationBidirectional {
			refuse(fmt.Sprintf("%s.volumeMounts[%d].mountPropagation", field, i), "mounts of a pod stay in the pod")
		}
	}
	if len(c.VolumeDevices) > 0 {
		refuse(field+".volumeDevices", "there are no block devices")
	}
	if len(c.Resources.Claims) > 0 {
		refuse(field+".resources.claims", "there are no devices")
	}
	if len(c.RestartPolicyRules) > 0 {
		refuse(field+".restartPolicyRules", "rules by exit code are not available")
	}
	refuseResources(field, c, refuse)
	s := c.SecurityContext
	if s == nil {
		return
	}
	privileged := s.Privileged != nil && *s.Privileged
	if privileged && !allow.Privileged {
		refuse(field+".securityContext.privileged", "%s", unless("a privileged container would own the host", "privileged"))
	}
	if s.ProcMount != nil && *s.ProcMount != corev1.DefaultProcMount {
		refuse(field+".securityContext.procMount", "only the default masks of /proc are available")
	}
	if s.WindowsOptions != nil {
		refuse(field+".securityContext.windowsOptions", "the node runs Linux")
	}
	refuseAppArmor(field+".securityContext.appArmorProfile", s.AppArmorProfile, refuse)
	allow.UnconfinedSeccomp = allow.UnconfinedSeccomp || privileged // it has no profile
	refuseSeccomp(field+".securityContext.seccompProfile", s.SeccompProfile, allow, refuse)
}

// refuseResources refuses what no host has: the scheduler keeps such pods away, unless they were bound by hand.
func refuseResources(field string, c *corev1.Container, refuse func(string, string, ...any)) {
	for name, q := range c.Resources.Requests {
		switch {
		case name == corev1.ResourceCPU, name == corev1.ResourceMemory, name == corev1.ResourceEphemeralStorage, q.IsZero():
		default:
			refuse(field+".resources.requests", "there is no %s", name)
		}
	}
}
