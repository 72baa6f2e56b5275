// Package keeper is the parent of every container: one small process per host that outlives agent and server.
//
// It parks sandboxes, starts containers in them, waits with pidfds, holds the containers' standard streams, writes
// their rotated logs and reports exits to whoever is connected. Runtimes with a kernel of their own get a guest per
// slot from it when several containers share one (guest.go). It decides nothing: what to run, when to stop and what
// to restart is the agent's business. Only what is fenced it ends by itself, with the host's lease (fence.go). It must stay small (no libraries but x/sys), because everything dies hard
// without it. Start at Serve for the process, at Client for its user.
package keeper

import (
	"encoding/json"
	"time"

	"spillway.dev/spillway/internal/sandbox"
)

// request is one call on the keeper's socket. Exactly one of the pointers is set.
type request struct {
	ID      uint64         `json:"id"`
	Hello   *struct{}      `json:"hello,omitempty"`
	Park    *Park          `json:"park,omitempty"`
	Label   *Label         `json:"label,omitempty"`
	Unpark  *string        `json:"unpark,omitempty"`  // slot
	Dismiss *string        `json:"dismiss,omitempty"` // slot whose waiting init is not wanted
	Start   *Start         `json:"start,omitempty"`
	Signal  *Signal        `json:"signal,omitempty"`
	Lease   *time.Duration `json:"lease,omitempty"`  // end of the host's lease, by Boottime
	Forget  *string        `json:"forget,omitempty"` // container
	List    *struct{}      `json:"list,omitempty"`
	Watch   *struct{}      `json:"watch,omitempty"`
	Exec    *ExecRequest   `json:"exec,omitempty"`   // turns the connection into a stream
	Attach  *AttachRequest `json:"attach,omitempty"` // turns the connection into a stream
	// Upgrade executes another keeper's program, a path, in this one's place.
	Upgrade *string   `json:"upgrade,omitempty"`
	Quit    *struct{} `json:"quit,omitempty"` // ends the keeper; refused while containers run
}

type response struct {
	ID         uint64      `json:"id"`
	Error      *Error      `json:"error,omitempty"`
	Pid        int         `json:"pid,omitempty"`
	Version    string      `json:"version,omitempty"` // of the keeper's program
	Counters   *Counters   `json:"counters,omitempty"`
	Slots      []Slot      `json:"slots,omitempty"`
	Containers []Container `json:"containers,omitempty"`
	Container  *Container  `json:"container,omitempty"`
	Event      *Container  `json:"event,omitempty"` // of a watch: a container that has exited
}

// Counters are what starts have cost since the keeper began, parking not included: all zero means that every start
// found a parked init. A start's own new init is not counted as a process: it becomes the container's program.
type Counters struct {
	Starts      int64 `json:"starts"`
	CgroupMoves int64 `json:"cgroupMoves"`
	Processes   int64 `json:"processes"`
}

// Error is a refusal of the keeper.
type Error struct {
	Message  string `json:"message"`
	ExitCode int    `json:"exitCode,omitempty"` // of a container that could not be executed
	NotFound bool   `json:"notFound,omitempty"`
	NoGuest  bool   `json:"noGuest,omitempty"` // the slot has no guest, and Start names no bundle to make one from

	LeaseLost bool `json:"leaseLost,omitempty"` // a fenced container is not started without a lease
}

func (e *Error) Error() string { return e.Message }

// Park asks for a slot: namespaces of its own and an init that waits in them. Parking an existing slot is refused.
type Park struct {
	Slot    string   `json:"slot"`
	Cgroups []string `json:"cgroups"` // directories that the init is put into, one per hierarchy; on v2 exactly one
	V2      bool     `json:"v2,omitempty"`
	// Label is the agent's own note, kept with the slot and given back by List.
	Label json.RawMessage `json:"label,omitempty"`
	// Bare slots have namespaces but no waiting init: for runtimes that bring their own.
	Bare bool `json:"bare,omitempty"`
	// Pause makes the init the first process of a process namespace that the containers of the slot share.
	Pause bool `json:"pause,omitempty"`
	// HostNetwork and HostIPC leave the slot in the host's own namespaces: of network and host name, of IPC.
	HostNetwork bool `json:"hostNetwork,omitempty"`
	HostIPC     bool `json:"hostIPC,omitempty"`
}

// Label replaces the note of a slot.
type Label struct {
	Slot  string          `json:"slot"`
	Label json.RawMessage `json:"label"`
}

// Slot is what List says of one.
type Slot struct {
	ID     string          `json:"id"`
	Parked bool            `json:"parked"` // an init is waiting
	Pid    int             `json:"pid,omitempty"`
	Bare   bool            `json:"bare,omitempty"`
	Pause  int             `json:"pause,omitempty"` // first process of a shared process namespace
	Label  json.RawMessage `json:"label,omitempty"`
	// Namespaces are paths of the slot's namespaces by kind (net, ipc, uts); they are valid while this keeper lives.
	Namespaces map[string]string `json:"namespaces,omitempty"`
}

// Start runs a container in a slot: in the slot's parked init when it still waits, else in a new one that joins the
// slot's namespaces.
type Start struct {
	ID      string          `json:"id"`
	Slot    string          `json:"slot"`
	Label   json.RawMessage `json:"label,omitempty"`
	Cgroups []string        `json:"cgroups"`
	V2      bool            `json:"v2,omitempty"`
	LogDir  string          `json:"logDir"`
	LogFile int64           `json:"logFile"`  // bytes of one log file
	LogMax  int             `json:"logFiles"` // number of log files
	Stdin   bool            `json:"stdin,omitempty"`
	// ProcessesOf is a container whose process namespace this one joins.
	ProcessesOf string `json:"processesOf,omitempty"`
	// HostPID runs it in the host's own process namespace.
	HostPID bool `json:"hostPID,omitempty"`
	// Relabel replaces the slot's label in the same step, so that claiming a slot is one message.
	Relabel json.RawMessage `json:"relabel,omitempty"`
	Spec    *sandbox.Spec   `json:"spec,omitempty"`
	OCI     *OCI            `json:"oci,omitempty"`
	// Lease makes the container a fenced one: it ends with the host's lease. It is the end, by Boottime, of the lease
	// under which the start was decided. 0: not fenced.
	Lease time.Duration `json:"lease,omitempty"`
	// GuestBundle is what OCI.Guest is made from when the slot has none.
	GuestBundle string `json:"guestBundle,omitempty"`
}

// OCI runs the container with an OCI runtime instead of our own init.
type OCI struct {
	Runtime string   `json:"runtime"` // path of the program
	Args    []string `json:"args,omitempty"`
	Root    string   `json:"root"`   // the runtime's state directory
	Bundle  string   `json:"bundle"` // directory with config.json
	TTY     bool     `json:"tty,omitempty"`
	// Guest is the guest that the container runs in beside others: the slot's, see GuestID, or another container's.
	// Empty: alone, in one of its own.
	Guest string `json:"guest,omitempty"`
}

// Signal sends a signal to a container's first process, or kills all of it.
type Signal struct {
	ID     string `json:"id"`
	Number int    `json:"number"`
}

// Container is the keeper's record of one container. It is also the file that a new keeper adopts it from.
type Container struct {
	ID       string          `json:"id"`
	Slot     string          `json:"slot"`
	Label    json.RawMessage `json:"label,omitempty"`
	Pid      int             `json:"pid"`
	Birth    uint64          `json:"birth"` // start time of the process in clock ticks: tells it from a later one of that pid
	Started  time.Time       `json:"started"`
	Exited   bool            `json:"exited,omitempty"`
	Finished time.Time       `json:"finished,omitzero"`
	ExitCode *int            `json:"exitCode,omitempty"` // nil with Exited: unknown
	Signal   int             `json:"signal,omitempty"`
	LogDir   string          `json:"logDir"`
	LogFile  int64           `json:"logFile"`
	LogMax   int             `json:"logFiles"`
	Stdin    bool            `json:"stdin,omitempty"`
	TTY      bool            `json:"tty,omitempty"`
	OCI      *OCI            `json:"oci,omitempty"`
	Layer    string          `json:"layer,omitempty"` // where our own init makes the writable layer, its first act
	HostPID  bool            `json:"hostPID,omitempty"`

	Fenced    bool `json:"fenced,omitempty"`    // ends with the host's lease
	LeaseLost bool `json:"leaseLost,omitempty"` // was ended with it
}

// ExecRequest runs a command in a container; the connection carries its streams.
type ExecRequest struct {
	ID      string          `json:"id"`
	Process sandbox.Process `json:"process"`
	Stdin   bool            `json:"stdin,omitempty"`
	// OCISpec is the process as an OCI runtime wants it, for containers of one.
	OCISpec json.RawMessage `json:"ociSpec,omitempty"`
}

// AttachRequest connects to a container's streams.
type AttachRequest struct {
	ID string `json:"id"`
}

// Kinds of frames on a stream connection: the first byte of each frame.
const (
	frameStdin  = 0
	frameStdout = 1
	frameStderr = 2
	frameResize = 3 // four bytes: rows, columns, big endian
	frameExit   = 4 // JSON of exit
	frameEOF    = 5 // end of stdin
)

type exit struct {
	Code  int    `json:"code"`
	Error *Error `json:"error,omitempty"`
}
