package virtualnode

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// placementOf carries a pod's rules about other pods down to the platform, where they hold between the machines behind
// this node: to the cluster's scheduler all of them are one host. Rules over any other topology are the scheduler's
// alone, as everything behind a node has the node's labels. So are those that choose namespaces by label, which the
// node does not read. nil: no rules.
func placementOf(pod *corev1.Pod, f *facts) *placement {
	p := &placement{}
	rules := ruleMaker{pod, f}
	if a := pod.Spec.Affinity; a != nil {
		if own := a.PodAffinity; own != nil {
			p.Affinity = rules.terms(own.RequiredDuringSchedulingIgnoredDuringExecution, own.PreferredDuringSchedulingIgnoredDuringExecution)
		}
		if own := a.PodAntiAffinity; own != nil {
			p.AntiAffinity = rules.terms(own.RequiredDuringSchedulingIgnoredDuringExecution, own.PreferredDuringSchedulingIgnoredDuringExecution)
		}
	}
	for _, c := range pod.Spec.TopologySpreadConstraints {
		if labels := rules.conditions(c.LabelSelector, []string{pod.Namespace}); labels != nil && c.TopologyKey == corev1.LabelHostname {
			p.Spread = append(p.Spread, spread{Labels: append(labels, rules.same(c.MatchLabelKeys, labelIn)...), Topology: overHosts, MaxSkew: c.MaxSkew, Unsatisfiable: string(c.WhenUnsatisfiable)})
		}
	}
	if len(p.Affinity)+len(p.AntiAffinity)+len(p.Spread) == 0 {
		return nil
	}
	return p
}

const (
	overHosts    = "host" // the platform's word for the topology of single machines
	labelIn      = string(metav1.LabelSelectorOpIn)
	labelNotIn   = string(metav1.LabelSelectorOpNotIn)
	requiredRule = 0 // weight
)

// ruleMaker turns the rules of one pod into those of the platform.
type ruleMaker struct {
	pod   *corev1.Pod
	facts *facts
}

func (m ruleMaker) terms(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm) []affinity {
	var out []affinity
	add := func(t *corev1.PodAffinityTerm, weight int32) {
		namespaces, all, known := m.namespaces(t)
		labels := m.conditions(t.LabelSelector, namespaces)
		if t.TopologyKey != corev1.LabelHostname || labels == nil || !known || !all && len(namespaces) == 0 {
			return
		}
		labels = append(append(labels, m.same(t.MatchLabelKeys, labelIn)...), m.same(t.MismatchLabelKeys, labelNotIn)...)
		out = append(out, affinity{Labels: labels, Topology: overHosts, Weight: weight})
	}
	for i := range required {
		add(&required[i], requiredRule)
	}
	for i := range preferred {
		add(&preferred[i].PodAffinityTerm, preferred[i].Weight)
	}
	return out
}

// namespaces are those whose pods a term means; all of them; or, known is false, those that only a look at their
// labels tells.
func (m ruleMaker) namespaces(t *corev1.PodAffinityTerm) (names []string, all, known bool) {
	switch s := t.NamespaceSelector; {
	case s == nil && len(t.Namespaces) == 0:
		return []string{m.pod.Namespace}, false, true
	case s == nil:
		return t.Namespaces, false, true
	case len(s.MatchLabels)+len(s.MatchExpressions) == 0:
		return nil, true, true
	}
	return nil, false, false
}

// conditions are a label selector's, within this cluster and some namespaces (none: all of them). nil: the selector
// matches nothing.
func (m ruleMaker) conditions(s *metav1.LabelSelector, namespaces []string) []expression {
	if s == nil {
		return nil
	}
	out := []expression{{Key: tagCluster, Operator: labelIn, Values: []string{m.facts.cluster}}}
	if len(namespaces) > 0 {
		out = append(out, expression{Key: tagNamespace, Operator: labelIn, Values: namespaces})
	}
	for _, key := range slices.Sorted(maps.Keys(s.MatchLabels)) {
		out = append(out, expression{Key: key, Operator: labelIn, Values: []string{s.MatchLabels[key]}})
	}
	for _, e := range s.MatchExpressions {
		out = append(out, expression{Key: e.Key, Operator: string(e.Operator), Values: e.Values})
	}
	return out
}

// same compares labels with the pod's own; those that it does not have are left out, as in Kubernetes.
func (m ruleMaker) same(keys []string, operator string) []expression {
	var out []expression
	for _, key := range keys {
		if value, ok := m.pod.Labels[key]; ok {
			out = append(out, expression{Key: key, Operator: operator, Values: []string{value}})
		}
	}
	return out
}
