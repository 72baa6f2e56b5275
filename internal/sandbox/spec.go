// Package sandbox is the program that lives between fork and exec of a container: the parked init.
//
// It runs as a process of its own in new namespaces, builds what needs no image while it is parked, and on request
// mounts the image's layers, pivots, gives up every privilege and executes the container's program, so that nothing
// of it is left. It trusts nothing in the image: every path inside a root is opened with openat2(RESOLVE_IN_ROOT).
// It must stay small (standard library and x/sys only): its start-up is paid for each sandbox. Start at Main.
package sandbox

// Spec is everything the init needs to become a container. It is made by the agent and carried by the keeper.
type Spec struct {
	ID string `json:"id"`

	// Lower are the image's layers on the host, topmost first. Upper is a directory on the host in which the init
	// makes upper/ and work/ for this container's own writes.
	Lower        []string `json:"lower"`
	Upper        string   `json:"upper"`
	ReadOnlyRoot bool     `json:"readOnlyRoot,omitempty"`
	Mounts       []Mount  `json:"mounts,omitempty"`
	ShmBytes     int64    `json:"shmBytes,omitempty"`
	// Privileged and HostIPC make another skeleton, and so another init than one that was parked in advance.
	Privileged bool `json:"privileged,omitempty"`
	HostIPC    bool `json:"hostIPC,omitempty"`

	// Hostname and Sysctls are set in the slot's namespaces; only the first container of a group carries them.
	Hostname string            `json:"hostname,omitempty"`
	Sysctls  map[string]string `json:"sysctls,omitempty"`

	Process Process `json:"process"`
}

// Ready tells an init that it is in its cgroups, and where they are on the host.
type Ready struct {
	Cgroups    []string `json:"cgroups"`
	Privileged bool     `json:"privileged,omitempty"` // nothing masked, /sys and cgroups writable, the host's devices
	HostIPC    bool     `json:"hostIPC,omitempty"`    // the host's /dev/shm
}

// Mount puts a file or directory of the host into the container.
type Mount struct {
	Source   string `json:"source"` // on the host
	SubPath  string `json:"subPath,omitempty"`
	Target   string `json:"target"` // in the container
	ReadOnly bool   `json:"readOnly,omitempty"`
	File     bool   `json:"file,omitempty"`
	Host     bool   `json:"host,omitempty"` // of the host itself: with what is mounted below it
}

// Process is a program and all that it may do. It serves containers and commands executed in them.
type Process struct {
	Args       []string `json:"args"`
	Env        []string `json:"env,omitempty"`
	Dir        string   `json:"dir,omitempty"`
	User       string   `json:"user,omitempty"` // user[:group], names or numbers, as in an image's configuration
	Groups     []uint32 `json:"groups,omitempty"`
	Caps       uint64   `json:"caps"` // bit set: bounding, permitted and effective
	NoNewPrivs bool     `json:"noNewPrivs,omitempty"`
	Privileged bool     `json:"privileged,omitempty"` // of Caps it gets those that there are: the host's root may lack some
	NonRoot    bool     `json:"nonRoot,omitempty"`    // refuse to run as user 0
	Seccomp    []byte   `json:"seccomp,omitempty"`    // compiled filter: struct sock_filter, native byte order
	TTY        bool     `json:"tty,omitempty"`
	Rows       uint16   `json:"rows,omitempty"`
	Cols       uint16   `json:"cols,omitempty"`
}

// Exec asks for a command inside a running container.
type Exec struct {
	Pid     int     `json:"pid"` // of the container's first process, in the keeper's namespace
	Process Process `json:"process"`
}

// Exit codes of a container whose program could not be executed, as shells and OCI runtimes give them.
const (
	ExitCannotStart   = 128 // something before exec went wrong
	ExitNotExecutable = 126
	ExitNotFound      = 127
)

// Failure is what an init says on its control socket when it cannot go on. No message and a closed socket: it has
// become the container's program.
type Failure struct {
	Message  string `json:"message"`
	ExitCode int    `json:"exitCode"`
}
