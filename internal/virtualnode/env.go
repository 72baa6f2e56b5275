package virtualnode

import (
	"fmt"
	"maps"
	"math"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
)

// objects is what a pod may refer to, at one moment. Errors are NotFound of the API, or of its way there.
type objects interface {
	configMap(namespace, name string) (*corev1.ConfigMap, error)
	secret(namespace, name string) (*corev1.Secret, error)
	// services are those of a namespace that have an address, and the API's own.
	services(namespace string) []*corev1.Service
}

// facts is what else the translation needs to know.
type facts struct {
	nodeName    string
	nodeIP      string
	allocatable corev1.ResourceList
	clusterDNS  string // address of the cluster's name server
	domain      string // the cluster's domain
	resolver    dnsConfig
	network     string
	cluster     string            // identity of the cluster: its own pods are told apart by it
	isolation   map[string]string // runtime class handler → isolation class
	address     string            // placeholder of the pod's address
}

// configError is a reference of a pod that cannot be resolved now: the kubelet's CreateContainerConfigError.
type configError struct{ message string }

func (e *configError) Error() string { return e.message }

func configErrorf(format string, args ...any) error {
	return &configError{fmt.Sprintf(format, args...)}
}

// environment resolves a container's variables, in the order in which they are declared; later ones replace earlier
// ones of the same name.
type environment struct {
	order  []string
	values map[string]string
	secret map[string]bool
}

func (e *environment) set(name, value string, secret bool) {
	if _, ok := e.values[name]; !ok {
		e.order = append(e.order, name)
	}
	e.values[name], e.secret[name] = value, secret
}

func (e *environment) vars() []envVar {
	var out []envVar
	for _, name := range e.order {
		v := envVar{Name: name}
		if value := e.values[name]; e.secret[name] {
			v.Secure = &value
		} else {
			v.Value = &value
		}
		out = append(out, v)
	}
	return out
}

// environmentOf resolves the variables of a container: services, envFrom, env.
func environmentOf(t *translation, c *corev1.Container) (*environment, error) {
	pod, o := t.pod, t.objects
	e := &environment{values: map[string]string{}, secret: map[string]bool{}}
	links := pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks
	services := map[string]string{}
	for _, s := range o.services(pod.Namespace) {
		api := s.Namespace == "default" && s.Name == "kubernetes"
		if api || links && s.Namespace == pod.Namespace {
			maps.Copy(services, serviceVars(s))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(services)) {
		e.set(name, services[name], false)
	}
	for _, from := range c.EnvFrom {
		if err := e.addFrom(pod.Namespace, &from, o); err != nil {
			return nil, err
		}
	}
	for i := range c.Env {
		if err := e.add(t, c, &c.Env[i]); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// serviceVars are the variables by which programs found services before there was DNS.
func serviceVars(s *corev1.Service) map[string]string {
	out := map[string]string{}
	if s.Spec.ClusterIP == "" || s.Spec.ClusterIP == corev1.ClusterIPNone || len(s.Spec.Ports) == 0 {
		return out
	}
	name := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
	out[name+"_SERVICE_HOST"], out[name+"_SERVICE_PORT"] = s.Spec.ClusterIP, strconv.Itoa(int(s.Spec.Ports[0].Port))
	for i, p := range s.Spec.Ports {
		number, protocol := strconv.Itoa(int(p.Port)), strings.ToLower(string(p.Protocol))
		if p.Name != "" {
			out[name+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(p.Name, "-", "_"))] = number
		}
		url := protocol + "://" + net.JoinHostPort(s.Spec.ClusterIP, number)
		if i == 0 {
			out[name+"_PORT"] = url
		}
		prefix := name + "_PORT_" + number + "_" + strings.ToUpper(protocol)
		out[prefix], out[prefix+"_PROTO"], out[prefix+"_PORT"], out[prefix+"_ADDR"] = url, protocol, number, s.Spec.ClusterIP
	}
	return out
}

func (e *environment) addFrom(namespace string, from *corev1.EnvFromSource, o objects) error {
	switch {
	case from.ConfigMapRef != nil:
		m, err := o.configMap(namespace, from.ConfigMapRef.Name)
		if err != nil {
			return optional(err, from.ConfigMapRef.Optional, "configmap", from.ConfigMapRef.Name)
		}
		for _, k := range slices.Sorted(maps.Keys(m.Data)) {
			e.set(from.Prefix+k, m.Data[k], false)
		}
	case from.SecretRef != nil:
		s, err := o.secret(namespace, from.SecretRef.Name)
		if err != nil {
			return optional(err, from.SecretRef.Optional, "secret", from.SecretRef.Name)
		}
		for _, k := range slices.Sorted(maps.Keys(s.Data)) {
			e.set(from.Prefix+k, string(s.Data[k]), true)
		}
	}
	// Names that are none are left out, as a kubelet does.
	e.order = slices.DeleteFunc(e.order, func(name string) bool {
		bad := len(validation.IsRelaxedEnvVarName(name)) > 0
		if bad {
			delete(e.values, name)
		}
		return bad
	})
	return nil
}

// optional forgives the absence of what need not be there.
func optional(err error, isOptional *bool, kind, name string) error {
	if isOptional != nil && *isOptional && notFound(err) {
		return nil
	}
	if notFound(err) {
		return configErrorf("%s %q not found", kind, name)
	}
	return configErrorf("%s %q cannot be read: %v", kind, name, err)
}

func (e *environment) add(t *translation, c *corev1.Container, v *corev1.EnvVar) error {
	pod, o, f := t.pod, t.objects, t.facts
	if v.ValueFrom == nil {
		e.set(v.Name, expand(v.Value, e.lookup), e.mentionsSecret(v.Value))
		return nil
	}
	switch from := v.ValueFrom; {
	case from.FieldRef != nil:
		value, err := fieldValue(pod, from.FieldRef.FieldPath, f)
		if err != nil {
			return err
		}
		e.set(v.Name, value, false)
	case from.ResourceFieldRef != nil:
		value, err := resourceValue(pod, c.Name, from.ResourceFieldRef, f)
		if err != nil {
			return err
		}
		e.set(v.Name, value, false)
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		m, err := o.configMap(pod.Namespace, ref.Name)
		if err != nil {
			return optional(err, ref.Optional, "configmap", ref.Name)
		}
		if value, ok := m.Data[ref.Key]; ok {
			e.set(v.Name, value, false)
		} else if ref.Optional == nil || !*ref.Optional {
			return configErrorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, pod.Namespace, ref.Name)
		}
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		s, err := o.secret(pod.Namespace, ref.Name)
		if err != nil {
			return optional(err, ref.Optional, "secret", ref.Name)
		}
		if value, ok := s.Data[ref.Key]; ok {
			e.set(v.Name, string(value), true)
		} else if ref.Optional == nil || !*ref.Optional {
			return configErrorf("couldn't find key %v in Secret %v/%v", ref.Key, pod.Namespace, ref.Name)
		}
	}
	return nil
}

func (e *environment) lookup(name string) (string, bool) {
	value, ok := e.values[name]
	return value, ok
}

// mentionsSecret says whether a value is made of a secret one.
func (e *environment) mentionsSecret(value string) bool {
	for name := range e.secret {
		if e.secret[name] && strings.Contains(value, "$("+name+")") {
			return true
		}
	}
	return false
}

// expand replaces $(NAME) by known variables. $$(NAME) stands for $(NAME) itself; what is unknown stays as it is.
func expand(text string, lookup func(string) (string, bool)) string {
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] != '$' || i+1 == len(text) {
			out.WriteByte(text[i])
			continue
		}
		switch text[i+1] {
		case '$':
			out.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(text[i:], ')')
			if end < 0 {
				out.WriteString("$(")
				i++
				continue
			}
			if value, ok := lookup(text[i+2 : i+end]); ok {
				out.WriteString(value)
			} else {
				out.WriteString(text[i : i+end+1])
			}
			i += end
		default:
			out.WriteByte('$')
		}
	}
	return out.String()
}

func expandAll(texts []string, lookup func(string) (string, bool)) []string {
	var out []string
	for _, t := range texts {
		out = append(out, expand(t, lookup))
	}
	return out
}

// fieldValue is the downward API: a field of the pod by its path.
func fieldValue(pod *corev1.Pod, path string, f *facts) (string, error) {
	if kind, key, ok := subscript(path); ok {
		switch kind {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "spec.nodeName":
		return f.nodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		return f.nodeIP, nil
	case "status.podIP", "status.podIPs":
		return f.address, nil
	}
	return "", configErrorf("unsupported fieldPath: %v", path)
}

// subscript takes metadata.labels['key'] apart.
func subscript(path string) (kind, key string, ok bool) {
	kind, rest, ok := strings.Cut(path, "['")
	if !ok {
		return "", "", false
	}
	key, ok = strings.CutSuffix(rest, "']")
	return kind, key, ok
}

// formatMap writes name="value" lines, sorted.
func formatMap(m map[string]string) string {
	var lines []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, k+"="+strconv.Quote(m[k]))
	}
	return strings.Join(lines, "\n")
}

// resourceValue is the downward API for amounts; a limit that is not set is what the node has.
func resourceValue(pod *corev1.Pod, container string, ref *corev1.ResourceFieldSelector, f *facts) (string, error) {
	if ref.ContainerName != "" {
		container = ref.ContainerName
	}
	c := containerOf(pod, container)
	if c == nil {
		return "", configErrorf("container %s not found", container)
	}
	kind, name, _ := strings.Cut(ref.Resource, ".")
	amount, ok := c.Resources.Requests[corev1.ResourceName(name)]
	if kind == "limits" {
		if amount, ok = c.Resources.Limits[corev1.ResourceName(name)]; !ok || amount.IsZero() {
			amount = f.allocatable[corev1.ResourceName(name)]
		}
	} else if kind != "requests" {
		return "", configErrorf("unsupported container resource: %v", ref.Resource)
	} else if !ok {
		amount = c.Resources.Limits[corev1.ResourceName(name)]
	}
	return divided(amount, name, ref.Divisor), nil
}

// divided shows an amount in units of the divisor, rounded up.
func divided(amount resource.Quantity, name string, divisor resource.Quantity) string {
	if name == string(corev1.ResourceCPU) {
		d := int64(1000)
		if !divisor.IsZero() {
			d = divisor.MilliValue()
		}
		return strconv.FormatInt(int64(math.Ceil(float64(amount.MilliValue())/float64(d))), 10)
	}
	d := int64(1)
	if !divisor.IsZero() {
		d = divisor.Value()
	}
	return strconv.FormatInt(int64(math.Ceil(float64(amount.Value())/float64(d))), 10)
}

// containerOf finds any container of a pod by name.
func containerOf(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}
