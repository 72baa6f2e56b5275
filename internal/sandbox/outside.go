package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"

	"golang.org/x/sys/unix"
)

// What follows is for containers of OCI runtimes: the same care for a root, done from outside before the runtime runs.

// PrepareRoot mounts the image's layers at target and makes every place that a runtime will mount on real.
func PrepareRoot(target string, spec *Spec) error {
	if err := mountLayers(target, spec); err != nil {
		return err
	}
	fd, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r := root{fd}
	for _, name := range []string{stageProc, stageDev, stageSys, "etc"} {
		dir, err := r.realDir(name)
		if err != nil {
			return err
		}
		unix.Close(dir)
	}
	for _, m := range spec.Mounts {
		info, err := os.Stat(m.Source)
		if err != nil {
			return err
		}
		t, err := r.target(m.Target, !info.IsDir())
		if err != nil {
			return fmt.Errorf("mount %s: %w", clip(m.Target), err)
		}
		unix.Close(t)
	}
	return nil
}

// CopyFile puts a file of the platform into a mounted root instead of binding it there, replacing what the image has.
func CopyFile(rootfs string, m Mount) error {
	body, err := os.ReadFile(m.Source)
	if err != nil {
		return err
	}
	fd, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	parent, err := (root{fd}).mkdirAll(path.Dir(m.Target))
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	base := path.Base(m.Target)
	if err := unix.Unlinkat(parent, base, 0); err != nil && err != unix.ENOENT {
		return fmt.Errorf("replace %s: %w", clip(m.Target), err)
	}
	out, err := unix.Openat(parent, base, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("make %s: %w", clip(m.Target), err)
	}
	f := os.NewFile(uintptr(out), base)
	_, err = f.Write(body)
	return errors.Join(err, f.Close())
}

// ResolveBelow gives the real path of a tenant's path below a directory of the platform, made when it is missing.
func ResolveBelow(dir, sub string) (string, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	below, err := (root{fd}).openBelow(sub)
	if err != nil {
		return "", fmt.Errorf("open sub-path %q: %w", clip(sub), err)
	}
	defer unix.Close(below)
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", below))
}

// Resolved is a process whose user, environment and directory have been looked up in an image.
type Resolved struct {
	UID, GID uint32
	Groups   []uint32
	Env      []string
	Dir      string
}

// ResolveUser looks a process's user up in a mounted root.
func ResolveUser(rootfs string, p *Process) (Resolved, error) {
	fd, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Resolved{}, err
	}
	defer unix.Close(fd)
	r := root{fd}
	who, err := lookUpUser(p.User, r.readFile("/etc/passwd"), r.readFile("/etc/group"))
	if err != nil {
		return Resolved{}, err
	}
	if p.NonRoot && who.uid == 0 {
		return Resolved{}, errRoot
	}
	return Resolved{UID: who.uid, GID: who.gid, Groups: append(append([]uint32{}, p.Groups...), who.groups...),
		Env: p.environment(who), Dir: path.Clean("/" + p.Dir)}, nil
}

var errRoot = fmt.Errorf("container must not run as root, and neither the image nor the container names another user")

// SetHostname sets the name in another UTS namespace.
func SetHostname(uts, name string) error {
	own, err := os.Open("/proc/thread-self/ns/uts")
	if err != nil {
		return err
	}
	defer own.Close()
	other, err := os.Open(uts)
	if err != nil {
		return err
	}
	defer other.Close()
	done := make(chan error, 1)
	go func() {
		// The thread is given up with the goroutine: it never runs anything in its own namespace again.
		runtime.LockOSThread()
		if err := unix.Setns(int(other.Fd()), unix.CLONE_NEWUTS); err != nil {
			done <- err
			return
		}
		done <- unix.Sethostname([]byte(name))
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("set hostname: %w", err)
	}
	return nil
}
