package arm

import (
	"slices"
	"unicode/utf8"

	"spillway.dev/spillway/internal/group"
)

// encoder renders the parts of one group.
type encoder struct {
	version Version
	status  *group.Status
}

func (e encoder) container(c *group.Container, init bool) wireContainer {
	p := wireContainerProperties{
		Image: c.Image, Command: c.Command, Env: make([]wireEnv, 0, len(c.Env)),
		Liveness: e.probe(c.Liveness), Readiness: e.probe(c.Readiness), Security: e.security(c.Security),
		InstanceView: e.containerView(c.Name),
	}
	for i := range c.Env {
		v := wireEnv{Name: c.Env[i].Name}
		if !c.Env[i].Secret {
			v.Value = &c.Env[i].Value
		}
		p.Env = append(p.Env, v)
	}
	for _, m := range c.Mounts {
		w := wireMount{Name: m.Volume, Path: m.Path, ReadOnly: m.ReadOnly}
		if e.version.Superset {
			w.SubPath = m.SubPath
		}
		p.Mounts = append(p.Mounts, w)
	}
	if !init || len(c.Ports) > 0 && e.version.Superset {
		list := ports(c.Ports)
		p.Ports = &list
	}
	if !init || (c.Requests != (group.Resources{}) || c.Limits != (group.Resources{})) && e.version.Superset {
		p.Resources = resourcesOf(c)
		if c.Requests.GPUs > 0 && e.version.Superset {
			p.Resources.Requests.GPU = &wireGPU{c.Requests.GPUs, c.GPUSKU}
		}
	}
	if c.ConfigMap != nil && e.version.has(v2025) {
		p.ConfigMap = &wireConfigMap{Pairs: c.ConfigMap}
	}
	if e.version.Superset {
		p.OwnContainer = e.ownContainer(c)
	}
	return wireContainer{Name: c.Name, Properties: p}
}

func (e encoder) ownContainer(c *group.Container) *OwnContainer {
	own := &OwnContainer{
		Args: c.Args, WorkingDir: c.WorkingDir, Startup: e.probe(c.Startup), TTY: c.TTY, Stdin: c.Stdin,
		StopSignal: c.StopSignal, MessagePath: c.MessagePath, PullPolicy: string(c.PullPolicy), Target: c.Target,
	}
	if c.Sidecar {
		own.RestartPolicy = string(group.RestartAlways)
	}
	if c.MessageFromLog {
		own.MessagePolicy = "FallbackToLogsOnError"
	}
	if c.PostStart != nil || c.PreStop != nil {
		own.Lifecycle = &wireLifecycle{PostStart: e.hook(c.PostStart), PreStop: e.hook(c.PreStop)}
	}
	return own
}

func resourcesOf(c *group.Container) *wireResources {
	r := &wireResources{Requests: amounts(c.Requests)}
	if c.Limits != (group.Resources{}) {
		r.Limits = limits(c.Limits)
	}
	return r
}

func limits(r group.Resources) *wireLimits {
	w := &wireLimits{}
	if r.MilliCPU != 0 {
		cores := float64(max(r.MilliCPU, 0)) / 1000
		w.CPU = &cores
	}
	if r.Memory != 0 {
		gb := inGB(max(r.Memory, 0))
		w.MemoryInGB = &gb
	}
	return w
}

func amounts(r group.Resources) wireAmounts {
	return wireAmounts{MemoryInGB: inGB(r.Memory), CPU: float64(r.MilliCPU) / 1000}
}

func (e encoder) probe(p *group.Probe) *wireProbe {
	if p == nil {
		return nil
	}
	w := &wireProbe{
		wireHandler: e.handler(&p.Handler), InitialDelay: p.InitialDelaySeconds, Period: p.PeriodSeconds,
		FailureThreshold: p.FailureThreshold, SuccessThreshold: p.SuccessThreshold, Timeout: p.TimeoutSeconds,
	}
	if e.version.Superset {
		w.Grace = p.GraceSeconds
	}
	return w
}

func (e encoder) hook(h *group.Handler) *wireHandler {
	if h == nil {
		return nil
	}
	w := e.handler(h)
	return &w
}

func (e encoder) handler(h *group.Handler) wireHandler {
	var w wireHandler
	if h.Exec != nil {
		w.Exec = &wireExec{Command: h.Exec}
	}
	if g := h.HTTP; g != nil {
		w.HTTP = &wireHTTPGet{Path: g.Path, Port: g.Port, Scheme: "http"}
		if g.HTTPS {
			w.HTTP.Scheme = "https"
		}
		for _, header := range g.Headers {
			w.HTTP.Headers = append(w.HTTP.Headers, wireHeader(header))
		}
		if e.version.Superset {
			w.HTTP.Host = g.Host
		}
	}
	if !e.version.Superset {
		return w
	}
	if h.TCP != nil {
		w.TCP = &wirePortRef{Port: h.TCP.Port}
	}
	if h.GRPC != nil {
		w.GRPC = &wirePortRef{Port: h.GRPC.Port, Service: h.GRPC.Service}
	}
	if h.SleepSeconds > 0 {
		w.Sleep = &wireSleep{Seconds: h.SleepSeconds}
	}
	return w
}

func (e encoder) security(s *group.Security) *wireSecurity {
	if s == nil {
		return nil
	}
	w := &wireSecurity{AllowEscalation: s.AllowEscalation, RunAsGroup: s.Group, RunAsUser: s.User, Seccomp: s.Seccomp}
	if len(s.AddCaps)+len(s.DropCaps) > 0 {
		w.Capabilities = &wireCapabilities{Add: s.AddCaps, Drop: s.DropCaps}
	}
	if e.version.Superset {
		w.ReadOnlyRoot, w.RunAsNonRoot, w.ExtraGroups, w.Privileged = s.ReadOnlyRoot, s.RunAsNonRoot, s.ExtraGroups, s.Privileged
	}
	return w
}

func (e encoder) volume(v *group.Volume) wireVolume {
	w := wireVolume{Name: v.Name}
	own := e.version.Superset
	switch {
	case v.EmptyDir != nil:
		w.EmptyDir = &wireEmptyDir{}
		if own {
			w.EmptyDir.SizeLimit = inGB(v.EmptyDir.SizeLimit)
			if v.EmptyDir.Memory {
				w.EmptyDir.Medium = "Memory"
			}
		}
	case v.Secret != nil:
		w.Secret = &struct{}{}
		if own {
			w.Mode, w.Modes, w.Owners = v.Secret.Mode, v.Secret.Modes, v.Secret.Owners
		}
	case v.ConfigMap != nil && own:
		w.ConfigMap = &wireConfigMap{Pairs: map[string]string{}}
		for k, b := range v.ConfigMap.Data {
			if utf8.Valid(b) {
				w.ConfigMap.Pairs[k] = string(b)
				continue
			}
			if w.ConfigMap.Binary == nil {
				w.ConfigMap.Binary = map[string][]byte{}
			}
			w.ConfigMap.Binary[k] = b
		}
		w.Mode, w.Modes, w.Owners = v.ConfigMap.Mode, v.ConfigMap.Modes, v.ConfigMap.Owners
	case v.GitRepo != nil:
		w.GitRepo = &wireGitRepo{Directory: v.GitRepo.Directory, Repository: v.GitRepo.Repository, Revision: v.GitRepo.Revision}
	case v.HostPath != nil && own:
		w.HostPath = &wireHostPath{Path: v.HostPath.Path, Type: string(v.HostPath.Type)}
	case v.AzureFile != nil:
		w.AzureFile = &wireAzureFile{Share: v.AzureFile.Share, ReadOnly: v.AzureFile.ReadOnly, Account: v.AzureFile.Account}
	}
	return w
}

// containerView is nil for a container of which nothing is known yet: before it ran, Azure shows none.
func (e encoder) containerView(name string) *wireContainerView {
	if e.status == nil {
		return nil
	}
	for _, c := range slices.Concat(e.status.Init, e.status.Containers, e.status.Ephemeral) {
		if c.Name != name {
			continue
		}
		quiet := c.Current.State == group.Waiting && c.Current.Detail == "" && c.Previous == nil && len(c.Events) == 0
		if quiet || c.Current.State == "" {
			return nil
		}
		w := &wireContainerView{RestartCount: c.RestartCount, Current: e.moment(&c.Current), Previous: e.moment(c.Previous), Events: events(c.Events)}
		if e.version.Superset {
			w.Ready, w.Started, w.ImageDigest = &c.Ready, c.Began, c.Image
			if c.BackoffUntil != nil {
				w.BackoffUntil = Stamp(*c.BackoffUntil)
			}
		}
		return w
	}
	return nil
}

func (e encoder) moment(m *group.Moment) *wireMoment {
	if m == nil {
		return nil
	}
	w := &wireMoment{State: string(m.State), Start: Stamp(m.Start), ExitCode: m.ExitCode, Finish: Stamp(m.Finish), Detail: m.Detail}
	if e.version.Superset {
		w.Signal, w.Message = m.Signal, m.Message
	}
	return w
}
