package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// become turns this process into the container's program. On success it does not return.
func become(stage string, spec *Spec, stdio []int, control *os.File) error {
	if err := setGroupWide(spec); err != nil {
		return err
	}
	rootDir := filepath.Join(stage, stageRoot)
	if err := mountLayers(rootDir, spec); err != nil {
		return err
	}
	fd, err := unix.Open(rootDir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open root: %w", err)
	}
	r := root{fd}
	if err := placeSkeleton(stage, r); err != nil {
		return err
	}
	if spec.ShmBytes > 0 {
		// Before the stage goes out of sight: its size is that of /dev/shm.
		if err := unix.Mount("", stage, "", unix.MS_REMOUNT|unix.MS_NOSUID, fmt.Sprintf("size=%d", spec.ShmBytes)); err != nil {
			return fmt.Errorf("size /dev/shm: %w", err)
		}
	}
	if err := placeMounts(r, spec); err != nil {
		return err
	}
	if spec.ReadOnlyRoot {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("make root read-only: %w", err)
		}
	}
	if err := pivot(fd); err != nil {
		return err
	}
	return spec.Process.run(stdio, control)
}

// setGroupWide sets what belongs to the namespaces that the group's containers share.
func setGroupWide(spec *Spec) error {
	if spec.Hostname != "" {
		if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
			return fmt.Errorf("set hostname: %w", err)
		}
	}
	for name, value := range spec.Sysctls {
		// The names come from a fixed list; the dots are the path.
		path := "/proc/sys/" + strings.ReplaceAll(name, ".", "/")
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			return fmt.Errorf("set sysctl %s: %w", name, err)
		}
	}
	return nil
}

// mountLayers mounts the image with a fresh upper directory of this container's own. Device nodes in an image are
// dead: a container has only those of its /dev. The upper layer dies with the container, so it is never synced.
func mountLayers(target string, spec *Spec) error {
	upper, work := filepath.Join(spec.Upper, "upper"), filepath.Join(spec.Upper, "work")
	for _, dir := range []string{spec.Upper, upper, work} {
		if err := os.Mkdir(dir, 0o755); err != nil && !os.IsExist(err) {
			return fmt.Errorf("make writable layer: %w", err)
		}
	}
	if len(spec.Lower) == 0 {
		return fmt.Errorf("image without layers")
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return mountLayersClassic(target, spec, upper, work)
	}
	defer unix.Close(fs)
	for _, dir := range spec.Lower {
		if unix.FsconfigSetString(fs, "lowerdir+", dir) != nil {
			return mountLayersClassic(target, spec, upper, work)
		}
	}
	for _, o := range [][2]string{{"upperdir", upper}, {"workdir", work}} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return fmt.Errorf("overlay %s: %w", o[0], err)
		}
	}
	_ = unix.FsconfigSetFlag(fs, "volatile") // a saving, not a need
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("mount %d image layers: %w", len(spec.Lower), err)
	}
	attributes := unix.MOUNT_ATTR_NODEV
	if spec.Privileged {
		attributes = 0
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	defer unix.Close(mnt)
	if err := unix.MoveMount(mnt, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	return nil
}

// mountLayersClassic is for kernels before 6.8, which take all layers in one option of at most a page.
func mountLayersClassic(target string, spec *Spec, upper, work string) error {
	escape := strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`)
	lower, flags := spec.Lower, uintptr(unix.MS_NODEV)
	if spec.Privileged {
		flags = 0
	}
	var dirs []string
	for _, dir := range lower {
		dirs = append(dirs, escape.Replace(dir))
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,volatile", strings.Join(dirs, ":"), upper, work)
	if len(options) >= os.Getpagesize() {
		return fmt.Errorf("image has %d layers: this kernel takes %d bytes of layer paths, they need %d", len(lower), os.Getpagesize(), len(options))
	}
	if err := unix.Mount("overlay", target, "overlay", flags, options); err != nil {
		return fmt.Errorf("mount %d image layers: %w", len(lower), err)
	}
	return nil
}

// placeSkeleton moves /proc, /dev and /sys into the root, onto directories that are made real first.
func placeSkeleton(stage string, r root) error {
	for _, name := range []string{stageProc, stageDev, stageSys} {
		fd, err := r.realDir(name)
		if err != nil {
			return err
		}
		err = unix.MoveMount(unix.AT_FDCWD, filepath.Join(stage, name), fd, "", unix.MOVE_MOUNT_T_EMPTY_PATH)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("place /%s: %w", name, err)
		}
	}
	etc, err := r.realDir("etc")
	if err != nil {
		return err
	}
	return unix.Close(etc)
}

func placeMounts(r root, spec *Spec) error {
	for _, m := range spec.Mounts {
		if err := placeMount(r, m, spec.Privileged); err != nil {
			return fmt.Errorf("mount %s: %w", clip(m.Target), err)
		}
	}
	return nil
}

// placeMount binds a file or directory of the host. The source's directory is the platform's, or one of the host's that
// the administrator gives away; a path below it is the tenant's and must not leave it.
func placeMount(r root, m Mount, privileged bool) error {
	source, err := unix.Open(m.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open volume: %w", err)
	}
	if m.SubPath != "" {
		below, err := (root{source}).openBelow(m.SubPath)
		unix.Close(source)
		if err != nil {
			return fmt.Errorf("open sub-path %q: %w", clip(m.SubPath), err)
		}
		source = below
	}
	defer unix.Close(source)
	var st unix.Stat_t
	if err := unix.Fstat(source, &st); err != nil {
		return err
	}
	target, err := r.target(m.Target, st.Mode&unix.S_IFMT != unix.S_IFDIR)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	flags := uint(unix.AT_EMPTY_PATH)
	if m.Host {
		flags |= unix.AT_RECURSIVE
	}
	tree, err := unix.OpenTree(source, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|flags)
	if err != nil {
		return fmt.Errorf("clone: %w", err)
	}
	defer unix.Close(tree)
	var attr unix.MountAttr
	if !m.Host || !privileged {
		attr.Attr_set = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	}
	if m.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(tree, "", flags, &attr); err != nil {
		return fmt.Errorf("set attributes: %w", err)
	}
	return unix.MoveMount(tree, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// openBelow opens a tenant's path strictly below a directory, making missing directories. Links are refused when they
// lead out, also when they change while we look.
func (r root) openBelow(sub string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(r.fd, sub, &how)
	if err != unix.ENOENT {
		return fd, err
	}
	at, err := unix.Openat(r.fd, ".", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	for part := range strings.SplitSeq(sub, "/") {
		if err != nil || part == "" || part == "." {
			continue
		}
		if mk := unix.Mkdirat(at, part, 0o755); mk != nil && mk != unix.EEXIST {
			err = mk
			continue
		}
		var next int
		next, err = unix.Openat(at, part, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		unix.Close(at)
		at = next
	}
	return at, err
}

// pivot makes the open directory the root and lets go of the host's tree.
func pivot(fd int) error {
	if err := unix.Fchdir(fd); err != nil {
		return fmt.Errorf("enter root: %w", err)
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's tree: %w", err)
	}
	unix.Close(fd)
	return unix.Chdir("/")
}
