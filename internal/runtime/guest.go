package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/keeper"
)

// Guest is what the containers of a slot have in common when they run at the same time in one guest kernel. Runtimes
// without such a kernel pay no heed to it.
type Guest struct {
	// Of is a run with a guest of its own, whose guest this is: it ends with that. The other fields are not used then.
	Of     string
	Limits cgroup.Limits // of all containers together: the host's kernel sees only the guest
	// ShareProcesses gives all containers one process namespace.
	ShareProcesses bool
	// Renew gives the slot its network back: called before a guest is made, as an earlier one may have taken it.
	Renew func(context.Context) error
}

// What a guest kernel needs for itself, beyond what its containers are given: measured at 15 MB for a kernel with one
// container, and 5 MB for the file server of each.
const (
	guestMemory  = 32 << 20
	serverMemory = 16 << 20
)

// WithGuest is what a number of containers and their guest kernel may use together.
func WithGuest(l cgroup.Limits, containers int) cgroup.Limits {
	if l.Memory > 0 {
		l.Memory += guestMemory + int64(containers)*serverMemory
	}
	return l
}

// startMilliCPU is what a guest kernel may use at least while it starts: a tenth of a second of a processor, which a
// small group would wait for a second and more.
const startMilliCPU = 1000

// limitGuest limits a cgroup in which a guest is about to start; runsc leaves cgroups that exist as they are. settle
// takes back, when it has started, what it was given for that.
func (o *oci) limitGuest(r *Run) (settle func() error, err error) {
	limits := r.Limits
	if r.Guest != nil {
		limits = r.Guest.Limits // none when it is another run's: that has set its own
	}
	quota := cgroup.Limits{MilliCPU: limits.MilliCPU}
	if limits.MilliCPU > 0 {
		limits.MilliCPU = max(limits.MilliCPU, startMilliCPU)
	}
	return func() error { return o.tree.Limit(r.Cgroup, quota) }, o.tree.Limit(r.Cgroup, limits)
}

// Annotations that tell runsc which containers share a sandbox.
const (
	kindAnnotation  = "io.kubernetes.cri.container-type"
	guestAnnotation = "io.kubernetes.cri.sandbox-id"
)

// guestTries bounds how often a guest is made for one start: it may end between its making and its use.
const guestTries = 3

// guest is the id of the guest that a run shares.
func (r *Run) guest() string {
	if r.Guest.Of != "" {
		return r.Guest.Of
	}
	return keeper.GuestID(r.Slot)
}

// startInGuest runs a container in the slot's guest. The guest is made when the keeper says that there is none.
func (o *oci) startInGuest(ctx context.Context, r *Run, q keeper.Start, namespaces map[string]string) (keeper.Container, error) {
	q.OCI.Guest = r.guest()
	for try := 0; ; try++ {
		c, err := o.keeper().Start(ctx, q)
		if e, ok := errors.AsType[*keeper.Error](err); !ok || !e.NoGuest || try == guestTries {
			return c, err
		}
		if err := r.Guest.Renew(ctx); err != nil {
			return c, err
		}
		if q.GuestBundle, err = o.guestBundle(r, namespaces); err != nil {
			return c, err
		}
	}
}

// joinGuest makes a specification that of a container in the slot's guest. The guest has the cgroup.
func joinGuest(r *Run, spec *specs.Spec) {
	spec.Annotations = map[string]string{kindAnnotation: "container", guestAnnotation: r.guest()}
	spec.Linux.CgroupsPath, spec.Linux.Resources = "", nil
}

// nameProcesses names the process namespace of a specification: who gives the same name shares it. It is the guest's
// own, another run's, or the run's. runsc takes the path of a namespace for a name.
func nameProcesses(r *Run, spec *specs.Spec) {
	name := r.ID
	switch {
	case r.Guest != nil && r.Guest.ShareProcesses:
		name = keeper.GuestID(r.Slot)
	case r.ProcessesOf != "":
		name = r.ProcessesOf
	}
	for i, n := range spec.Linux.Namespaces {
		if n.Type == specs.PIDNamespace {
			spec.Linux.Namespaces[i].Path = "/" + name
		}
	}
}

// guestBundle writes what a guest is made from: a root with nothing but a program that waits. It is needed only while
// the guest is being made.
func (o *oci) guestBundle(r *Run, namespaces map[string]string) (string, error) {
	dir := filepath.Join(r.Dir, "guest")
	rootfs := o.rootfs(dir)
	if err := os.MkdirAll(rootfs, 0o700); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(rootfs, "pause"), pauseProgram(), 0o500); err != nil {
		return "", fmt.Errorf("write guest's program: %w", err)
	}
	spec := &specs.Spec{
		Version:     "1.0.2",
		Annotations: map[string]string{kindAnnotation: "sandbox"},
		Process:     &specs.Process{Args: []string{"/pause"}, Cwd: "/", NoNewPrivileges: true},
		Root:        &specs.Root{Path: rootfs},
		Hostname:    r.Hostname,
		Mounts:      []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux: &specs.Linux{Resources: resources(r.Guest.Limits), Sysctl: r.Sysctls, CgroupsPath: o.tree.RuntimePath(r.Cgroup),
			Namespaces: joined(namespaces)},
	}
	if r.Guest.ShareProcesses {
		nameProcesses(r, spec)
	}
	body, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), body, 0o600)
}
