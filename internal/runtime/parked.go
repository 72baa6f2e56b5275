package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/sandbox"
	"spillway.dev/spillway/internal/seccomp"
)

// parked runs containers in sandboxes that wait for them: no process is started on the way, the waiting init becomes
// the container's program.
type parked struct {
	keeper  func() Keeper
	tree    *cgroup.Tree
	filters sync.Map // *specs.LinuxSeccomp → []byte
}

// NewParked makes the runtime of parked sandboxes. keeper gives the current connection.
func NewParked(keeper func() Keeper, tree *cgroup.Tree) Runtime {
	return &parked{keeper: keeper, tree: tree}
}

var _ Runtime = (*parked)(nil)

func (p *parked) Park(ctx context.Context, q SlotRequest) (Parked, error) {
	pid, err := p.keeper().Park(ctx, keeper.Park{Slot: q.ID, Cgroups: p.tree.Dirs(q.Cgroup), V2: p.tree.Mode() == cgroup.V2,
		Label: q.Label, Pause: q.ShareProcesses, HostNetwork: q.HostNetwork, HostIPC: q.HostIPC})
	if err != nil {
		return Parked{}, fmt.Errorf("park slot %s: %w", q.ID, err)
	}
	return Parked{NetNS: "/proc/" + strconv.Itoa(pid) + "/ns/net"}, nil
}

func (p *parked) filter(profile *specs.LinuxSeccomp) ([]byte, error) {
	if profile == nil {
		return nil, nil
	}
	if f, ok := p.filters.Load(profile); ok {
		return f.([]byte), nil
	}
	f, err := seccomp.Compile(profile)
	if err == nil && profile == DefaultProfile() {
		p.filters.Store(profile, f)
	}
	return f, err
}

// DefaultProfile is the platform's seccomp profile; always the same pointer, so that its filter is compiled once.
var DefaultProfile = sync.OnceValue(seccomp.Default)

func (p *parked) Start(ctx context.Context, r *Run) (keeper.Container, error) {
	filter, err := p.filter(r.Seccomp)
	if err != nil {
		return keeper.Container{}, fmt.Errorf("seccomp profile: %w", err)
	}
	if err := p.tree.Limit(r.Cgroup, r.Limits); err != nil {
		return keeper.Container{}, err
	}
	q := startRequest(r, p.tree)
	process := r.Process
	process.Seccomp = filter
	q.Spec = &sandbox.Spec{ID: r.ID, Lower: r.Layers, Upper: r.Dir, ReadOnlyRoot: r.ReadOnlyRoot, Mounts: r.Mounts,
		ShmBytes: r.ShmBytes, Hostname: r.Hostname, Sysctls: r.Sysctls, Process: process, Privileged: r.Privileged, HostIPC: r.HostIPC}
	return p.keeper().Start(ctx, q)
}

func (p *parked) Exec(ctx context.Context, id string, process sandbox.Process, s host.Streams) (int, error) {
	profile := DefaultProfile()
	if process.Privileged {
		profile = nil
	}
	filter, err := p.filter(profile)
	if err != nil {
		return 0, err
	}
	process.Seccomp = filter
	return p.keeper().Exec(ctx, keeper.ExecRequest{ID: id, Process: process}, s)
}

func (p *parked) Clean(ctx context.Context, id, dir string) error {
	// The root was mounted in the container's own mount namespace and went with it.
	return errors.Join(p.keeper().Forget(ctx, id), os.RemoveAll(dir))
}
