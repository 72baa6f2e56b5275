package virtualnode

import (
	"encoding/base64"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// fileSet is the files of one volume, in the making.
type fileSet struct {
	data   map[string][]byte // by path
	modes  map[string]int32
	owners map[string]int64
	secret bool
}

func newFileSet() *fileSet {
	return &fileSet{data: map[string][]byte{}, modes: map[string]int32{}, owners: map[string]int64{}}
}

// tokens gives the service account tokens of a pod, by audience and lifetime.
type tokens interface {
	token(pod *corev1.Pod, p *corev1.ServiceAccountTokenProjection) (string, error)
}

// volume translates one of the pod's volumes.
func (t *translation) volume(v *corev1.Volume) (volume, error) {
	pod, o, f := t.pod, t.objects, t.facts
	out := volume{Name: v.Name}
	set := newFileSet()
	var err error
	mode := int32(corev1.SecretVolumeSourceDefaultMode)
	given := func(m *int32) {
		if m != nil {
			mode = *m
		}
	}
	switch {
	case v.EmptyDir != nil:
		out.EmptyDir = &emptyDir{}
		if v.EmptyDir.Medium == corev1.StorageMediumMemory {
			out.EmptyDir.Medium = "Memory"
		}
		if l := v.EmptyDir.SizeLimit; l != nil && l.Value() > 0 {
			out.EmptyDir.Limit = gigabytes(l.Value())
		}
		return out, nil
	case v.HostPath != nil:
		out.HostPath = &hostPath{Path: v.HostPath.Path}
		if v.HostPath.Type != nil {
			out.HostPath.Type = string(*v.HostPath.Type)
		}
		return out, nil
	case v.ConfigMap != nil:
		given(v.ConfigMap.DefaultMode)
		err = set.configMap(pod.Namespace, &corev1.ConfigMapProjection{LocalObjectReference: v.ConfigMap.LocalObjectReference, Items: v.ConfigMap.Items, Optional: v.ConfigMap.Optional}, o)
	case v.Secret != nil:
		given(v.Secret.DefaultMode)
		err = set.fromSecret(pod.Namespace, &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: v.Secret.SecretName}, Items: v.Secret.Items, Optional: v.Secret.Optional}, o)
		set.secret = true
	case v.DownwardAPI != nil:
		given(v.DownwardAPI.DefaultMode)
		err = set.downward(pod, v.DownwardAPI.Items, f)
	case v.Projected != nil:
		given(v.Projected.DefaultMode)
		for i := range v.Projected.Sources {
			if err = set.project(t, &v.Projected.Sources[i]); err != nil {
				break
			}
		}
	}
	if err != nil {
		return volume{}, err
	}
	set.write(&out, mode)
	return out, nil
}

func (s *fileSet) write(out *volume, mode int32) {
	files := fileBodies{}
	for path, body := range s.data {
		files[path] = base64.StdEncoding.EncodeToString(body)
	}
	out.Mode, out.Modes, out.Owners = &mode, s.modes, s.owners
	if s.secret {
		out.Secret = &files
	} else {
		out.Config = &configFiles{Binary: files}
	}
}

// choice is which keys of an object become files.
type choice struct {
	kind, name string // of the object
	items      []corev1.KeyToPath
	optional   *bool
}

// add puts the keys of an object into the set: all under their own names, or the chosen items under theirs.
func (s *fileSet) add(data map[string][]byte, c choice) error {
	if len(c.items) == 0 {
		maps.Copy(s.data, data)
		return nil
	}
	for _, i := range c.items {
		body, ok := data[i.Key]
		if !ok {
			if c.optional != nil && *c.optional {
				continue
			}
			return configErrorf("references non-existent %s key: %s of %q", c.kind, i.Key, c.name)
		}
		s.data[i.Path] = body
		if i.Mode != nil {
			s.modes[i.Path] = *i.Mode
		}
	}
	return nil
}

func (s *fileSet) configMap(namespace string, p *corev1.ConfigMapProjection, o objects) error {
	m, err := o.configMap(namespace, p.Name)
	if err != nil {
		return optional(err, p.Optional, "configmap", p.Name)
	}
	data := map[string][]byte{}
	for k, v := range m.Data {
		data[k] = []byte(v)
	}
	maps.Copy(data, m.BinaryData)
	return s.add(data, choice{"config", p.Name, p.Items, p.Optional})
}

func (s *fileSet) fromSecret(namespace string, p *corev1.SecretProjection, o objects) error {
	secret, err := o.secret(namespace, p.Name)
	if err != nil {
		return optional(err, p.Optional, "secret", p.Name)
	}
	s.secret = true
	return s.add(secret.Data, choice{"secret", p.Name, p.Items, p.Optional})
}

func (s *fileSet) downward(pod *corev1.Pod, items []corev1.DownwardAPIVolumeFile, f *facts) error {
	for _, i := range items {
		var value string
		var err error
		if i.FieldRef != nil {
			value, err = fieldValue(pod, i.FieldRef.FieldPath, f)
		} else {
			value, err = resourceValue(pod, i.ResourceFieldRef.ContainerName, i.ResourceFieldRef, f)
		}
		if err != nil {
			return err
		}
		s.data[i.Path] = []byte(value)
		if i.Mode != nil {
			s.modes[i.Path] = *i.Mode
		}
	}
	return nil
}

func (s *fileSet) project(t *translation, p *corev1.VolumeProjection) error {
	pod, o, f := t.pod, t.objects, t.facts
	switch {
	case p.ConfigMap != nil:
		return s.configMap(pod.Namespace, p.ConfigMap, o)
	case p.Secret != nil:
		return s.fromSecret(pod.Namespace, p.Secret, o)
	case p.DownwardAPI != nil:
		return s.downward(pod, p.DownwardAPI.Items, f)
	case p.ServiceAccountToken != nil:
		token, err := t.tokens.token(pod, p.ServiceAccountToken)
		if err != nil {
			return configErrorf("failed to fetch token: %v", err)
		}
		path := p.ServiceAccountToken.Path
		s.data[path], s.secret = []byte(token), true
		// Who runs as one user, or shares files by a group, gets a token that no other user can read.
		user := soleUser(pod)
		if user != nil {
			s.owners[path] = *user
		}
		if user != nil || pod.Spec.SecurityContext != nil && pod.Spec.SecurityContext.FSGroup != nil {
			s.modes[path] = 0o600
		}
	}
	return nil
}

// soleUser is the user that all containers of a pod run as, nil when there is none.
func soleUser(pod *corev1.Pod) *int64 {
	var users []int64
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			u := securityOf(pod, &list[i]).User
			if u == nil {
				return nil
			}
			users = append(users, *u)
		}
	}
	slices.Sort(users)
	if users = slices.Compact(users); len(users) != 1 {
		return nil
	}
	return &users[0]
}

// gigabytes is bytes as the platform's API wants them.
func gigabytes(bytes int64) float64 { return float64(bytes) / (1 << 30) }
