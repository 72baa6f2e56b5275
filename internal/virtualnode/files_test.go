package virtualnode

import (
	"encoding/base64"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// contents is a volume's files as text.
func contents(t *testing.T, v volume) map[string]string {
	t.Helper()
	files := fileBodies{}
	switch {
	case v.Secret != nil:
		files = *v.Secret
	case v.Config != nil:
		files = v.Config.Binary
	}
	out := map[string]string{}
	for path, body := range files {
		text, err := base64.StdEncoding.DecodeString(body)
		if err != nil {
			t.Fatal(err)
		}
		out[path] = string(text)
	}
	return out
}

func volumeOf(pod *corev1.Pod, source corev1.VolumeSource) (volume, error) {
	cluster := testCluster()
	tr := translation{pod, cluster, cluster, testFacts()}
	return tr.volume(&corev1.Volume{Name: "v", VolumeSource: source})
}

// items are keys with their paths.
func items(pairs ...string) (out []corev1.KeyToPath) {
	for i := 0; i < len(pairs); i += 2 {
		out = append(out, corev1.KeyToPath{Key: pairs[i], Path: pairs[i+1]})
	}
	return out
}

func withMode(list []corev1.KeyToPath, mode int32) []corev1.KeyToPath {
	list[0].Mode = &mode
	return list
}

func config(name string, items []corev1.KeyToPath, mode *int32, optional *bool) corev1.VolumeSource {
	return corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: named(name), Items: items, DefaultMode: mode, Optional: optional}}
}

func secret(name string, items []corev1.KeyToPath, optional *bool) corev1.VolumeSource {
	return corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: name, Items: items, Optional: optional}}
}

var yes = ptr(true)

var fileVolumes = []struct {
	name   string
	source corev1.VolumeSource
	want   map[string]string
	mode   int32
	modes  map[string]int32
	secret bool
	err    string
}{
	{name: "all keys, binary ones too", source: config("settings", nil, nil, nil), want: map[string]string{"color": "blue", "size": "XL", "app.ini": "[app]\n", "logo": "\x00\x01\xff"}, mode: 0o644},
	{name: "chosen keys", source: config("settings", withMode(items("color", "deep/down/c", "size", "s"), 0o400), ptr(int32(0o600)), nil), want: map[string]string{"deep/down/c": "blue", "s": "XL"},
		mode: 0o600, modes: map[string]int32{"deep/down/c": 0o400}},
	{name: "an optional key", source: config("settings", items("color", "c", "none", "n"), nil, yes), want: map[string]string{"c": "blue"}, mode: 0o644},
	{name: "a key that is not there", source: config("settings", items("none", "n"), nil, nil), err: `references non-existent config key: none of "settings"`},
	{name: "an optional object", source: config("none", items("a", "a"), nil, yes), want: map[string]string{}, mode: 0o644},
	{name: "a missing object", source: config("none", nil, nil, ptr(false)), err: `configmap "none" not found`},
	{name: "secret", source: secret("login", items("user", "u"), nil), want: map[string]string{"u": "anna"}, mode: 0o644, secret: true},
	{name: "an optional secret is one, too", source: secret("none", nil, yes), want: map[string]string{}, mode: 0o644, secret: true},
	{name: "a missing secret", source: secret("none", nil, nil), err: `secret "none" not found`},
	{name: "a secret's key that is not there", source: secret("login", items("none", "n"), nil), err: `references non-existent secret key: none of "login"`},
	{name: "downward", source: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{DefaultMode: ptr(int32(0o444)), Items: []corev1.DownwardAPIVolumeFile{
		{Path: "who/name", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}, Mode: ptr(int32(0o400))},
		{Path: "cores", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "main", Resource: "limits.cpu"}}}}},
		want: map[string]string{"who/name": "front", "cores": "100"}, mode: 0o444, modes: map[string]int32{"who/name": 0o400}},
	{name: "a field that there is not", source: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{Items: []corev1.DownwardAPIVolumeFile{{Path: "x", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.phase"}}}}},
		err: "unsupported fieldPath: status.phase"},
	{name: "projected: later sources win, and one secret makes all secret", source: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{DefaultMode: ptr(int32(0o640)), Sources: []corev1.VolumeProjection{
		{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: named("settings"), Items: items("color", "same")}},
		{Secret: &corev1.SecretProjection{LocalObjectReference: named("login"), Items: items("user", "same")}},
		{Secret: &corev1.SecretProjection{LocalObjectReference: named("none"), Optional: yes}}}}},
		want: map[string]string{"same": "anna"}, mode: 0o640, secret: true},
	{name: "projected: a missing source", source: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
		{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: named("none")}}, {ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: named("settings")}}}}},
		err: `configmap "none" not found`},
}

func TestFileVolumes(t *testing.T) {
	for _, c := range fileVolumes {
		t.Run(c.name, func(t *testing.T) {
			got, err := volumeOf(shopPod(nil), c.source)
			if c.err != "" {
				if _, ok := errors.AsType[*configError](err); !ok || err.Error() != c.err {
					t.Fatalf("error = %v, want *configError %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, contents(t, got)); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
			if (got.Secret != nil) != c.secret || (got.Config != nil) == c.secret {
				t.Errorf("secret = %v, want %v", got.Secret != nil, c.secret)
			}
			if got.Mode == nil || *got.Mode != c.mode || len(got.Modes) != len(c.modes) {
				t.Errorf("mode = %v, modes = %v, want %o, %v", got.Mode, got.Modes, c.mode, c.modes)
			}
			for path, mode := range c.modes {
				if got.Modes[path] != mode {
					t.Errorf("mode of %s = %o, want %o", path, got.Modes[path], mode)
				}
			}
		})
	}
}

// TestTokensAreForTheirUserOnly is what a kubelet does: a token that one user alone needs is that user's; one that is
// shared by a group is closed to the world.
func TestTokensAreForTheirUserOnly(t *testing.T) {
	source := corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "vault"}}}}}
	as := func(user int64) *corev1.SecurityContext { return &corev1.SecurityContext{RunAsUser: &user} }
	for _, c := range []struct {
		name   string
		change func(*corev1.PodSpec)
		owners map[string]int64
		modes  map[string]int32
	}{
		{"nobody in particular", func(*corev1.PodSpec) {}, nil, nil},
		{"the pod's user", func(s *corev1.PodSpec) { s.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr(int64(7))} }, map[string]int64{"token": 7}, map[string]int32{"token": 0o600}},
		{"the container's user", func(s *corev1.PodSpec) { s.Containers[0].SecurityContext = as(7) }, map[string]int64{"token": 7}, map[string]int32{"token": 0o600}},
		{"two users", func(s *corev1.PodSpec) {
			s.Containers[0].SecurityContext = as(7)
			s.InitContainers = []corev1.Container{{Name: "first", SecurityContext: as(8)}}
		}, nil, nil},
		{"one says none", func(s *corev1.PodSpec) {
			s.Containers[0].SecurityContext = as(7)
			s.Containers = append(s.Containers, corev1.Container{Name: "side"})
		}, nil, nil},
		{"a group", func(s *corev1.PodSpec) { s.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr(int64(9))} }, nil, map[string]int32{"token": 0o600}},
	} {
		got, err := volumeOf(shopPod(func(p *corev1.Pod) { c.change(&p.Spec) }), source)
		if err != nil {
			t.Fatal(err)
		}
		if got.Secret == nil || contents(t, got)["token"] != "token of clerk for vault" {
			t.Errorf("%s: files = %v, want a secret token", c.name, contents(t, got))
		}
		if len(got.Owners) != len(c.owners) || got.Owners["token"] != c.owners["token"] {
			t.Errorf("%s: owners = %v, want %v", c.name, got.Owners, c.owners)
		}
		if len(got.Modes) != len(c.modes) || got.Modes["token"] != c.modes["token"] {
			t.Errorf("%s: modes = %v, want %v", c.name, got.Modes, c.modes)
		}
	}
	cluster := testCluster()
	cluster.away = errAway
	tr := translation{shopPod(nil), cluster, cluster, testFacts()}
	if _, err := tr.volume(&corev1.Volume{VolumeSource: source}); err == nil || err.Error() != "failed to fetch token: "+errAway.Error() {
		t.Errorf("without the API: %v", err)
	}
}

func TestEmptyDirs(t *testing.T) {
	for _, c := range []struct {
		in   corev1.EmptyDirVolumeSource
		want emptyDir
	}{
		{corev1.EmptyDirVolumeSource{}, emptyDir{}},
		{corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: ptr(resource.MustParse("512Mi"))}, emptyDir{"Memory", 0.5}},
		{corev1.EmptyDirVolumeSource{SizeLimit: ptr(resource.MustParse("0"))}, emptyDir{}},
	} {
		got, err := volumeOf(shopPod(nil), corev1.VolumeSource{EmptyDir: &c.in})
		if err != nil || got.EmptyDir == nil || *got.EmptyDir != c.want || got.Secret != nil || got.Config != nil {
			t.Errorf("volume(%+v) = %+v, %v, want %+v", c.in, got, err, c.want)
		}
	}
}
