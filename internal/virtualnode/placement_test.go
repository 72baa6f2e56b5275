package virtualnode

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestPlacementOf(t *testing.T) {
	web := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	term := func(change func(*corev1.PodAffinityTerm)) corev1.PodAffinityTerm {
		out := corev1.PodAffinityTerm{LabelSelector: web, TopologyKey: corev1.LabelHostname}
		change(&out)
		return out
	}
	in := func(key string, values ...string) expression { return expression{key, "In", values} }
	cluster, here, app := in(tagCluster, "c1"), in(tagNamespace, "shop"), in("app", "web")
	one := func(labels ...expression) []affinity {
		return []affinity{{Labels: append([]expression{cluster}, labels...), Topology: overHosts}}
	}
	for name, test := range map[string]struct {
		term corev1.PodAffinityTerm
		want []affinity
	}{
		"own namespace":         {term(func(*corev1.PodAffinityTerm) {}), one(here, app)},
		"other namespaces":      {term(func(t *corev1.PodAffinityTerm) { t.Namespaces = []string{"a", "b"} }), one(in(tagNamespace, "a", "b"), app)},
		"every namespace":       {term(func(t *corev1.PodAffinityTerm) { t.NamespaceSelector = &metav1.LabelSelector{} }), one(app)},
		"namespaces by label":   {term(func(t *corev1.PodAffinityTerm) { t.NamespaceSelector = web }), nil},
		"another topology":      {term(func(t *corev1.PodAffinityTerm) { t.TopologyKey = corev1.LabelTopologyZone }), nil},
		"no selector":           {term(func(t *corev1.PodAffinityTerm) { t.LabelSelector = nil }), nil},
		"the pod's own labels":  {term(func(t *corev1.PodAffinityTerm) { t.MatchLabelKeys = []string{"version", "absent"} }), one(here, app, in("version", "2"))},
		"unlike its own labels": {term(func(t *corev1.PodAffinityTerm) { t.MismatchLabelKeys = []string{"version"} }), one(here, app, expression{"version", "NotIn", []string{"2"}})},
		"expressions": {term(func(t *corev1.PodAffinityTerm) {
			t.LabelSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpExists}}}
		}), one(here, expression{"tier", "Exists", nil})},
	} {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Labels: map[string]string{"version": "2"}}, Spec: corev1.PodSpec{Affinity: &corev1.Affinity{
			PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{test.term}},
			PodAntiAffinity: &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{
				{Weight: 7, PodAffinityTerm: test.term}}}}}}
		var affinity, anti []affinity
		if got := placementOf(pod, &facts{cluster: "c1"}); got != nil {
			affinity, anti = got.Affinity, got.AntiAffinity
		}
		if diff := cmp.Diff(test.want, affinity); diff != "" {
			t.Errorf("%s: affinity differs (-want +got):\n%s", name, diff)
		}
		if len(anti) != len(test.want) || len(anti) > 0 && (anti[0].Weight != 7 || !cmp.Equal(anti[0].Labels, test.want[0].Labels)) {
			t.Errorf("%s: preferred anti-affinity = %+v, want as %+v with weight 7", name, anti, test.want)
		}
	}
}

func TestPlacementOfSpread(t *testing.T) {
	selector := &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop"}, Spec: corev1.PodSpec{TopologySpreadConstraints: []corev1.TopologySpreadConstraint{
		{MaxSkew: 2, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway, LabelSelector: selector},
		{MaxSkew: 1, TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: selector}}}}
	want := &placement{Spread: []spread{{Labels: []expression{{tagCluster, "In", []string{"c1"}}, {tagNamespace, "In", []string{"shop"}}, {"app", "In", []string{"web"}}},
		Topology: overHosts, MaxSkew: 2, Unsatisfiable: "ScheduleAnyway"}}}
	if diff := cmp.Diff(want, placementOf(pod, &facts{cluster: "c1"})); diff != "" {
		t.Errorf("placement differs (-want +got):\n%s", diff)
	}
	if got := placementOf(&corev1.Pod{}, &facts{}); got != nil {
		t.Errorf("placement of a pod without rules = %+v, want none", got)
	}
}
