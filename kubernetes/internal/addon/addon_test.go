package addon

import (
	"slices"
	"testing"
)

// TestManifestsRender: every add-on's manifest is whole, in the system's namespace, with the image that it is given,
// which nobody pulls.
func TestManifestsRender(t *testing.T) {
	v := Values{Image: "example/image:1", Domain: "cluster.local", ClusterDNS: "10.96.0.10", Certificate: "Yw==", Key: "aw==", Authority: "YQ=="}
	for name, want := range map[string][]string{
		CoreDNS:       {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "ConfigMap", "Deployment", "Service"},
		MetricsServer: {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "RoleBinding", "Secret", "Deployment", "Service", "APIService"},
	} {
		list, err := render(name, v)
		if err != nil {
			t.Fatalf("render(%s) = %v", name, err)
		}
		var kinds []string
		for _, o := range list {
			kinds = append(kinds, o.GetKind())
			if ns := o.GetNamespace(); ns != "" && ns != "kube-system" {
				t.Errorf("%s: %s %s is in namespace %s", name, o.GetKind(), o.GetName(), ns)
			}
			if o.GetKind() != "Deployment" {
				continue
			}
			spec, _ := o.Object["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)
			c := spec["containers"].([]any)[0].(map[string]any)
			if c["image"] != v.Image || c["imagePullPolicy"] != "Never" {
				t.Errorf("%s: image = %v, pull policy = %v, want %s, Never", name, c["image"], c["imagePullPolicy"], v.Image)
			}
		}
		for _, k := range want {
			if !slices.Contains(kinds, k) {
				t.Errorf("%s: the manifest has no %s", name, k)
			}
		}
	}
	if _, err := render("nothing", v); err == nil {
		t.Error("render of an add-on that does not exist gave no error")
	}
}
