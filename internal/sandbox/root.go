package sandbox

import (
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// root is a container's root directory, opened before anything of the image has run. All its methods stay inside,
// whatever links the image holds.
type root struct{ fd int }

// open resolves name inside the root; links are followed there, never out of it and never through /proc.
func (r root) open(name string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for {
		fd, err := unix.Openat2(r.fd, strings.TrimPrefix(name, "/"), &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// realDir makes sure that name, one component below the root, is a directory and not a link, replacing what is there,
// and opens it. It is for the targets that the platform itself mounts on.
func (r root) realDir(name string) (int, error) {
	return realDirAt(r.fd, name)
}

func realDirAt(parent int, name string) (int, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(parent, name, flags, 0)
	if err == nil {
		return fd, nil
	}
	if err != unix.ENOENT {
		if err := unix.Unlinkat(parent, name, 0); err != nil {
			return -1, fmt.Errorf("replace %s: %w", name, err)
		}
	}
	if err := unix.Mkdirat(parent, name, 0o755); err != nil && err != unix.EEXIST {
		return -1, fmt.Errorf("make %s: %w", name, err)
	}
	fd, err = unix.Openat(parent, name, flags, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", name, err)
	}
	return fd, nil
}

// target opens the place for a mount, making what is missing: directories, and an empty file when file is set.
func (r root) target(name string, file bool) (int, error) {
	clean := path.Clean("/" + name)
	if clean == "/" {
		return -1, fmt.Errorf("mount on %q: the root itself cannot be replaced", name)
	}
	if fd, err := r.open(clean, unix.O_PATH); err == nil {
		return fd, nil
	} else if err != unix.ENOENT {
		return -1, fmt.Errorf("open mount target %s: %w", clean, err)
	}
	parent, err := r.mkdirAll(path.Dir(clean))
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	base := path.Base(clean)
	if !file {
		return realDirAt(parent, base)
	}
	// What is missing here may be a link to nowhere: remove it, never create through it.
	_ = unix.Unlinkat(parent, base, 0)
	fd, err := unix.Openat(parent, base, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_RDONLY, 0o644)
	if err != nil {
		return -1, fmt.Errorf("make mount target %s: %w", clean, err)
	}
	return fd, nil
}

// mkdirAll opens a directory inside the root, making what is missing on the way.
func (r root) mkdirAll(name string) (int, error) {
	clean := path.Clean("/" + name)
	if clean == "/" {
		return unix.Openat(r.fd, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	fd, err := r.open(clean, unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		return fd, nil
	}
	if err != unix.ENOENT {
		return -1, fmt.Errorf("open %s: %w", clean, err)
	}
	parent, err := r.mkdirAll(path.Dir(clean))
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	return realDirAt(parent, path.Base(clean))
}

// readFile reads a small regular file inside the root; anything else counts as absent.
func (r root) readFile(name string) []byte {
	const most = 1 << 20
	fd, err := r.open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() > most {
		return nil
	}
	buf := make([]byte, info.Size())
	n, _ := unix.Pread(fd, buf, 0)
	return buf[:max(n, 0)]
}
