// Package doctor examines a machine before and while a platform runs on it: what is wrong, how bad it is, and how to
// put it right.
//
// Probe looks and changes nothing that outlives it; Evaluate judges what was seen and is pure. A finding always says
// what to do next. It must never repair anything by itself. Start reading at Evaluate.
package doctor

import "slices"

// Severity is how bad a finding is.
type Severity string

// The severities, best first. Only an error keeps the platform from running.
const (
	OK      Severity = "ok"
	Note    Severity = "note"
	Warning Severity = "warning"
	Error   Severity = "error"
)

var ranks = []Severity{OK, Note, Warning, Error}

// Finding is the result of one check.
type Finding struct {
	Check    string   `json:"check"`
	Severity Severity `json:"severity"`
	Finding  string   `json:"finding"`
	Fix      string   `json:"fix,omitempty"` // "" when there is nothing to do
}

// Worst is the highest severity among findings; OK when there are none.
func Worst(list []Finding) Severity {
	worst := 0
	for _, f := range list {
		worst = max(worst, slices.Index(ranks, f.Severity))
	}
	return ranks[worst]
}

// Facts are what a probe saw of a machine.
type Facts struct {
	UID          int
	Capabilities uint64 // effective set
	Kernel       string // release, as uname gives it
	Features     map[string]string
	Cgroup       Cgroup
	Forwarding   bool   // net.ipv4.ip_forward
	ForwardDrop  string // who drops forwarded packets by default: "iptables FORWARD"; "" nobody
	Listen       string // address of the API that was tried
	ListenError  string // "" when it is free
	DNSBusy      bool   // something listens on port 53 of every address
	Disk         Disk
	OpenFiles    uint64 // hard limit of open files per process
	SystemFiles  uint64 // fs.file-max
	PidMax       uint64
	Runtimes     []Runtime // that were found
	Data         DataDir
}

// The features that a probe tries; Facts.Features holds "" for those that work, else the reason.
const (
	featureOverlay    = "overlay file system"
	featureOpenat2    = "openat2"
	featurePidfd      = "pidfd"
	featureCloseRange = "close_range"
	featureMountAPI   = "mount_setattr"
	featureSeccomp    = "seccomp filter"
	featureNamespaces = "namespaces"
	featureNFTables   = "nftables"
	featureVeth       = "veth"
)

// needs says why each feature is needed and how to get it, in the order of the report.
var needs = []struct{ feature, fix string }{
	{featureOverlay, "Load the module: 'modprobe overlay'."},
	{featureOpenat2, "It opens paths inside hostile images; use Linux 5.6 or newer, and outside of a container whose seccomp profile hides it."},
	{featurePidfd, "The keeper waits with it; use Linux 5.4 or newer."},
	{featureCloseRange, "It keeps descriptors out of containers; use Linux 5.11 or newer."},
	{featureMountAPI, "It makes mounts read-only as a whole; use Linux 5.12 or newer."},
	{featureSeccomp, "Use a kernel with CONFIG_SECCOMP_FILTER."},
	{featureNamespaces, "Use a kernel with mount, network, PID, IPC and UTS namespaces."},
	{featureNFTables, "Load the module: 'modprobe nf_tables'."},
	{featureVeth, "Load the module: 'modprobe veth'."},
}

// Cgroup is the machine's layout of cgroups.
type Cgroup struct {
	V2            bool     // /sys/fs/cgroup is a v2 tree
	Missing       []string // controllers of cpu, memory, pids that are nowhere
	V2Controllers []string // hybrid layout: what the v2 tree under unified/ still lists
}

// Disk is the file system of the data directory.
type Disk struct {
	Dir         string
	Free, Total uint64 // bytes
	FreeInodes  uint64 // 0: the file system does not count them
	Inodes      uint64
}

// Runtime is an OCI runtime that was found.
type Runtime struct {
	Name    string // crun, runc, runsc
	Path    string
	Version string // "" when it does not say
	Date    string // of runsc's source, YYYYMMDD; "" when it does not say
}

// DataDir is the platform of a data directory.
type DataDir struct {
	Dir        string
	Exists     bool // a platform was started here once
	PID        int  // of the platform that runs; 0: none
	Keeper     bool // a keeper answers
	Containers int  // that the keeper holds
	Parked     int  // slots
	Readable   bool // false: not ours to read
}
