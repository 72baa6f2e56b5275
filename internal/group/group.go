// Package group is the vocabulary of Spillway: container groups, their parts, their states and their limits.
//
// It imports only the standard library and does no IO. Wire formats (Azure's JSON, the store's records) are other
// packages' business; they translate to and from the types here. Start reading at Group.
package group

import (
	"net/netip"
	"strings"
	"time"
)

// Ref names a group in the API. Comparison of the parts is case-insensitive there; Key gives the canonical form.
type Ref struct {
	Subscription  string `json:"subscription"`
	ResourceGroup string `json:"resourceGroup"`
	Name          string `json:"name"`
}

// Desired says what the owner of a group wants of it.
type Desired string

// The three things that an owner can want. Deletion is a state, not a special path: the record goes when the host
// has reported that nothing of the group is left.
const (
	Run    Desired = "Run"
	Stop   Desired = "Stop"
	Delete Desired = "Delete"
)

// Group is the unit of scheduling, billing and networking: containers that share namespaces, volumes and a lifecycle.
// Writers: the API writes everything but Host, placement writes Host.
type Group struct {
	Ref        Ref               `json:"ref"`
	UID        string            `json:"uid"`        // one per creation; every effect on a host is named by it
	Generation int64             `json:"generation"` // grows with each write; hosts refuse older ones
	Epoch      int64             `json:"epoch"`      // grows with each start, restart and update: a host runs each epoch afresh
	Location   string            `json:"location"`
	Tags       map[string]string `json:"tags,omitempty"`
	Zones      []string          `json:"zones,omitempty"`
	Created    time.Time         `json:"created"`
	Desired    Desired           `json:"desired"`
	Host       string            `json:"host"`                // "": it waits for room, or never had any
	NetworkID  uint32            `json:"networkID,omitempty"` // of its network, on all hosts; 0: there is one host
	Address    netip.Addr        `json:"address,omitzero"`    // of its subnet, for as long as it exists; invalid: its host gives it one
	Space      []netip.Prefix    `json:"space,omitempty"`     // of its virtual network: told to hosts only, for the network's record says it
	Events     []Event           `json:"events,omitempty"`    // what the control plane did to it; hosts report theirs
	Evicted    *Eviction         `json:"evicted,omitempty"`
	Spec       Spec              `json:"spec"`
}

// Eviction is why a Spot group stops that nobody asked to stop.
type Eviction struct {
	For  string    `json:"for"` // uid of the group that needs its room
	Time time.Time `json:"time"`
}

// Spec is what the owner of a group asked for.
type Spec struct {
	Containers       []Container          `json:"containers"`
	InitContainers   []Container          `json:"initContainers,omitempty"`
	Volumes          []Volume             `json:"volumes,omitempty"`
	RestartPolicy    RestartPolicy        `json:"restartPolicy"`
	IP               *IPAddress           `json:"ip,omitempty"`
	DNS              *DNSConfig           `json:"dns,omitempty"`
	Credentials      []RegistryCredential `json:"credentials,omitempty"`
	SKU              string               `json:"sku,omitempty"`      // Standard
	Priority         string               `json:"priority,omitempty"` // Regular or Spot
	Labels           map[string]string    `json:"labels,omitempty"`
	Ephemeral        []Container          `json:"ephemeral,omitempty"`          // added to the running group, for looking into it
	FSGroup          *int64               `json:"fsGroup,omitempty"`            // owns the group's volumes
	Placeholder      string               `json:"addressPlaceholder,omitempty"` // stands for the group's address in environment, command and arguments
	Isolation        Isolation            `json:"isolation,omitempty"`
	HostAliases      []HostAlias          `json:"hostAliases,omitempty"`
	Hostname         string               `json:"hostname,omitempty"` // default: the group's name
	Sysctls          map[string]string    `json:"sysctls,omitempty"`
	ShareProcesses   bool                 `json:"shareProcesses,omitempty"`   // one process namespace for the group
	GraceSeconds     *int                 `json:"graceSeconds,omitempty"`     // SIGTERM → SIGKILL; default DefaultGraceSeconds
	EphemeralStorage int64                `json:"ephemeralStorage,omitempty"` // bytes of writable layers, logs and disk emptyDirs; 0 = no limit
	Network          string               `json:"network,omitempty"`          // of the subscription; "" = DefaultNetwork
	Subnet           *Subnet              `json:"subnet,omitempty"`           // of a virtual network, which Network is the key of then
	HostNetwork      bool                 `json:"hostNetwork,omitempty"`      // the machine's own network and host name
	HostAddress      string               `json:"hostAddress,omitempty"`      // with HostNetwork: the machine's address that it is known by, if it has that
	HostPID          bool                 `json:"hostPID,omitempty"`          // the machine's own process namespace
	HostIPC          bool                 `json:"hostIPC,omitempty"`          // the machine's own IPC namespace
	HostsComment     string               `json:"hostsComment,omitempty"`     // first line of /etc/hosts
	Placement        *Placement           `json:"placement,omitempty"`        // nil: anywhere
	Failover         Failover             `json:"failover,omitempty"`
}

// Subnet names a subnet of a virtual network, of the group's own subscription.
type Subnet struct {
	Network Ref    `json:"network"`
	Name    string `json:"name"`
	Label   string `json:"label,omitempty"` // what the request calls it
}

// Equal says whether two name the same subnet, whatever they call it.
func (s *Subnet) Equal(o *Subnet) bool {
	if s == nil || o == nil {
		return s == o
	}
	same := strings.EqualFold
	return same(s.Name, o.Name) && same(s.Network.Name, o.Network.Name) && same(s.Network.ResourceGroup, o.Network.ResourceGroup) &&
		same(s.Network.Subscription, o.Network.Subscription)
}

// DefaultNetwork is the network of groups that name none.
const DefaultNetwork = "default"

// NetworkName is the name of the group's network.
func (s *Spec) NetworkName() string {
	if s.Network == "" {
		return DefaultNetwork
	}
	return s.Network
}

// RestartPolicy says which exits start a container again.
type RestartPolicy string

// Restart policies as in Azure and Kubernetes. Never is exact: no exit is followed by a start.
const (
	RestartAlways    RestartPolicy = "Always"
	RestartOnFailure RestartPolicy = "OnFailure"
	RestartNever     RestartPolicy = "Never"
)

// Isolation is the class of separation between a group and the host's kernel.
type Isolation string

// Isolation classes. Shared: namespaces, seccomp and dropped capabilities on the host's kernel. GVisor: a kernel of
// the group's own in user space (runsc).
const (
	IsolationShared Isolation = "shared"
	IsolationGVisor Isolation = "gvisor"
)

// Container is one program of a group. Init containers use the same type; Sidecar is theirs alone.
type Container struct {
	Name           string            `json:"name"`
	Image          string            `json:"image"`
	Command        []string          `json:"command,omitempty"` // replaces the image's entrypoint and command
	Args           []string          `json:"args,omitempty"`    // replaces the image's command only
	WorkingDir     string            `json:"workingDir,omitempty"`
	Env            []EnvVar          `json:"env,omitempty"`
	Ports          []Port            `json:"ports,omitempty"`
	Requests       Resources         `json:"requests"`
	Limits         Resources         `json:"limits"` // zero fields: the requests; Unlimited: none
	Mounts         []Mount           `json:"mounts,omitempty"`
	Liveness       *Probe            `json:"liveness,omitempty"`
	Readiness      *Probe            `json:"readiness,omitempty"`
	Startup        *Probe            `json:"startup,omitempty"`
	PostStart      *Handler          `json:"postStart,omitempty"`
	PreStop        *Handler          `json:"preStop,omitempty"`
	Security       *Security         `json:"security,omitempty"`
	ConfigMap      map[string]string `json:"configMap,omitempty"` // files under /mnt/configmap/<container>/, updated live
	Sidecar        bool              `json:"sidecar,omitempty"`   // an init container that keeps running beside the others
	TTY            bool              `json:"tty,omitempty"`
	Stdin          bool              `json:"stdin,omitempty"`
	MessagePath    string            `json:"messagePath,omitempty"` // termination message file; default DefaultMessagePath
	StopSignal     string            `json:"stopSignal,omitempty"`  // default: the image's, else SIGTERM
	PullPolicy     PullPolicy        `json:"pullPolicy,omitempty"`
	Target         string            `json:"target,omitempty"` // of an ephemeral container: the one whose processes it sees
	MessageFromLog bool              `json:"messageFromLog,omitempty"`
	GPUSKU         string            `json:"gpuSKU,omitempty"` // of Requests.GPUs; "" = any
}

// PullPolicy says when an image is asked for at its registry.
type PullPolicy string

// Pull policies as in Kubernetes; the empty one is PullIfNotPresent.
const (
	PullAlways       PullPolicy = "Always"
	PullIfNotPresent PullPolicy = "IfNotPresent"
	PullNever        PullPolicy = "Never"
)

// EnvVar is one environment variable. Secret values are never returned by the API and never logged.
type EnvVar struct {
	Name   string `json:"name"`
	Value  string `json:"value,omitempty"`
	Secret bool   `json:"secret,omitempty"`
}

// Port is a port that a container listens on, or that a group publishes.
type Port struct {
	Number   int    `json:"number"`
	Protocol string `json:"protocol"` // TCP or UDP
}

// Resources are amounts of a host. CPU is in thousandths of a core, memory and storage in bytes, GPUs are whole ones.
// Storage belongs to a group, not to its containers.
type Resources struct {
	MilliCPU         int64 `json:"milliCPU,omitempty"`
	Memory           int64 `json:"memory,omitempty"`
	EphemeralStorage int64 `json:"ephemeralStorage,omitempty"`
	GPUs             int64 `json:"gpus,omitempty"`
}

// Mount puts a volume into a container.
type Mount struct {
	Volume   string `json:"volume"`
	Path     string `json:"path"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	SubPath  string `json:"subPath,omitempty"` // relative, inside the volume
}

// Volume is storage of a group. Exactly one source is set.
type Volume struct {
	Name      string     `json:"name"`
	EmptyDir  *EmptyDir  `json:"emptyDir,omitempty"`
	Secret    *Files     `json:"secret,omitempty"`    // on tmpfs
	ConfigMap *Files     `json:"configMap,omitempty"` // updated live
	GitRepo   *GitRepo   `json:"gitRepo,omitempty"`
	AzureFile *AzureFile `json:"azureFile,omitempty"`
	HostPath  *HostPath  `json:"hostPath,omitempty"`
}

// HostPath is a file or directory of the machine itself.
type HostPath struct {
	Path string       `json:"path"`           // absolute and clean
	Type HostPathType `json:"type,omitempty"` // what has to be there
}

// HostPathType says what a HostPath has to be, and what is made when it is not there. Kubernetes' words and rules.
type HostPathType string

// Types of host paths. Of the empty one nothing is asked; a directory is made when nothing is there.
const (
	HostPathAny               HostPathType = ""
	HostPathDirectory         HostPathType = "Directory"
	HostPathDirectoryOrCreate HostPathType = "DirectoryOrCreate"
	HostPathFile              HostPathType = "File"
	HostPathFileOrCreate      HostPathType = "FileOrCreate"
	HostPathSocket            HostPathType = "Socket"
	HostPathCharDevice        HostPathType = "CharDevice"
	HostPathBlockDevice       HostPathType = "BlockDevice"
)

// EmptyDir is scratch space that lives as long as the group.
type EmptyDir struct {
	Memory    bool  `json:"memory,omitempty"` // tmpfs instead of disk
	SizeLimit int64 `json:"sizeLimit,omitempty"`
}

// Files is a volume made of named files.
type Files struct {
	Data map[string][]byte `json:"data"`
	Mode uint32            `json:"mode,omitempty"` // permission bits of each file; default DefaultFileMode
	// Modes overrides Mode for single files.
	Modes map[string]uint32 `json:"modes,omitempty"`
	// Owners are the users that own single files; others belong to root.
	Owners map[string]int64 `json:"owners,omitempty"`
}

// GitRepo is a repository cloned when the group starts, inside a locked-down container.
type GitRepo struct {
	Repository string `json:"repository"`
	Directory  string `json:"directory,omitempty"`
	Revision   string `json:"revision,omitempty"`
}

// AzureFile is a named share: a directory share of the platform, or SMB.
type AzureFile struct {
	Share      string `json:"share"`
	Account    string `json:"account"`
	AccountKey string `json:"accountKey,omitempty"`
	ReadOnly   bool   `json:"readOnly,omitempty"`
}

// IPAddress asks for an address that others can reach.
type IPAddress struct {
	Public     bool   `json:"public"` // else Private
	Ports      []Port `json:"ports"`
	DNSLabel   string `json:"dnsLabel,omitempty"`
	LabelScope string `json:"labelScope,omitempty"`
	Requested  string `json:"requested,omitempty"` // the address in the request
}

// DNSConfig replaces the resolver configuration inside the group.
type DNSConfig struct {
	Servers []string `json:"servers"`
	Search  []string `json:"search,omitempty"`
	Options []string `json:"options,omitempty"`
}

// RegistryCredential logs in to one image registry.
type RegistryCredential struct {
	Server   string `json:"server"`
	Username string `json:"username"`
	Password string `json:"password"`
}

// HostAlias is a line of /etc/hosts.
type HostAlias struct {
	IP    string   `json:"ip"`
	Names []string `json:"names"`
}

// Security narrows or widens what a container may do, within what the platform allows.
type Security struct {
	User            *int64   `json:"user,omitempty"`
	Group           *int64   `json:"group,omitempty"`
	ExtraGroups     []int64  `json:"extraGroups,omitempty"`
	AddCaps         []string `json:"addCaps,omitempty"` // without CAP_
	DropCaps        []string `json:"dropCaps,omitempty"`
	ReadOnlyRoot    bool     `json:"readOnlyRoot,omitempty"`
	AllowEscalation bool     `json:"allowEscalation,omitempty"` // false: no_new_privs
	Seccomp         string   `json:"seccomp,omitempty"`         // base64 of an OCI seccomp profile; "" = the platform's
	RunAsNonRoot    bool     `json:"runAsNonRoot,omitempty"`
	Privileged      bool     `json:"privileged,omitempty"` // all capabilities and devices, no filter, nothing masked
}

// Probe asks a container how it is. Zero fields take Kubernetes' defaults (see WithDefaults).
type Probe struct {
	Handler
	InitialDelaySeconds int `json:"initialDelaySeconds,omitempty"`
	PeriodSeconds       int `json:"periodSeconds,omitempty"`
	TimeoutSeconds      int `json:"timeoutSeconds,omitempty"`
	SuccessThreshold    int `json:"successThreshold,omitempty"`
	FailureThreshold    int `json:"failureThreshold,omitempty"`
	// GraceSeconds replaces the group's grace period when the probe ends the container.
	GraceSeconds *int `json:"graceSeconds,omitempty"`
}

// Handler is one way to ask or tell a container something. Exactly one is set.
type Handler struct {
	Exec         []string    `json:"exec,omitempty"`
	HTTP         *HTTPGet    `json:"http,omitempty"`
	TCP          *TCPConnect `json:"tcp,omitempty"`
	GRPC         *GRPCCheck  `json:"grpc,omitempty"`
	SleepSeconds int         `json:"sleepSeconds,omitempty"` // hooks only
}

// HTTPGet is fine when it answers 200 to 399.
type HTTPGet struct {
	Path    string   `json:"path,omitempty"`
	Port    int      `json:"port"`
	Host    string   `json:"host,omitempty"` // Host header; the connection always goes to the group's own address
	HTTPS   bool     `json:"https,omitempty"`
	Headers []Header `json:"headers,omitempty"`
}

// Header is one HTTP header.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// TCPConnect is fine when the port accepts a connection.
type TCPConnect struct {
	Port int `json:"port"`
}

// GRPCCheck is fine when grpc.health.v1 says SERVING.
type GRPCCheck struct {
	Port    int    `json:"port"`
	Service string `json:"service,omitempty"`
}
