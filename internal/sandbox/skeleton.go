package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// What a container must not see or change, after the OCI runtime specification's and Docker's lists.
var (
	maskedFiles  = []string{"kcore", "keys", "latency_stats", "timer_list", "timer_stats", "sched_debug", "interrupts"}
	maskedDirs   = []string{"scsi", "acpi", "asound"}
	readOnlyProc = []string{"bus", "fs", "irq", "sys", "sysrq-trigger"}
	maskedSys    = []string{"firmware", "devices/virtual/powercap", "kernel/security", "kernel/debug"}
)

type node struct {
	name         string
	major, minor uint32
}

var devices = []node{{"null", 1, 3}, {"zero", 1, 5}, {"full", 1, 7}, {"random", 1, 8}, {"urandom", 1, 9}, {"tty", 5, 0}}

// The parts of the skeleton under the staging directory.
const (
	stageProc  = "proc"
	stageDev   = "dev"
	stageSys   = "sys"
	stageRoot  = "root"
	stageShm   = "shm"
	stageEmpty = "empty" // what hidden directories look like
)

// Flags of what a container cannot execute from.
const (
	inert    = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	inertDev = unix.MS_NOSUID | unix.MS_NOEXEC // with device nodes
)

// stageBytes bounds what a container can keep in /dev and /dev/shm together, unless it asks for more.
const stageBytes = "64m"

// buildSkeleton mounts, in this process's own mount namespace, /proc, /dev and /sys as a container will see them,
// under stage. Starting a container then moves three mounts instead of making thirty.
//
// It makes as few file systems as it can: the kernel keeps a record for each pair of file system and memory cgroup, so
// that their number counts squared. One tmpfs holds /dev, /dev/shm and the empty directory behind everything hidden;
// the cgroups are the host's own mounts, bound.
func buildSkeleton(stage string, ready *Ready) error {
	// Slave, not private: what the host unmounts later must not be held by a parked process.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("set mount propagation: %w", err)
	}
	if err := unix.Mount("stage", stage, "tmpfs", unix.MS_NOSUID, "mode=711,size="+stageBytes); err != nil {
		return fmt.Errorf("mount %s: %w", stage, err)
	}
	// A slave of nothing is private: the moves below need a parent that is not shared.
	if err := unix.Mount("", stage, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make %s private: %w", stage, err)
	}
	for _, dir := range []string{stageProc, stageDev, stageSys, stageRoot, stageShm, stageEmpty} {
		if err := os.Mkdir(filepath.Join(stage, dir), 0o755); err != nil {
			return err
		}
	}
	empty := filepath.Join(stage, stageEmpty)
	if err := bindFlags(empty, empty, inert|unix.MS_RDONLY); err != nil {
		return fmt.Errorf("make empty directory: %w", err)
	}
	if err := buildDev(stage, ready); err != nil {
		return fmt.Errorf("build /dev: %w", err)
	}
	if ready.Privileged {
		return openSkeleton(stage, ready.Cgroups)
	}
	if err := buildProc(filepath.Join(stage, stageProc), filepath.Join(stage, stageDev, "null"), empty); err != nil {
		return fmt.Errorf("build /proc: %w", err)
	}
	if err := buildSys(filepath.Join(stage, stageSys), empty, ready.Cgroups); err != nil {
		return fmt.Errorf("build /sys: %w", err)
	}
	return nil
}

// bindFlags binds a directory with flags of its own.
func bindFlags(source, target string, flags uintptr) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return err
	}
	return unix.Mount("", target, "", unix.MS_BIND|unix.MS_REMOUNT|flags, "")
}

func buildDev(stage string, ready *Ready) error {
	dev := filepath.Join(stage, stageDev)
	if err := bindFlags(dev, dev, inertDev); err != nil {
		return err
	}
	for _, d := range devices {
		path := filepath.Join(dev, d.name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(d.major, d.minor))); err != nil {
			return fmt.Errorf("make %s: %w", d.name, err)
		}
		if err := unix.Chmod(path, 0o666); err != nil {
			return err
		}
	}
	links := [][2]string{{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
		{"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}}
	for _, l := range links {
		if err := os.Symlink(l[0], filepath.Join(dev, l[1])); err != nil {
			return err
		}
	}
	for _, name := range []string{"pts", "shm", "mqueue"} {
		if err := os.Mkdir(filepath.Join(dev, name), 0o755); err != nil {
			return err
		}
	}
	shm := filepath.Join(stage, stageShm)
	if ready.HostIPC {
		shm = hostShm(shm)
	}
	if ready.Privileged {
		if err := copyDevices(hostDev, dev); err != nil {
			return err
		}
	}
	return errors.Join(
		unix.Mount("devpts", filepath.Join(dev, "pts"), "devpts", inertDev, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
		unix.Mount("mqueue", filepath.Join(dev, "mqueue"), "mqueue", inert, ""),
		unix.Chmod(filepath.Join(stage, stageShm), 0o1777),
		bindFlags(shm, filepath.Join(dev, "shm"), inert))
}

func buildProc(proc, null, empty string) error {
	if err := unix.Mount("proc", proc, "proc", inert, ""); err != nil {
		return err
	}
	for _, name := range maskedFiles {
		if err := unix.Mount(null, filepath.Join(proc, name), "", unix.MS_BIND, ""); err != nil && err != unix.ENOENT {
			return fmt.Errorf("mask %s: %w", name, err)
		}
	}
	for _, name := range maskedDirs {
		if err := maskDir(empty, filepath.Join(proc, name)); err != nil {
			return err
		}
	}
	for _, name := range readOnlyProc {
		path := filepath.Join(proc, name)
		if err := bindFlags(path, path, inert|unix.MS_RDONLY); err != nil && err != unix.ENOENT {
			return fmt.Errorf("protect %s: %w", name, err)
		}
	}
	return nil
}

// maskDir hides a directory, if it is there, behind the empty one.
func maskDir(empty, path string) error {
	err := bindFlags(empty, path, inert|unix.MS_RDONLY)
	if err != nil && err != unix.ENOENT && err != unix.ENOTDIR {
		return fmt.Errorf("mask %s: %w", path, err)
	}
	return nil
}

func buildSys(sys, empty string, cgroups []string) error {
	if err := unix.Mount("sysfs", sys, "sysfs", inert|unix.MS_RDONLY, ""); err != nil {
		return err
	}
	for _, name := range maskedSys {
		if err := maskDir(empty, filepath.Join(sys, name)); err != nil {
			return err
		}
	}
	return buildCgroup(filepath.Dir(empty), filepath.Join(sys, "fs/cgroup"), shown{cgroups, inert | unix.MS_RDONLY})
}

// shown are the cgroups that a container sees, and how.
type shown struct {
	dirs  []string
	flags uintptr
}

// buildCgroup shows the container its own cgroups, read-only unless it is privileged, and as the root of what it can see: programs read their
// limits there. The keeper has moved this process into them before and says where they are; with one they are the v2
// tree, with several the v1 hierarchies, shown under their controllers' names.
func buildCgroup(stage, dir string, cgroups shown) error {
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("new cgroup namespace: %w", err)
	}
	if len(cgroups.dirs) == 0 {
		return nil
	}
	if len(cgroups.dirs) == 1 {
		return bindFlags(cgroups.dirs[0], dir, cgroups.flags)
	}
	names := filepath.Join(stage, "cgroup")
	if err := os.Mkdir(names, 0o755); err != nil {
		return err
	}
	for _, path := range cgroups.dirs {
		// /sys/fs/cgroup/CONTROLLER/…
		controller, _, _ := strings.Cut(strings.TrimPrefix(path, "/sys/fs/cgroup/"), "/")
		if err := os.Mkdir(filepath.Join(names, controller), 0o755); err != nil {
			return err
		}
	}
	if err := bindFlags(names, dir, inert|unix.MS_RDONLY); err != nil {
		return err
	}
	for _, path := range cgroups.dirs {
		controller, _, _ := strings.Cut(strings.TrimPrefix(path, "/sys/fs/cgroup/"), "/")
		if err := bindFlags(path, filepath.Join(dir, controller), cgroups.flags); err != nil {
			return fmt.Errorf("show cgroup %s: %w", controller, err)
		}
	}
	return nil
}
