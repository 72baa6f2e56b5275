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
	Limits cgroup.Limits // of all containers together: the kernel of the host sees only the guest
	// ShareProcesses gives all containers one process namespace.
	ShareProcesses bool
	// Renew gives the slot its network back: called before a guest is made, as an earlier one may have taken it.
	Renew func(context.Context) error
}

// Annotations that tell runsc which containers share a sandbox.
const (
	kindAnnotation  = "io.kubernetes.cri.container-type"
	guestAnnotation = "io.kubernetes.cri.sandbox-id"
)

// guestTries bounds how often a guest is made for one start: it may end between its making and its use.
const guestTries = 3

// startInGuest runs a container in the slot's guest. The guest is made when the keeper says that there is none.
func (o *oci) startInGuest(ctx context.Context, r *Run, q keeper.Start, namespaces map[string]string) (keeper.Container, error) {
	q.OCI.Guest = keeper.GuestID(r.Slot)
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
	spec.Annotations = map[string]string{kindAnnotation: "container", guestAnnotation: keeper.GuestID(r.Slot)}
	spec.Linux.CgroupsPath, spec.Linux.Resources = "", nil
	shareProcesses(r, spec)
}

// shareProcesses puts a specification into the guest's own process namespace. runsc takes the path for a name only.
func shareProcesses(r *Run, spec *specs.Spec) {
	for i, n := range spec.Linux.Namespaces {
		if n.Type == specs.PIDNamespace && r.Guest.ShareProcesses {
			spec.Linux.Namespaces[i].Path = "/" + keeper.GuestID(r.Slot)
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
	shareProcesses(r, spec)
	body, err := json.Marshal(spec)
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), body, 0o600)
}
