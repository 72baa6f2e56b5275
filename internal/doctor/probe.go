package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/cgroup"
)

// Options say what to look at.
type Options struct {
	Listen   string   // HOST:PORT of the API
	Runtimes []string // programs; see FindRuntimes
	Data     DataDir
}

// Probe looks at this machine.
func Probe(ctx context.Context, o Options) *Facts {
	f := &Facts{UID: os.Geteuid(), Listen: o.Listen, Data: o.Data, Features: map[string]string{}}
	f.Capabilities, _ = strconv.ParseUint(field("/proc/self/status", "CapEff:"), 16, 64)
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		f.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	probeFeatures(f)
	f.Cgroup = probeCgroup()
	f.Forwarding = read("/proc/sys/net/ipv4/ip_forward") == "1"
	f.ForwardDrop = probeForward(ctx)
	probePorts(f)
	f.Disk = probeDisk(o.Data.Dir)
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		f.OpenFiles = limit.Max
	}
	f.SystemFiles, _ = strconv.ParseUint(read("/proc/sys/fs/file-max"), 10, 64)
	f.PidMax, _ = strconv.ParseUint(read("/proc/sys/kernel/pid_max"), 10, 64)
	f.Runtimes = FindRuntimes(ctx, o.Runtimes...)
	return f
}

func read(path string) string {
	body, _ := os.ReadFile(path) // "" is what a missing file means to every caller
	return strings.TrimSpace(string(body))
}

// field is the rest of the line that begins with a name.
func field(path, name string) string {
	for line := range strings.Lines(read(path)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

// probeFeatures tries each feature in a way that leaves nothing behind.
func probeFeatures(f *Facts) {
	say := func(feature string, err error) {
		f.Features[feature] = ""
		if err != nil {
			f.Features[feature] = err.Error()
		}
	}
	fd, err := unix.Openat2(unix.AT_FDCWD, "/", &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
	say(featureOpenat2, closing(fd, err))
	fd, err = unix.PidfdOpen(os.Getpid(), 0)
	say(featurePidfd, closing(fd, err))
	// A range that ends before it begins is refused by a kernel that knows the call, and by no other.
	if err = unix.CloseRange(2, 1, unix.CLOSE_RANGE_CLOEXEC); errors.Is(err, unix.EINVAL) {
		err = nil
	}
	say(featureCloseRange, err)
	if err = unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}); !errors.Is(err, unix.ENOSYS) {
		err = nil
	}
	say(featureMountAPI, err)
	say(featureSeccomp, probeSeccomp())
	say(featureNamespaces, probeNamespaces())
	if f.UID != 0 {
		return // the others can only be tried by root
	}
	fd, err = unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	say(featureOverlay, closing(fd, err))
	nft, veth := probeLinks()
	say(featureNFTables, nft)
	say(featureVeth, veth)
}

func closing(fd int, err error) error {
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

func probeSeccomp() error {
	if !strings.Contains(read("/proc/sys/kernel/seccomp/actions_avail"), "errno") {
		return errors.New("the kernel has no seccomp filters")
	}
	return nil
}

func probeNamespaces() error {
	for _, name := range []string{"mnt", "net", "pid", "ipc", "uts"} {
		if _, err := os.Lstat("/proc/self/ns/" + name); err != nil {
			return fmt.Errorf("no %s namespaces", name)
		}
	}
	return nil
}

// probeLinks makes a pair of links and reads the rules in a network namespace that ends with its thread.
func probeLinks() (nft, veth error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine, and its namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			nft, veth = err, err
			return
		}
		veth = netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}, PeerName: "probe1"})
		conn, err := nftables.New()
		if err == nil {
			_, err = conn.ListTables()
		}
		nft = err
	}()
	<-done
	return nft, veth
}

func probeCgroup() Cgroup {
	c := Cgroup{V2: cgroup.Detect() == cgroup.V2}
	var have []string
	if c.V2 {
		have = strings.Fields(read("/sys/fs/cgroup/cgroup.controllers"))
	} else {
		for line := range strings.Lines(read("/proc/self/mounts")) {
			if f := strings.Fields(line); len(f) > 3 && f[2] == "cgroup" {
				have = append(have, strings.Split(f[3], ",")...)
			}
		}
		c.V2Controllers = strings.Fields(read("/sys/fs/cgroup/unified/cgroup.controllers"))
	}
	for _, name := range []string{"cpu", "memory", "pids"} {
		if !slices.Contains(have, name) {
			c.Missing = append(c.Missing, name)
		}
	}
	return c
}

// probeForward finds a chain that drops forwarded packets unless something lets them through.
func probeForward(ctx context.Context) string {
	if conn, err := nftables.New(); err == nil {
		chains, _ := conn.ListChains() // without rights to read there is nothing to say
		for _, c := range chains {
			if c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward && c.Type == nftables.ChainTypeFilter &&
				c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop && !strings.HasPrefix(c.Table.Name, "spillway_") {
				return "chain " + c.Name + " of table " + c.Table.Name
			}
		}
	}
	// The older tables are only visible to their own tool, which would make them when they are not there.
	if !strings.Contains(read("/proc/net/ip_tables_names"), "filter") {
		return ""
	}
	out, err := exec.CommandContext(ctx, "iptables-legacy", "-S", "FORWARD").Output()
	if err == nil && bytes.HasPrefix(out, []byte("-P FORWARD DROP")) {
		return "iptables FORWARD"
	}
	return ""
}

// probePorts listens for a moment.
func probePorts(f *Facts) {
	l, err := net.Listen("tcp", f.Listen)
	if err != nil {
		f.ListenError = "it is in use"
		if !errors.Is(err, unix.EADDRINUSE) {
			f.ListenError = err.Error()
		}
	} else {
		l.Close()
	}
	// An address that nobody binds by name is only in use when somebody has taken port 53 of all.
	c, err := net.ListenPacket("udp4", "127.255.53.53:53")
	f.DNSBusy = errors.Is(err, unix.EADDRINUSE)
	if err == nil {
		c.Close()
	}
}

// probeDisk measures where the data directory is or would be.
func probeDisk(dir string) Disk {
	d := Disk{Dir: dir}
	for at := filepath.Clean(dir); ; at = filepath.Dir(at) {
		var st unix.Statfs_t
		err := unix.Statfs(at, &st)
		if err == nil {
			d.Free, d.Total = st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
			d.FreeInodes, d.Inodes = st.Ffree, st.Files
			return d
		}
		if !errors.Is(err, fs.ErrNotExist) || at == filepath.Dir(at) {
			return d
		}
	}
}
