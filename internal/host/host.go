// Package host is the vocabulary of the machines that run groups, and of what the control plane asks of them.
//
// It imports only the standard library, group and service. Start reading at Link: everything that a server can ask of a host.
package host

import (
	"context"
	"io"
	"net/netip"
	"time"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/service"
)

// Host is a machine that runs an agent.
type Host struct {
	Name        string            `json:"name"`
	Pool        string            `json:"pool"`
	Zone        string            `json:"zone,omitempty"`
	FaultDomain string            `json:"faultDomain,omitempty"` // of its zone: what fails together
	Labels      map[string]string `json:"labels,omitempty"`
	Capacity    group.Resources   `json:"capacity"`         // measured, less the reserve; no storage: not measured, and not counted
	GPUSKU      string            `json:"gpuSKU,omitempty"` // of Capacity.GPUs
	Isolation   []group.Isolation `json:"isolation"`
	Spaces      bool              `json:"spaces,omitempty"` // carries virtual networks with address spaces of their own; earlier releases do not
	State       State             `json:"state,omitempty"`
	Reason      string            `json:"reason,omitempty"` // why it is not ready, for people
	Cordoned    bool              `json:"cordoned"`         // takes no new groups
	Version     string            `json:"version"`
	Kernel      string            `json:"kernel"`
	CgroupMode  string            `json:"cgroupMode"`          // v1 or v2
	Runtime     string            `json:"runtime"`             // of shared isolation
	DiskFull    bool              `json:"diskFull"`            // refuses new groups
	Images      []string          `json:"images,omitempty"`    // references that are there, when the host tells
	Underlay    netip.Addr        `json:"underlay,omitzero"`   // where other hosts reach it; the servers find it out
	Addresses   []netip.Prefix    `json:"addresses,omitempty"` // of the machine itself: each with its network, or a range that is all its own
	Overlay     int64             `json:"overlay,omitempty"`   // version of the newest Overlay that it has carried out
}

// State says whether a host takes part.
type State string

// States of a host. Only a ready one takes new groups.
const (
	Ready    State = ""
	NotReady State = "NotReady" // is connected, and cannot work now
	Lost     State = "Lost"     // has not been heard of for too long
)

// Link is how the control plane reaches one host. All methods are safe for concurrent use.
type Link interface {
	// Assign tells the host what it should run. It only records the wish and wakes the host's loop; an older
	// generation than the one known is ignored.
	Assign(g *group.Group)
	// Retain tells the host that these are all its groups: it forgets and cleans up any other. All of them have been
	// assigned before.
	Retain(uids map[string]bool)
	// Serve tells the host of service addresses. It only records the wish and wakes the host's loop. The first call of
	// a connection is full, and comes after all groups have been assigned.
	Serve(u service.Update)
	// Span tells the host of the network over all hosts. It only records the wish and wakes the host's loop. The first
	// call of a connection is full, and comes after all groups have been assigned.
	Span(o Overlay)
	// Name tells the host what groups of other hosts are called. The first call of a connection is full.
	Name(u Names)
	// Status is the newest status of a group, false when the host does not know it.
	Status(uid string) (group.Status, bool)
	// Describe is what the host says of itself.
	Describe() Host

	// Logs writes a container's log. It blocks until all is written or, with Follow, until ctx ends or the
	// container does. Errors: not-found for an unknown container or one that never started.
	Logs(ctx context.Context, uid, container string, opt LogOptions, w io.Writer) error
	// Exec runs a command in a running container and gives its exit code.
	Exec(ctx context.Context, uid, container string, req ExecRequest, s Streams) (int, error)
	// Attach connects to the standard streams of a running container until it or ctx ends.
	Attach(ctx context.Context, uid, container string, s Streams) error
	// Forward connects to a port of a group, as its own programs see it, until one side has closed or ctx ends.
	Forward(ctx context.Context, uid string, port int, s Streams) error
	// Stats measures a group now.
	Stats(ctx context.Context, uid string) (Stats, error)

	Images
}

// Images is the image store of a host.
type Images interface {
	// Images lists what is on the host.
	Images(ctx context.Context) ([]Image, error)
	// PullImage fetches an image, also when some version of it is there.
	PullImage(ctx context.Context, ref string, creds []group.RegistryCredential, progress func(Progress)) (Image, error)
	// ImportImage reads a docker archive or an OCI archive.
	ImportImage(ctx context.Context, r io.Reader) ([]Image, error)
	// RemoveImage forgets a reference. Errors: not-found; conflict while a group uses it.
	RemoveImage(ctx context.Context, ref string) error
}

// Image is an image on a host.
type Image struct {
	Ref     string    `json:"ref"`
	Digest  string    `json:"digest"`
	Size    int64     `json:"size"` // bytes, compressed
	Created time.Time `json:"created,omitzero"`
	InUse   int       `json:"inUse"` // groups
}

// Progress is the state of one layer of a pull.
type Progress struct {
	Ref    string `json:"ref"`
	Layer  string `json:"layer"` // digest
	Phase  string `json:"phase"` // resolving, downloading, unpacking, done, exists
	Done   int64  `json:"done"`  // bytes
	Total  int64  `json:"total"` // bytes, 0 when unknown
	Detail string `json:"detail,omitempty"`
}

// LogOptions choose what of a log is written.
type LogOptions struct {
	Tail       int       `json:"tail,omitempty"` // lines from the end; 0 = all, -1 = none
	Since      time.Time `json:"since,omitzero"`
	Timestamps bool      `json:"timestamps,omitempty"`
	Follow     bool      `json:"follow,omitempty"`
	Previous   bool      `json:"previous,omitempty"`
	LimitBytes int64     `json:"limitBytes,omitempty"` // the last so many bytes; 0 = no limit
}

// ExecRequest is a command to run in a container.
type ExecRequest struct {
	Command []string `json:"command"`
	TTY     bool     `json:"tty,omitempty"`
	Stdin   bool     `json:"stdin,omitempty"`
	Size    Size     `json:"size,omitzero"`
}

// Size of a terminal, in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Streams are the caller's ends of a process's standard streams. Stdin may be nil; Stderr is unused with a terminal.
type Streams struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Resize <-chan Size
}

// Stats is what a group uses.
type Stats struct {
	Time       time.Time        `json:"time"`
	Containers []ContainerStats `json:"containers"`
	NetworkRx  int64            `json:"networkRx"` // bytes since the start
	NetworkTx  int64            `json:"networkTx"`
}

// AllContainers is the name in ContainerStats of all containers of a group together, where they cannot be told apart:
// those that share a guest kernel.
const AllContainers = "*"

// ContainerStats is what a container uses.
type ContainerStats struct {
	Name     string `json:"name"`
	CPUNanos int64  `json:"cpuNanos"` // processor time since the start
	Memory   int64  `json:"memory"`   // bytes, without inactive file cache
	Pids     int64  `json:"pids"`
}
