package virtualnode

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func mainOf(s *corev1.PodSpec) *corev1.Container { return &s.Containers[0] }

func securityIn(s *corev1.PodSpec) *corev1.SecurityContext {
	mainOf(s).SecurityContext = &corev1.SecurityContext{}
	return mainOf(s).SecurityContext
}

func podSecurityIn(s *corev1.PodSpec) *corev1.PodSecurityContext {
	s.SecurityContext = &corev1.PodSecurityContext{}
	return s.SecurityContext
}

func secondVolume(s *corev1.PodSpec, source corev1.VolumeSource) {
	s.Volumes = []corev1.Volume{{Name: "ok", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}, {Name: "v", VolumeSource: source}}
}

// refused has a pod for each field that is refused.
var refused = map[string]func(s *corev1.PodSpec){
	"spec.hostNetwork":      func(s *corev1.PodSpec) { s.HostNetwork = true },
	"spec.hostPID":          func(s *corev1.PodSpec) { s.HostPID = true },
	"spec.hostIPC":          func(s *corev1.PodSpec) { s.HostIPC = true },
	"spec.hostUsers":        func(s *corev1.PodSpec) { s.HostUsers = ptr(false) },
	"spec.runtimeClassName": func(s *corev1.PodSpec) { s.RuntimeClassName = ptr("kata") },
	"spec.resourceClaims":   func(s *corev1.PodSpec) { s.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu"}} },
	"spec.resources":        func(s *corev1.PodSpec) { s.Resources = &corev1.ResourceRequirements{} },
	"spec.os.name":          func(s *corev1.PodSpec) { s.OS = &corev1.PodOS{Name: corev1.Windows} },
	"spec.volumes[1].hostPath": func(s *corev1.PodSpec) {
		secondVolume(s, corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}})
	},
	"spec.volumes[1]": func(s *corev1.PodSpec) { secondVolume(s, corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}}) },
	"spec.volumes[1].emptyDir.medium": func(s *corev1.PodSpec) {
		secondVolume(s, corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: "HugePages-2Mi"}})
	},
	"spec.volumes[1].projected.sources[1]": func(s *corev1.PodSpec) {
		secondVolume(s, corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ConfigMap: &corev1.ConfigMapProjection{}}, {ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{}}}}})
	},
	"spec.securityContext.seccompProfile": func(s *corev1.PodSpec) {
		podSecurityIn(s).SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost}
	},
	"spec.securityContext.appArmorProfile": func(s *corev1.PodSpec) {
		podSecurityIn(s).AppArmorProfile = &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost}
	},
	"spec.securityContext.supplementalGroupsPolicy": func(s *corev1.PodSpec) {
		podSecurityIn(s).SupplementalGroupsPolicy = ptr(corev1.SupplementalGroupsPolicyStrict)
	},
	"spec.securityContext.windowsOptions":  func(s *corev1.PodSpec) { podSecurityIn(s).WindowsOptions = &corev1.WindowsSecurityContextOptions{} },
	"spec.containers[0].restartPolicy":     func(s *corev1.PodSpec) { mainOf(s).RestartPolicy = ptr(corev1.ContainerRestartPolicyNever) },
	"spec.containers[0].ports[0].hostPort": func(s *corev1.PodSpec) { mainOf(s).Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 80}} },
	"spec.containers[0].env[0].valueFrom.fileKeyRef": func(s *corev1.PodSpec) {
		mainOf(s).Env = []corev1.EnvVar{{Name: "A", ValueFrom: &corev1.EnvVarSource{FileKeyRef: &corev1.FileKeySelector{}}}}
	},
	"spec.containers[0].volumeMounts[0].mountPropagation": func(s *corev1.PodSpec) {
		mainOf(s).VolumeMounts = []corev1.VolumeMount{{MountPropagation: ptr(corev1.MountPropagationBidirectional)}}
	},
	"spec.containers[0].volumeDevices":    func(s *corev1.PodSpec) { mainOf(s).VolumeDevices = []corev1.VolumeDevice{{}} },
	"spec.containers[0].resources.claims": func(s *corev1.PodSpec) { mainOf(s).Resources.Claims = []corev1.ResourceClaim{{}} },
	"spec.containers[0].resources.requests": func(s *corev1.PodSpec) {
		mainOf(s).Resources.Requests = corev1.ResourceList{"example.com/gpu": resource.MustParse("1")}
	},
	"spec.containers[0].restartPolicyRules":         func(s *corev1.PodSpec) { mainOf(s).RestartPolicyRules = []corev1.ContainerRestartRule{{}} },
	"spec.containers[0].securityContext.privileged": func(s *corev1.PodSpec) { securityIn(s).Privileged = ptr(true) },
	"spec.containers[0].securityContext.procMount":  func(s *corev1.PodSpec) { securityIn(s).ProcMount = ptr(corev1.UnmaskedProcMount) },
	"spec.containers[0].securityContext.windowsOptions": func(s *corev1.PodSpec) {
		securityIn(s).WindowsOptions = &corev1.WindowsSecurityContextOptions{}
	},
	"spec.containers[0].securityContext.appArmorProfile": func(s *corev1.PodSpec) {
		securityIn(s).AppArmorProfile = &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost}
	},
	"spec.containers[0].securityContext.seccompProfile": func(s *corev1.PodSpec) {
		securityIn(s).SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}
	},
	"spec.initContainers[0].securityContext.privileged": func(s *corev1.PodSpec) {
		s.InitContainers = []corev1.Container{{Name: "first", SecurityContext: &corev1.SecurityContext{Privileged: ptr(true)}}}
	},
}

// permitted are the fields that a permission lets pass, with its word.
var permitted = map[string]string{
	"spec.hostNetwork": "host-network", "spec.hostPID": "host-pid", "spec.hostIPC": "host-ipc", "spec.volumes[1].hostPath": "host-path",
	"spec.containers[0].securityContext.privileged": "privileged", "spec.initContainers[0].securityContext.privileged": "privileged",
	"spec.containers[0].securityContext.seccompProfile": "unconfined-seccomp",
}

// TestPermissionsLetPass: each lets pass its own field and no other, and the refusal says which it is.
func TestPermissionsLetPass(t *testing.T) {
	for field, word := range permitted {
		pod := shopPod(func(p *corev1.Pod) { refused[field](&p.Spec) })
		if got := refusals(pod, testFacts(), Permissions{}); len(got) != 1 || !strings.Contains(got[0].why, "--allow "+word) {
			t.Errorf("refusals without a permission = %v, want one that names --allow %s", got, word)
		}
		for _, one := range permissions {
			allow, err := ParsePermissions([]string{one.word})
			if err != nil {
				t.Fatal(err)
			}
			if got := refusals(pod, testFacts(), allow); len(got) == 0 != (one.word == word) {
				t.Errorf("refusals of %s with --allow %s = %v", field, one.word, got)
			}
		}
	}
	if _, err := ParsePermissions([]string{"host-network", "all"}); err == nil || !strings.Contains(err.Error(), "host-pid") {
		t.Errorf("ParsePermissions of an unknown word = %v", err)
	}
	all, err := ParsePermissions(strings.Split(PermissionWords(), ", "))
	if err != nil || all != (Permissions{true, true, true, true, true, true}) {
		t.Errorf("all permissions = %+v, %v", all, err)
	}
	pod := shopPod(func(p *corev1.Pod) { // as the API server completes it: host ports are the containers' ports
		p.Spec.HostNetwork = true
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 80}}
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}}
	})
	if got := refusals(pod, testFacts(), Permissions{HostNetwork: true, Privileged: true}); len(got) != 0 {
		t.Errorf("refusals = %v", got)
	}
}

func TestRefusalsNameTheField(t *testing.T) {
	for field, change := range refused {
		got := refusals(shopPod(func(p *corev1.Pod) { change(&p.Spec) }), testFacts(), Permissions{})
		if len(got) != 1 || got[0].field != field || len(strings.Fields(got[0].why)) < 3 {
			t.Errorf("refusals = %v, want one of %s with its reason", got, field)
		}
	}
}

func TestWhatIsNotRefused(t *testing.T) {
	if got := refusals(readPod(t, "testdata/pod.yaml"), testFacts(), Permissions{}); len(got) != 0 {
		t.Errorf("refusals of a rich pod = %v", got)
	}
	pod := shopPod(func(p *corev1.Pod) {
		p.Spec.HostUsers, p.Spec.OS = ptr(true), &corev1.PodOS{Name: corev1.Linux}
		p.Spec.SecurityContext = &corev1.PodSecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}, SupplementalGroupsPolicy: ptr(corev1.SupplementalGroupsPolicyMerge)}
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr(false), ProcMount: ptr(corev1.DefaultProcMount), AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}}
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"hugepages-2Mi": resource.MustParse("0"), corev1.ResourceEphemeralStorage: resource.MustParse("1Gi")}
	})
	if got := refusals(pod, testFacts(), Permissions{UnconfinedSeccomp: true}); len(got) != 0 {
		t.Errorf("refusals of what is allowed = %v", got)
	}
	if got := refusals(pod, testFacts(), Permissions{}); len(got) != 1 {
		t.Errorf("refusals without the permission = %v, want one", got)
	}
}

// TestEveryFaultIsNamed: who repairs a pod wants to do it once.
func TestEveryFaultIsNamed(t *testing.T) {
	got := refusals(shopPod(func(p *corev1.Pod) {
		p.Spec.HostNetwork, p.Spec.HostPID = true, true
		p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{}}}}
	}), testFacts(), Permissions{})
	if len(got) != 3 {
		t.Errorf("refusals = %v, want three", got)
	}
}
