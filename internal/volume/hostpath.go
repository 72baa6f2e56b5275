package volume

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

// hostPath finds a file or directory of the host, looks whether it is what is asked for, and makes it where the type
// says so. In a directory that the operator has named, links do not lead out of it, now or when it is mounted later:
// whoever writes there could otherwise choose what of the host others, or itself, get to see.
func (m *Manager) hostPath(h *group.HostPath) (Source, error) {
	base, ok := m.allow.Base(h.Path)
	if !ok {
		return Source{}, fault.New(fault.Denied, "HostAccessNotAllowed", "%s", group.Need{Access: group.AccessPath, Path: h.Path}.Refusal())
	}
	dir, err := unix.Open(base, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Source{}, fault.New(fault.Unavailable, "", "open %s: %v", base, err)
	}
	defer unix.Close(dir)
	t := below{fd: dir}
	src := Source{Path: h.Path, Host: true}
	name := strings.TrimPrefix(strings.TrimPrefix(h.Path, base), "/")
	if base != "/" {
		t.resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS
		src.Path, src.SubPath = base, name
	}
	fd, err := t.open(name)
	if err == unix.ENOENT && creates(h.Type) {
		if err = t.create(name, h.Type == group.HostPathFileOrCreate); err == nil {
			fd, err = t.open(name)
		}
	}
	if err != nil {
		return Source{}, fault.New(fault.Unavailable, "", "hostPath %s: %v%s", h.Path, err, outside(err, base))
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Source{}, err
	}
	if want := hostPathModes[h.Type]; want.mode != 0 && st.Mode&unix.S_IFMT != want.mode {
		return Source{}, fault.New(fault.Invalid, "", "hostPath type check failed: %s is not %s", h.Path, want.name)
	}
	return src, nil
}

func outside(err error, base string) string {
	if err == unix.EXDEV {
		return ": a link on the way leads out of " + base
	}
	return ""
}

// hostPathModes are what each type has to be; of the empty one nothing is asked.
var hostPathModes = map[group.HostPathType]struct {
	mode uint32
	name string
}{
	group.HostPathDirectory:         {unix.S_IFDIR, "a directory"},
	group.HostPathDirectoryOrCreate: {unix.S_IFDIR, "a directory"},
	group.HostPathFile:              {unix.S_IFREG, "a file"},
	group.HostPathFileOrCreate:      {unix.S_IFREG, "a file"},
	group.HostPathSocket:            {unix.S_IFSOCK, "a socket file"},
	group.HostPathCharDevice:        {unix.S_IFCHR, "a character device"},
	group.HostPathBlockDevice:       {unix.S_IFBLK, "a block device"},
}

func creates(t group.HostPathType) bool {
	return t == group.HostPathAny || t == group.HostPathDirectoryOrCreate || t == group.HostPathFileOrCreate
}

// below is an open directory below which paths are looked up.
type below struct {
	fd      int
	resolve uint64 // restrictions of openat2
}

func (t below) open(name string) (int, error) {
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: t.resolve}
	for {
		fd, err := unix.Openat2(t.fd, name, &how)
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// create makes a directory with those on the way to it, or an empty file in a directory that is there.
func (t below) create(name string, file bool) error {
	parent := path.Dir(name)
	if parent == "." {
		parent = ""
	}
	at, err := t.open(parent)
	if err == unix.ENOENT && !file {
		if err = t.create(parent, false); err == nil {
			at, err = t.open(parent)
		}
	}
	if err != nil {
		return err
	}
	defer unix.Close(at)
	const fileMode, dirMode = 0o644, 0o755 // a kubelet's
	if !file {
		if err = unix.Mkdirat(at, path.Base(name), dirMode); err == unix.EEXIST {
			err = nil // made by somebody else meanwhile
		}
		return err
	}
	fd, err := unix.Openat(at, path.Base(name), unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_WRONLY, fileMode)
	if err == unix.EEXIST {
		return nil
	}
	if err != nil {
		return err
	}
	return unix.Close(fd)
}
