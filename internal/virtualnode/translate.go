package virtualnode

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Tags of a group that say whose it is. Groups are found again by them: the group's name is for people.
const (
	tagCluster   = "kubernetes.cluster"
	tagNode      = "kubernetes.node"
	tagNamespace = "kubernetes.namespace"
	tagPod       = "kubernetes.pod"
	tagUID       = "kubernetes.uid"
)

// groupName is the name of a pod's group: readable, and never another pod's.
func groupName(pod *corev1.Pod) string {
	const longest, suffix = 63, 13
	name := strings.ReplaceAll(pod.Name, ".", "-")
	name = strings.TrimRight(name[:min(len(name), longest-suffix)], "-")
	return name + "-" + strings.ReplaceAll(string(pod.UID), "-", "")[:suffix-1]
}

// translation turns one pod into a group.
type translation struct {
	pod     *corev1.Pod
	objects objects
	tokens  tokens
	facts   *facts
}

// translate makes the group of a pod. The pod has no field that the platform refuses (see refusals). Errors are
// *configError: something that the pod refers to is not there, now.
func translate(t translation) (*groupResource, error) {
	pod, f := t.pod, t.facts
	spec := &pod.Spec
	r := &groupResource{Tags: map[string]string{tagCluster: f.cluster, tagNode: f.nodeName, tagNamespace: pod.Namespace, tagPod: pod.Name, tagUID: string(pod.UID)}}
	p := &r.Properties
	p.RestartPolicy, p.OSType, p.Labels, p.DNS = string(spec.RestartPolicy), "Linux", labelsOf(pod, f), dnsOf(pod, f)
	p.Placement, p.HostPID, p.HostIPC = placementOf(pod, f), spec.HostPID, spec.HostIPC
	if spec.HostNetwork {
		p.HostNetwork, p.HostAddress = true, hostAddress(f)
	} else {
		p.Network, p.Address, p.Hostname, p.HostsComment = f.network, f.address, hostnameOf(pod, f), managedHosts
	}
	p.SharePIDs = spec.ShareProcessNamespace != nil && *spec.ShareProcessNamespace
	p.Grace = spec.TerminationGracePeriodSeconds
	p.HostAliases = aliasesOf(pod, f)
	if spec.RuntimeClassName != nil {
		p.Isolation = f.isolation[*spec.RuntimeClassName]
	}
	if s := spec.SecurityContext; s != nil {
		p.FSGroup = s.FSGroup
		for _, c := range s.Sysctls {
			if p.Sysctls == nil {
				p.Sysctls = map[string]string{}
			}
			p.Sysctls[c.Name] = c.Value
		}
	}
	var err error
	if p.Credentials, err = t.credentials(); err != nil {
		return nil, err
	}
	for i := range spec.Volumes {
		v, err := t.volume(&spec.Volumes[i])
		if err != nil {
			return nil, &mountError{spec.Volumes[i].Name, err}
		}
		p.Volumes = append(p.Volumes, v)
	}
	return r, t.containers(p)
}

// mountError is a volume whose content cannot be had now: the kubelet's FailedMount.
type mountError struct {
	volume string
	err    error
}

func (e *mountError) Error() string { return e.err.Error() }
func (e *mountError) Unwrap() error { return e.err }

func (t *translation) containers(p *properties) error {
	spec := &t.pod.Spec
	for i := range spec.InitContainers {
		c, err := t.container(&spec.InitContainers[i])
		if err != nil {
			return err
		}
		if policy := spec.InitContainers[i].RestartPolicy; policy != nil {
			c.Properties.RestartPolicy = string(*policy)
		}
		p.InitContainers = append(p.InitContainers, c)
	}
	for i := range spec.Containers {
		c, err := t.container(&spec.Containers[i])
		if err != nil {
			return err
		}
		p.Containers = append(p.Containers, c)
	}
	for i := range spec.EphemeralContainers {
		e := &spec.EphemeralContainers[i]
		plain := corev1.Container(e.EphemeralContainerCommon)
		c, err := t.container(&plain)
		if err != nil {
			return err
		}
		c.Properties.Target = e.TargetContainerName
		withoutPtrace(c.Properties.Security.Capabilities)
		p.Ephemeral = append(p.Ephemeral, c)
	}
	return nil
}

// ptrace is the capability that kubectl debug asks for. The platform grants it to nobody; a debugger that runs as the
// user of what it looks at needs none.
const ptrace = "SYS_PTRACE"

func withoutPtrace(c *capabilities) {
	if c != nil {
		c.Add = slices.DeleteFunc(c.Add, func(name string) bool { return name == ptrace })
	}
}

// asksForPtrace says whether an ephemeral container of the pod asks for what it does not get.
func asksForPtrace(pod *corev1.Pod) bool {
	for i := range pod.Spec.EphemeralContainers {
		s := pod.Spec.EphemeralContainers[i].SecurityContext
		if s != nil && s.Capabilities != nil && (slices.Contains(s.Capabilities.Add, ptrace) || slices.Contains(s.Capabilities.Add, "CAP_"+ptrace)) {
			return true
		}
	}
	return false
}

func (t *translation) container(c *corev1.Container) (container, error) {
	env, err := environmentOf(t, c)
	if err != nil {
		return container{}, err
	}
	out := container{Name: c.Name, Properties: containerProperties{Image: c.Image, PullPolicy: string(c.ImagePullPolicy),
		Command: expandAll(c.Command, env.lookup), Args: expandAll(c.Args, env.lookup), WorkingDir: c.WorkingDir, Env: env.vars(),
		Resources: resourcesOf(c), Liveness: probeOf(c, c.LivenessProbe), Readiness: probeOf(c, c.ReadinessProbe), Startup: probeOf(c, c.StartupProbe),
		Security: securityOf(t.pod, c), TTY: c.TTY, Stdin: c.Stdin,
		MessagePath: c.TerminationMessagePath, MessagePolicy: string(c.TerminationMessagePolicy)}}
	p := &out.Properties
	if l := c.Lifecycle; l != nil {
		p.Lifecycle = &lifecycle{PostStart: hookOf(c, l.PostStart), PreStop: hookOf(c, l.PreStop)}
		if l.StopSignal != nil {
			p.StopSignal = string(*l.StopSignal)
		}
	}
	for _, m := range c.VolumeMounts {
		sub := m.SubPath
		if m.SubPathExpr != "" {
			sub = expand(m.SubPathExpr, env.lookup)
			if strings.Contains(sub, "$(") || path.IsAbs(sub) || slices.Contains(strings.Split(sub, "/"), "..") {
				return container{}, configErrorf("failed to prepare subPathExpr %q for volumeMount %q of container %q", m.SubPathExpr, m.Name, c.Name)
			}
		}
		p.Mounts = append(p.Mounts, mount{Name: m.Name, Path: mountPath(m.MountPath), ReadOnly: m.ReadOnly, SubPath: sub})
	}
	return out, nil
}

// mountPath makes a relative mount path absolute, as runtimes do.
func mountPath(p string) string {
	if path.IsAbs(p) {
		return p
	}
	return "/" + p
}

func resourcesOf(c *corev1.Container) *resources {
	amount := func(l corev1.ResourceList) amounts {
		return amounts{CPU: float64(l.Cpu().MilliValue()) / 1000, Memory: gigabytes(l.Memory().Value())}
	}
	// A limit that is not set is none, and not the request.
	limits := amount(c.Resources.Limits)
	return &resources{Requests: amount(c.Resources.Requests), Limits: &limits}
}

// securityOf joins the pod's security context with the container's, which comes first.
func securityOf(pod *corev1.Pod, c *corev1.Container) *security {
	s := &security{AllowEscalation: true} // Kubernetes' default
	if p := pod.Spec.SecurityContext; p != nil {
		s.User, s.Group, s.Groups = p.RunAsUser, p.RunAsGroup, slices.Clone(p.SupplementalGroups)
		s.NonRoot = p.RunAsNonRoot != nil && *p.RunAsNonRoot
		if p.FSGroup != nil {
			s.Groups = append(s.Groups, *p.FSGroup)
		}
	}
	own := c.SecurityContext
	if own == nil {
		return s
	}
	if own.RunAsUser != nil {
		s.User = own.RunAsUser
	}
	if own.RunAsGroup != nil {
		s.Group = own.RunAsGroup
	}
	if own.RunAsNonRoot != nil {
		s.NonRoot = *own.RunAsNonRoot
	}
	s.Privileged = own.Privileged != nil && *own.Privileged
	s.ReadOnlyRoot = own.ReadOnlyRootFilesystem != nil && *own.ReadOnlyRootFilesystem
	if own.AllowPrivilegeEscalation != nil {
		s.AllowEscalation = *own.AllowPrivilegeEscalation
	}
	if k := own.Capabilities; k != nil {
		s.Capabilities = &capabilities{}
		for _, n := range k.Add {
			s.Capabilities.Add = append(s.Capabilities.Add, strings.TrimPrefix(string(n), "CAP_"))
		}
		for _, n := range k.Drop {
			s.Capabilities.Drop = append(s.Capabilities.Drop, strings.TrimPrefix(string(n), "CAP_"))
		}
	}
	return s
}

// labelsOf are the pod's labels, its namespace and its cluster, by which affinity rules find it.
func labelsOf(pod *corev1.Pod, f *facts) map[string]string {
	out := maps.Clone(pod.Labels)
	if out == nil {
		out = map[string]string{}
	}
	out[tagNamespace], out[tagCluster] = pod.Namespace, f.cluster
	return out
}

func probeOf(c *corev1.Container, p *corev1.Probe) *probe {
	if p == nil {
		return nil
	}
	out := &probe{InitialDelay: p.InitialDelaySeconds, Period: p.PeriodSeconds, Timeout: p.TimeoutSeconds,
		SuccessThreshold: p.SuccessThreshold, FailureThreshold: p.FailureThreshold, Grace: p.TerminationGracePeriodSeconds}
	out.Exec = execOf(p.Exec)
	out.HTTP = httpOf(c, p.HTTPGet)
	if p.TCPSocket != nil {
		out.TCP = &portRef{Port: portOf(c, p.TCPSocket.Port)}
	}
	if p.GRPC != nil {
		out.GRPC = &portRef{Port: p.GRPC.Port}
		if p.GRPC.Service != nil {
			out.GRPC.Service = *p.GRPC.Service
		}
	}
	return out
}

func hookOf(c *corev1.Container, h *corev1.LifecycleHandler) *handler {
	if h == nil {
		return nil
	}
	out := &handler{Exec: execOf(h.Exec), HTTP: httpOf(c, h.HTTPGet)}
	if h.TCPSocket != nil {
		out.TCP = &portRef{Port: portOf(c, h.TCPSocket.Port)}
	}
	if h.Sleep != nil {
		out.Sleep = &sleep{h.Sleep.Seconds}
	}
	return out
}

func execOf(e *corev1.ExecAction) *execAction {
	if e == nil {
		return nil
	}
	return &execAction{e.Command}
}

func httpOf(c *corev1.Container, g *corev1.HTTPGetAction) *httpGet {
	if g == nil {
		return nil
	}
	out := &httpGet{Path: g.Path, Port: portOf(c, g.Port), Scheme: strings.ToLower(string(g.Scheme)), Host: g.Host}
	for _, h := range g.HTTPHeaders {
		out.Headers = append(out.Headers, header{h.Name, h.Value})
	}
	return out
}

// portOf resolves a port by its name in the container.
func portOf(c *corev1.Container, p intstr.IntOrString) int32 {
	if p.Type == intstr.Int {
		return p.IntVal
	}
	for _, port := range c.Ports {
		if port.Name == p.StrVal {
			return port.ContainerPort
		}
	}
	return 0
}

// hostnameOf is the pod's host name: its own, else its name, cut to what a host name may have.
func hostnameOf(pod *corev1.Pod, f *facts) string {
	const longest = 63
	if pod.Spec.HostnameOverride != nil {
		return *pod.Spec.HostnameOverride
	}
	name := pod.Name
	if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	name = strings.TrimRight(name[:min(len(name), longest)], "-.")
	if full := fullName(pod, f); full != "" && pod.Spec.SetHostnameAsFQDN != nil && *pod.Spec.SetHostnameAsFQDN {
		return full
	}
	return name
}

// fullName is the name under which a pod with a subdomain is in the cluster's DNS.
func fullName(pod *corev1.Pod, f *facts) string {
	if pod.Spec.Subdomain == "" {
		return ""
	}
	name := pod.Name
	if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	return name + "." + pod.Spec.Subdomain + "." + pod.Namespace + ".svc." + f.domain
}

func aliasesOf(pod *corev1.Pod, f *facts) []hostAlias {
	var out []hostAlias
	if full := fullName(pod, f); full != "" && !pod.Spec.HostNetwork {
		out = append(out, hostAlias{f.address, []string{full}})
	}
	for _, a := range pod.Spec.HostAliases {
		out = append(out, hostAlias{a.IP, a.Hostnames})
	}
	return out
}

// dnsOf is what the pod's DNS policy means.
func dnsOf(pod *corev1.Pod, f *facts) *dnsConfig {
	own := pod.Spec.DNSConfig
	base := dnsConfig{}
	switch policy := pod.Spec.DNSPolicy; {
	case policy == corev1.DNSNone:
	case policy == corev1.DNSDefault || f.clusterDNS == "" || policy == corev1.DNSClusterFirst && pod.Spec.HostNetwork:
		base = f.resolver
	default:
		search := append([]string{pod.Namespace + ".svc." + f.domain, "svc." + f.domain, f.domain}, strings.Fields(f.resolver.Search)...)
		base = dnsConfig{Servers: []string{f.clusterDNS}, Search: strings.Join(search, " "), Options: "ndots:5"}
	}
	if own != nil {
		base.Servers = append(slices.Clone(base.Servers), own.Nameservers...)
		base.Search = strings.Join(append(strings.Fields(base.Search), own.Searches...), " ")
		base.Options = strings.Join(mergeOptions(strings.Fields(base.Options), own.Options), " ")
	}
	if len(base.Servers) == 0 {
		return nil
	}
	return &base
}

// mergeOptions puts the pod's options over the others of the same name.
func mergeOptions(base []string, own []corev1.PodDNSConfigOption) []string {
	for _, o := range own {
		base = slices.DeleteFunc(base, func(b string) bool {
			name, _, _ := strings.Cut(b, ":")
			return name == o.Name
		})
		text := o.Name
		if o.Value != nil && *o.Value != "" {
			text += ":" + *o.Value
		}
		base = append(base, text)
	}
	return base
}

// credentials are the registries that the pod's pull secrets open. A secret that is not there is no obstacle: the
// image may need none.
func (t *translation) credentials() ([]credential, error) {
	byServer := map[string]credential{}
	for _, ref := range t.pod.Spec.ImagePullSecrets {
		s, err := t.objects.secret(t.pod.Namespace, ref.Name)
		if notFound(err) {
			continue
		}
		if err != nil {
			return nil, configErrorf("pull secret %q cannot be read: %v", ref.Name, err)
		}
		for _, c := range registryLogins(s) {
			if _, known := byServer[c.Server]; !known {
				byServer[c.Server] = c
			}
		}
	}
	var out []credential
	for _, server := range slices.Sorted(maps.Keys(byServer)) {
		out = append(out, byServer[server])
	}
	return out, nil
}

// registryLogins reads a docker configuration; entries that are none are left out.
func registryLogins(s *corev1.Secret) []credential {
	type login struct{ Username, Password, Auth string }
	logins := map[string]login{}
	switch s.Type {
	case corev1.SecretTypeDockerConfigJson:
		var file struct{ Auths map[string]login }
		_ = json.Unmarshal(s.Data[corev1.DockerConfigJsonKey], &file)
		logins = file.Auths
	case corev1.SecretTypeDockercfg:
		_ = json.Unmarshal(s.Data[corev1.DockerConfigKey], &logins)
	}
	var out []credential
	for _, server := range slices.Sorted(maps.Keys(logins)) {
		l := logins[server]
		if raw, err := base64.StdEncoding.DecodeString(l.Auth); err == nil && l.Username == "" {
			l.Username, l.Password, _ = strings.Cut(string(raw), ":")
		}
		if l.Username != "" {
			out = append(out, credential{registryHost(server), l.Username, l.Password})
		}
	}
	return out
}

// registryHost strips what people put around a registry's name.
func registryHost(server string) string {
	server = strings.TrimPrefix(strings.TrimPrefix(server, "https://"), "http://")
	server, _, _ = strings.Cut(server, "/")
	return server
}

// hostResolver is this machine's resolver configuration, without name servers that only this machine can ask.
func hostResolver(body string) dnsConfig {
	var c dnsConfig
	for line := range strings.Lines(body) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if ip, err := netip.ParseAddr(f[1]); err == nil && !ip.IsLoopback() {
				c.Servers = append(c.Servers, ip.String())
			}
		case "search":
			c.Search = strings.Join(f[1:], " ")
		case "options":
			c.Options = strings.Join(f[1:], " ")
		}
	}
	return c
}
