package arm

import (
	"slices"
	"strings"

	"spillway.dev/spillway/internal/group"
)

// Patch is what a PATCH of a container group changes. Everything it does not name stays, and nothing of it restarts
// the group.
type Patch struct {
	Tags    map[string]string
	HasTags bool
	// Guard looks at the whole spec with the changes, and may refuse it; nil: nobody does.
	Guard   func(*group.Spec) error
	changes []func(*group.Spec) // of Spillway's api-version
	decoder *decoder
}

// Live says whether more than tags is to change.
func (p *Patch) Live() bool { return len(p.changes) > 0 }

// DecodePatch reads the body of a PATCH of the group with the given name. Azure's versions change tags only.
func DecodePatch(body []byte, v Version, name string) (*Patch, error) {
	d := &decoder{version: v, group: name}
	o := d.parse(body)
	if o == nil {
		return nil, d.err()
	}
	p := &Patch{decoder: d, HasTags: o.m["tags"] != nil}
	o.ignore("id", "name", "type", "location", "zones")
	p.Tags = o.tags()
	if props := o.child(o.since(vOwn, "properties")); props != nil {
		d.patch(props, p)
	}
	o.done()
	return p, d.err()
}

// Apply gives the spec with the changes, checked as a whole.
func (p *Patch) Apply(old *group.Spec) (group.Spec, error) {
	s := *old
	s.Containers, s.InitContainers, s.Volumes = slices.Clone(s.Containers), slices.Clone(s.InitContainers), slices.Clone(s.Volumes)
	for _, change := range p.changes {
		change(&s)
	}
	if err := p.decoder.err(); err != nil {
		return s, err
	}
	p.decoder.validate(&Request{Location: "kept", Spec: s})
	if err := p.decoder.err(); err != nil || p.Guard == nil {
		return s, err
	}
	return s, p.Guard(&s)
}

// patch reads what of a running group can change.
func (d *decoder) patch(o *object, p *Patch) {
	if o.m["labels"] != nil {
		labels := o.stringMap("labels")
		p.changes = append(p.changes, func(s *group.Spec) { s.Labels = labels })
	}
	for _, v := range o.list("volumes") {
		vol, path := d.volume(v), v.path
		p.changes = append(p.changes, func(s *group.Spec) { d.patchVolume(s, vol, path) })
	}
	if o.m["ephemeralContainers"] != nil {
		list := d.ephemeral(o)
		p.changes = append(p.changes, func(s *group.Spec) { d.patchEphemeral(s, list) })
	}
	d.patchContainers(o, "containers", p, func(s *group.Spec) []group.Container { return s.Containers })
	d.patchContainers(o, "initContainers", p, func(s *group.Spec) []group.Container { return s.InitContainers })
	o.done()
}

func (d *decoder) patchVolume(s *group.Spec, v group.Volume, path string) {
	for i := range s.Volumes {
		old := &s.Volumes[i]
		if old.Name != v.Name {
			continue
		}
		if (old.Secret == nil && old.ConfigMap == nil) || (v.Secret == nil && v.ConfigMap == nil) {
			d.fault("", path, "The volume '%s' cannot change while the group runs: only the files of secret and configMap volumes can.", clip(v.Name))
			return
		}
		*old = v
		return
	}
	d.fault("", path, "The container group '%s' has no volume '%s'. Volumes cannot be added to a running group.", d.group, clip(v.Name))
}

// patchEphemeral takes the whole list; those that are there stay as they are.
func (d *decoder) patchEphemeral(s *group.Spec, list []group.Container) {
	for _, old := range s.Ephemeral {
		if !slices.ContainsFunc(list, func(c group.Container) bool { return c.Name == old.Name }) {
			d.fault("", "properties.ephemeralContainers", "The ephemeral container '%s' cannot be removed from the container group '%s'.", clip(old.Name), d.group)
		}
	}
	kept := slices.Clone(s.Ephemeral)
	for _, c := range list {
		if !slices.ContainsFunc(kept, func(k group.Container) bool { return k.Name == c.Name }) {
			kept = append(kept, c)
		}
	}
	s.Ephemeral = kept
}

// patchContainers reads other images and resources of containers that are there.
func (d *decoder) patchContainers(o *object, field string, p *Patch, of func(*group.Spec) []group.Container) {
	for _, c := range o.list(field) {
		name, path := c.required("name"), c.path
		props := c.child("properties")
		var edits []func(*group.Container)
		if props != nil {
			if image := props.str("image"); image != "" {
				if _, err := ParseImageRef(image); err != nil {
					d.fault("InvalidImageReference", props.at("image"), "The image '%s' of container '%s' is malformed: %s. Write it as [registry/]repository[:tag][@digest].", clip(image), clip(name), err)
				}
				edits = append(edits, func(c *group.Container) { c.Image = image })
			}
			if props.m["resources"] != nil {
				r := d.resources(props, false)
				if r.requests.GPUs > 0 {
					d.fault("", props.at("resources.requests.gpu"), "The field '%s' cannot change while the group runs.", props.at("resources.requests.gpu"))
				}
				edits = append(edits, func(c *group.Container) {
					r.requests.GPUs = c.Requests.GPUs
					c.Requests, c.Limits = r.requests, r.limits
				})
			}
			props.done()
		}
		c.done()
		p.changes = append(p.changes, func(s *group.Spec) {
			list := of(s)
			i := slices.IndexFunc(list, func(c group.Container) bool { return strings.EqualFold(c.Name, name) })
			if i < 0 {
				d.fault("", path, "The container group '%s' has no container '%s'. Containers cannot be added to a running group; ephemeral ones can.", d.group, clip(name))
				return
			}
			for _, edit := range edits {
				edit(&list[i])
			}
		})
	}
}

// Grace reads the query parameter that replaces the grace period of a deletion.
func Grace(text string) (seconds int, given bool) {
	if text == "" {
		return 0, false
	}
	n := 0
	for _, r := range text {
		if r < '0' || r > '9' || n > group.MaxGraceSeconds {
			return -1, true
		}
		n = n*10 + int(r-'0')
	}
	return n, true
}
