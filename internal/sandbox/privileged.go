package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// What follows is for containers that the administrator lets have the host.

// hostDev is where the host's devices are.
const hostDev = "/dev"

// ownDev are the parts of /dev that a container always has of its own.
var ownDev = []string{"pts", "shm", "mqueue", "console", "fd", "stdin", "stdout", "stderr", "ptmx"}

// openSkeleton makes /proc and /sys as the host has them: nothing masked, nothing read-only.
func openSkeleton(stage string, cgroups []string) error {
	sys := filepath.Join(stage, stageSys)
	if err := unix.Mount("proc", filepath.Join(stage, stageProc), "proc", inert, ""); err != nil {
		return fmt.Errorf("build /proc: %w", err)
	}
	if err := unix.Mount("sysfs", sys, "sysfs", inert, ""); err != nil {
		return fmt.Errorf("build /sys: %w", err)
	}
	if err := buildCgroup(stage, filepath.Join(sys, "fs/cgroup"), shown{cgroups, inert}); err != nil {
		return fmt.Errorf("build /sys: %w", err)
	}
	return nil
}

// copyDevices makes the nodes of the host's devices. A device that goes while we look is none.
func copyDevices(from, to string) error {
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		if err != nil || name == "." {
			return err
		}
		if slices.Contains(ownDev, name) {
			if e.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		target := filepath.Join(to, name)
		if e.IsDir() {
			if err := os.Mkdir(target, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			return nil
		}
		if e.Type()&fs.ModeDevice == 0 {
			return nil
		}
		return copyDevice(path, target)
	})
}

func copyDevice(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err == unix.ENOENT {
		return nil
	} else if err != nil {
		return fmt.Errorf("look at %s: %w", from, err)
	}
	if err := unix.Mknod(to, st.Mode, int(st.Rdev)); err == unix.EEXIST {
		return nil // of those that every container has
	} else if err != nil {
		return fmt.Errorf("make %s: %w", to, err)
	}
	return errors.Join(unix.Lchown(to, int(st.Uid), int(st.Gid)), unix.Chmod(to, st.Mode&0o7777))
}

// hostShm is the shared memory of the host's IPC namespace, where the host has it; else the container's own.
func hostShm(own string) string {
	var st unix.Stat_t
	path := filepath.Join(hostDev, "shm")
	if unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return own
	}
	return path
}

// present are those of a set of capabilities that this process has.
func present(caps uint64) (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("read capabilities: %w", err)
	}
	return caps & (uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32), nil
}
