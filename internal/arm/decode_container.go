package arm

import (
	"encoding/base64"
	"encoding/json"
	"math"
	"strconv"
	"strings"

	"spillway.dev/spillway/internal/group"
)

// Bounds of what a container may ask for.
const (
	maxCommand   = 1024 // words
	maxStorageGB = 1 << 14
	gigabyte     = 1 << 30
)

// container reads a container or, with init, an init container.
func (d *decoder) container(o *object, init bool) group.Container {
	c := group.Container{Name: o.required("name")}
	d.name("container", o.at("name"), c.Name, 1)
	p := o.child("properties")
	if p == nil {
		d.fault("", o.at("properties"), "The field '%s' is required.", o.at("properties"))
		o.done()
		return c
	}
	p.ignore("instanceView")
	c.Image = p.required("image")
	if c.Image != "" {
		if _, err := ParseImageRef(c.Image); err != nil {
			d.fault("InvalidImageReference", p.at("image"), "The image '%s' of container '%s' is malformed: %s. Write it as [registry/]repository[:tag][@digest].", clip(c.Image), clip(c.Name), err)
		}
	}
	c.Command = d.command(p, "command")
	for _, e := range p.list("environmentVariables") {
		c.Env = append(c.Env, d.env(e, c.Name))
	}
	for _, m := range p.list("volumeMounts") {
		c.Mounts = append(c.Mounts, d.mount(m))
	}
	c.Security = d.security(p.child("securityContext"))
	if init {
		d.sidecar(p, &c)
	} else {
		c.Ports = d.ports(p)
		d.resources(p, !d.version.Superset).into(&c)
		c.Liveness = d.probe(p.child("livenessProbe"), true)
		c.Readiness = d.probe(p.child("readinessProbe"), false)
		c.ConfigMap = d.containerConfigMap(p.child(p.since(v2025, "configMap")))
		c.Startup = d.probe(p.child(p.since(vOwn, "startupProbe")), true)
	}
	d.ownContainer(p, &c)
	p.done()
	o.done()
	return c
}

// sidecar reads what an init container may have in Spillway's api-version only.
func (d *decoder) sidecar(p *object, c *group.Container) {
	if policy := p.str(p.since(vOwn, "restartPolicy")); policy != "" {
		if !strings.EqualFold(policy, "Always") {
			d.fault("", p.at("restartPolicy"), "The field '%s' of an init container can only be 'Always' (a sidecar), got '%s'.", p.at("restartPolicy"), clip(policy))
		}
		c.Sidecar = true
	}
	for _, name := range []string{"ports", "resources", "livenessProbe", "readinessProbe", "startupProbe", "configMap"} {
		if p.since(vOwn, name) == "" {
			continue
		}
		switch name {
		case "ports":
			c.Ports = d.ports(p)
		case "resources":
			d.resources(p, false).into(c)
		case "livenessProbe":
			c.Liveness = d.probe(p.child(name), true)
		case "readinessProbe":
			c.Readiness = d.probe(p.child(name), false)
		case "startupProbe":
			c.Startup = d.probe(p.child(name), true)
		case "configMap":
			c.ConfigMap = d.containerConfigMap(p.child(name))
		}
	}
	if !c.Sidecar && (c.Liveness != nil || c.Readiness != nil || c.Startup != nil) {
		d.fault("", p.path, "The init container '%s' has a probe; only one with \"restartPolicy\": \"Always\" (a sidecar) can.", clip(c.Name))
	}
}

// ownContainer reads a container's fields that only Spillway's api-version has.
func (d *decoder) ownContainer(p *object, c *group.Container) {
	c.Args = d.command(p, p.since(vOwn, "args"))
	c.WorkingDir = p.str(p.since(vOwn, "workingDirectory"))
	if c.WorkingDir != "" && (!strings.HasPrefix(c.WorkingDir, "/") || badPath(c.WorkingDir)) {
		d.fault("", p.at("workingDirectory"), "The field '%s' must be an absolute path, got '%s'.", p.at("workingDirectory"), clip(c.WorkingDir))
	}
	c.PullPolicy = group.PullPolicy(p.pick(vOwn, "imagePullPolicy", string(group.PullAlways), string(group.PullIfNotPresent), string(group.PullNever)))
	c.Target = p.str(p.since(vOwn, "targetContainer"))
	c.TTY = p.boolean(p.since(vOwn, "tty"))
	c.Stdin = p.boolean(p.since(vOwn, "stdin"))
	c.MessagePath = p.str(p.since(vOwn, "terminationMessagePath"))
	if c.MessagePath != "" && (!strings.HasPrefix(c.MessagePath, "/") || badPath(c.MessagePath)) {
		d.fault("", p.at("terminationMessagePath"), "The field '%s' must be an absolute path, got '%s'.", p.at("terminationMessagePath"), clip(c.MessagePath))
	}
	c.MessageFromLog = p.pick(vOwn, "terminationMessagePolicy", "File", "FallbackToLogsOnError") == "FallbackToLogsOnError"
	c.StopSignal = d.signal(p)
	if l := p.child(p.since(vOwn, "lifecycle")); l != nil {
		c.PostStart = d.hook(l.child("postStart"))
		c.PreStop = d.hook(l.child("preStop"))
		l.done()
	}
}

func (d *decoder) signal(p *object) string {
	s := strings.ToUpper(p.str(p.since(vOwn, "stopSignal")))
	if s == "" {
		return ""
	}
	if n, err := strconv.Atoi(s); err == nil && n >= 1 && n <= 64 {
		return s
	}
	short := strings.TrimPrefix(s, "SIG")
	for _, known := range []string{"HUP", "INT", "QUIT", "KILL", "USR1", "USR2", "TERM", "STOP", "CONT", "WINCH", "ALRM", "PIPE", "ABRT", "IO", "PWR"} {
		if short == known {
			return "SIG" + short
		}
	}
	if strings.HasPrefix(short, "RTMIN") || strings.HasPrefix(short, "RTMAX") {
		if n, err := strconv.Atoi(short[5:]); short == short[:5] || err == nil && n >= -30 && n <= 30 {
			return "SIG" + short
		}
	}
	d.fault("", p.at("stopSignal"), "The field '%s' must name a signal such as SIGTERM, got '%s'.", p.at("stopSignal"), clip(s))
	return ""
}

func (d *decoder) command(p *object, name string) []string {
	words := p.strings(name)
	if len(words) > maxCommand {
		d.fault("", p.at(name), "The field '%s' has %d words; at most %d are allowed.", p.at(name), len(words), maxCommand)
	}
	for _, w := range words {
		if strings.ContainsRune(w, 0) {
			d.fault("", p.at(name), "The field '%s' holds a zero byte.", p.at(name))
		}
	}
	if len(words) > 0 && words[0] == "" && name == "command" {
		d.fault("", p.at(name), "The first word of the field '%s' must name a program.", p.at(name))
	}
	return words
}

func (d *decoder) env(o *object, container string) group.EnvVar {
	e := group.EnvVar{Name: o.str("name")}
	if !envRule(e.Name, d.version.Superset) {
		d.fault("InvalidContainerEnvironmentVariable", o.at("name"), "The environment variable name '%s' in container '%s' of container group '%s' is invalid. A valid environment variable name must start with alphabetic character or '_', followed by a string of alphanumeric characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName'), at most %d of them.",
			clip(e.Name), clip(container), d.group, maxAzureEnv)
	}
	value, secret := o.str("value"), o.str("secureValue")
	if value != "" && secret != "" {
		d.fault("", o.path, "The environment variable '%s' of container '%s' has both 'value' and 'secureValue'; give one.", clip(e.Name), clip(container))
	}
	e.Value = value
	if o.m["secureValue"] != nil {
		e.Value, e.Secret = secret, true
	}
	if strings.ContainsRune(e.Value, 0) {
		d.fault("InvalidContainerEnvironmentVariable", o.path, "The value of the environment variable '%s' of container '%s' holds a zero byte.", clip(e.Name), clip(container))
	}
	o.refuse(o.since(v2025, "secureValueReference"), "", "this platform has no key vault; give the value itself")
	o.done()
	return e
}

// resources is what a container asks for.
type resources struct {
	requests, limits group.Resources
	gpuSKU           string
}

func (r resources) into(c *group.Container) {
	c.Requests, c.Limits, c.GPUSKU = r.requests, r.limits, r.gpuSKU
}

func (d *decoder) resources(p *object, required bool) resources {
	var out resources
	r := p.child("resources")
	if r == nil {
		if required {
			d.fault("", p.at("resources"), "The field '%s' is required: requests with cpu and memoryInGB.", p.at("resources"))
		}
		return out
	}
	req := r.child("requests")
	if req == nil {
		if required {
			d.fault("", r.at("requests"), "The field '%s' is required: cpu and memoryInGB.", r.at("requests"))
		}
	} else {
		if d.version.Superset {
			out.requests.GPUs, out.gpuSKU = d.gpu(req.child("gpu"))
		}
		out.requests = out.requests.Add(d.amounts(req, !d.version.Superset))
	}
	if lim := r.child("limits"); lim != nil {
		out.limits = d.amounts(lim, false)
		if _, given := lim.m["cpu"]; given && out.limits.MilliCPU == 0 {
			out.limits.MilliCPU = group.Unlimited
		}
		if _, given := lim.m["memoryInGB"]; given && out.limits.Memory == 0 {
			out.limits.Memory = group.Unlimited
		}
	}
	r.done()
	return out
}

// amounts reads {cpu, memoryInGB}.
func (d *decoder) amounts(o *object, required bool) group.Resources {
	var r group.Resources
	cpu, hasCPU := o.number("cpu")
	memory, hasMemory := o.number("memoryInGB")
	if required && !hasCPU {
		d.fault("", o.at("cpu"), "The field '%s' is required.", o.at("cpu"))
	}
	if required && !hasMemory {
		d.fault("", o.at("memoryInGB"), "The field '%s' is required.", o.at("memoryInGB"))
	}
	if hasCPU {
		r.MilliCPU = int64(math.Round(min(max(cpu, -1), 1e6) * 1000))
		// The superset has containers that ask for nothing, or for little: they get what is left.
		if r.MilliCPU < group.MinMilliCPU && !(d.version.Superset && r.MilliCPU >= 0) || r.MilliCPU > group.MaxMilliCPU {
			d.fault("InvalidResourceRequest", o.at("cpu"), "The field '%s' must be from %g to %g cores, got %g.", o.at("cpu"), group.MinMilliCPU/1000.0, group.MaxMilliCPU/1000.0, cpu)
		}
	}
	if hasMemory {
		r.Memory = int64(math.Round(min(max(memory, -1), 1e6) * gigabyte))
		if r.Memory < group.MinMemory && !(d.version.Superset && r.Memory >= 0) || r.Memory > group.MaxMemory {
			d.fault("InvalidResourceRequest", o.at("memoryInGB"), "The field '%s' must be from %g to %g GB, got %g.", o.at("memoryInGB"), float64(group.MinMemory)/gigabyte, float64(group.MaxMemory)/gigabyte, memory)
		}
	}
	if !o.asked["gpu"] { // requests of the superset have it
		o.refuse("gpu", "", "only requests of api-version "+Superset+" ask for GPUs")
	}
	o.done()
	return r
}

// bytes reads an amount in GB as bytes.
func (o *object) bytes(name string, mostGB float64) int64 {
	f, present := o.number(name)
	if !present {
		return 0
	}
	if f <= 0 || f > mostGB {
		o.d.fault("", o.at(name), "The field '%s' must be above 0 and at most %g GB, got %g.", o.at(name), mostGB, f)
		return 0
	}
	return int64(math.Round(f * gigabyte))
}

func (d *decoder) containerConfigMap(o *object) map[string]string {
	if o == nil {
		return nil
	}
	pairs := o.stringMap("keyValuePairs")
	size := 0
	for _, k := range sortedKeys(pairs) {
		size += len(pairs[k])
		if !fileName(k) {
			d.fault("", o.at("keyValuePairs"), "The key '%s' in '%s' cannot be a file name.", clip(k), o.at("keyValuePairs"))
		}
	}
	if size > group.MaxSecretBytes {
		d.fault("", o.at("keyValuePairs"), "The values in '%s' have %d bytes together; at most %d are allowed.", o.at("keyValuePairs"), size, group.MaxSecretBytes)
	}
	o.done()
	return pairs
}

// id reads a user or group id.
func (o *object) id(name string) *int64 {
	n, present := o.integer(name, 0, group.MaxID)
	if !present {
		return nil
	}
	return &n
}

func (d *decoder) security(o *object) *group.Security {
	if o == nil {
		return nil
	}
	s := &group.Security{User: o.id("runAsUser"), Group: o.id("runAsGroup"), AllowEscalation: o.boolean("allowPrivilegeEscalation")}
	s.Privileged = d.privileged(o)
	if c := o.child("capabilities"); c != nil {
		s.AddCaps = d.capabilities(c, "add", s.Privileged)
		s.DropCaps = d.capabilities(c, "drop", true)
		c.done()
	}
	s.Seccomp = o.str("seccompProfile")
	if s.Seccomp != "" {
		raw, err := base64.StdEncoding.DecodeString(s.Seccomp)
		if err != nil || !json.Valid(raw) {
			d.fault("", o.at("seccompProfile"), "The field '%s' must be a seccomp profile in JSON, encoded in base64.", o.at("seccompProfile"))
		}
	}
	s.ReadOnlyRoot = o.boolean(o.since(vOwn, "readOnlyRootFilesystem"))
	s.RunAsNonRoot = o.boolean(o.since(vOwn, "runAsNonRoot"))
	if s.RunAsNonRoot && s.User != nil && *s.User == 0 {
		d.fault("", o.at("runAsNonRoot"), "The field '%s' is true, but '%s' is 0, which is root.", o.at("runAsNonRoot"), o.at("runAsUser"))
	}
	s.ExtraGroups = o.ids(o.since(vOwn, "supplementalGroups"))
	o.done()
	return s
}

// ids reads an array of group ids.
func (o *object) ids(name string) []int64 {
	v := o.take(name)
	if v == nil {
		return nil
	}
	list, ok := v.([]any)
	if !ok {
		o.wrong(name, "an array of numbers", v)
		return nil
	}
	var out []int64
	for _, e := range list {
		n, ok := e.(json.Number)
		id, err := strconv.ParseInt(n.String(), 10, 64)
		if !ok || err != nil || id < 0 || id > group.MaxID {
			o.d.fault("", o.at(name), "The field '%s' must hold ids from 0 to %d.", o.at(name), group.MaxID)
			return nil
		}
		out = append(out, id)
	}
	return out
}
