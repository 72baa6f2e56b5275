// Package runtime is one container's lifecycle on a host, whatever the technique: parked sandboxes of our own (the
// default), or an OCI runtime (crun, runc, runsc).
//
// All of them run under the keeper and share its streams, logs and exits; what differs is how a root file system and
// a process come to be. A runtime decides nothing about restarts. The conformance suite is runtimetest; every
// implementation passes it. Start at Runtime.
package runtime

import (
	"context"
	"encoding/json"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/sandbox"
)

// Run is one run of a container, with everything decided.
type Run struct {
	ID      string          // unique on the host, also over restarts
	Slot    string          // that it runs in
	Label   json.RawMessage // kept by the keeper with the run
	Relabel json.RawMessage // new label of the slot, when this run claims it

	Cgroup string // path below the platform's base; it exists
	Limits cgroup.Limits

	Layers       []string // of the image, topmost first
	Dir          string   // this run's own directory on the host; Clean removes it
	ReadOnlyRoot bool
	Mounts       []sandbox.Mount
	ShmBytes     int64
	Hostname     string
	Sysctls      map[string]string

	// Privileged, HostPID and HostIPC give it what is the host's; they need the parked runtime.
	Privileged bool
	HostPID    bool
	HostIPC    bool

	// ProcessesOf is the run whose process namespace this one joins; "": its own, or the slot's.
	ProcessesOf string

	Process sandbox.Process // without a filter
	Seccomp *specs.LinuxSeccomp
	Stdin   bool
	LogDir  string

	// Lease makes it a fenced run: it ends with the host's lease. It is the end, by keeper.Boottime, of the lease under
	// which the run was decided; 0: not fenced.
	Lease time.Duration

	Guest *Guest // of a group whose containers run at the same time in a guest kernel; nil: in none, or alone in its own
}

// SlotRequest asks for a slot.
type SlotRequest struct {
	ID     string
	Cgroup string // of the first container
	Label  json.RawMessage
	// ShareProcesses gives the containers of the slot one process namespace.
	ShareProcesses bool
	// HostNetwork and HostIPC leave them in the host's own namespaces.
	HostNetwork bool
	HostIPC     bool
}

// Runtime starts containers. All methods are safe for concurrent use.
type Runtime interface {
	// Park makes a slot in advance and gives the pid of a process in its namespaces' network (0: none any more).
	// The caller has made the cgroup.
	Park(ctx context.Context, q SlotRequest) (Parked, error)
	// Start runs a container and returns when its program has been executed. A *keeper.Error with an exit code is a
	// program that could not be; nothing of the run is left then but its directory.
	Start(ctx context.Context, r *Run) (keeper.Container, error)
	// Exec runs a command in a running container and gives its exit code. Its process needs no filter set.
	Exec(ctx context.Context, id string, p sandbox.Process, s host.Streams) (int, error)
	// Clean removes what an ended run left: records, mounts and its directory. It is idempotent.
	Clean(ctx context.Context, id, dir string) error
}

// Parked is a slot that has been made.
type Parked struct {
	NetNS string // path of its network namespace, valid as long as the slot is
}

// Keeper is what runtimes use of the keeper's client.
type Keeper interface {
	Park(ctx context.Context, p keeper.Park) (int, error)
	Start(ctx context.Context, s keeper.Start) (keeper.Container, error)
	Forget(ctx context.Context, id string) error
	Exec(ctx context.Context, q keeper.ExecRequest, s host.Streams) (int, error)
	List(ctx context.Context) ([]keeper.Slot, []keeper.Container, error)
}

// startRequest is what all runtimes ask of the keeper alike.
func startRequest(r *Run, tree *cgroup.Tree) keeper.Start {
	return keeper.Start{ID: r.ID, Slot: r.Slot, Label: r.Label, Relabel: r.Relabel, Cgroups: tree.Dirs(r.Cgroup),
		V2: tree.Mode() == cgroup.V2, ProcessesOf: r.ProcessesOf, HostPID: r.HostPID, LogDir: r.LogDir, LogFile: group.MaxLogFile, LogMax: group.MaxLogFiles, Stdin: r.Stdin, Lease: r.Lease}
}
