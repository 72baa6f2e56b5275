// Package volume prepares the volumes of a group as directories on the host, which the runtime then mounts into
// containers.
//
// A group has one directory of mode 0700, so that nobody on the host but root sees what is in it. Scratch space is a
// directory or a tmpfs of its own; secrets and config maps are files on one small tmpfs and never touch a disk.
//
// Tenants write into these directories: nothing here may follow a symbolic link of theirs, and a tenant never gets a
// path of the host that the operator has not named as a share, or given away. Start reading at Prepare.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

const (
	filesDir  = "..files" // tmpfs of secrets and config maps; no volume can have this name
	filesSize = 64 << 20  // bytes: twenty volumes of group.MaxSecretBytes, twice while one is exchanged
	doneMark  = "..cloned-"
)

// Config names what groups may use of the host.
type Config struct {
	Shares map[string]string // share name → directory, for azureFile volumes
	Allow  group.Allowance   // which paths of the host, for hostPath volumes
	Log    *slog.Logger
}

// Manager prepares volumes. It has no state: what exists is read from the directories.
type Manager struct {
	shares map[string]string
	allow  group.Allowance
	log    *slog.Logger
}

// Source is a prepared volume.
type Source struct {
	Path     string
	SubPath  string // below Path, and not to be left by a link
	ReadOnly bool
	Host     bool   // of the host itself
	Clone    *Clone // to be run, inside a sandbox with Path at CloneTarget, before any container starts; nil: nothing to do
}

// New makes a manager.
func New(cfg Config) *Manager {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &Manager{shares: cfg.Shares, allow: cfg.Allow, log: cfg.Log}
}

// ContainerConfigMap is the name under which Prepare gives the files of Container.ConfigMap. No volume can have it.
func ContainerConfigMap(container string) string { return "configmap:" + container }

// Prepare makes every volume of a group below dir and gives where each is. What is there already stays as it is, so
// that it may be called again after a restart of the agent.
func (m *Manager) Prepare(_ context.Context, dir string, spec *group.Spec) (map[string]Source, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("prepare volumes: %w", err)
	}
	out := map[string]Source{}
	for i := range spec.Volumes {
		v := &spec.Volumes[i]
		if err := checkName(v.Name); err != nil {
			return nil, err
		}
		src, err := m.prepare(dir, v, spec)
		if err != nil {
			return nil, fmt.Errorf("prepare volume %s: %w", v.Name, err)
		}
		out[v.Name] = src
	}
	// gofail: var volumesMade struct{}
	for _, f := range fileVolumes(spec) {
		path, _, err := writeFiles(dir, f)
		if err != nil {
			return nil, fmt.Errorf("prepare files of %s: %w", f.name, err)
		}
		out[f.name] = Source{Path: path, ReadOnly: true}
	}
	return out, nil
}

func (m *Manager) prepare(dir string, v *group.Volume, spec *group.Spec) (Source, error) {
	path := filepath.Join(dir, v.Name)
	switch {
	case v.EmptyDir != nil && v.EmptyDir.Memory:
		size := v.EmptyDir.SizeLimit
		if size == 0 {
			size = spec.Total().Memory
		}
		return Source{Path: path}, shared(path, spec.FSGroup, func() error { return mountTmpfs(path, size, 0o777) })
	case v.EmptyDir != nil:
		return Source{Path: path}, shared(path, spec.FSGroup, func() error { return makeDir(path) })
	case v.GitRepo != nil:
		clone, err := prepareClone(dir, v)
		return Source{Path: path, Clone: clone}, err
	case v.HostPath != nil:
		return m.hostPath(v.HostPath)
	case v.AzureFile != nil:
		src, err := m.share(v.Name, v.AzureFile)
		if err == nil && src.Path == "" {
			src, err = mountSMB(path, v.AzureFile)
		}
		return src, err
	}
	return Source{}, nil // files: written by the caller
}

// shared makes a directory and gives it to the group's own group, once: later it is the tenant's business.
func shared(path string, owners *int64, make func() error) error {
	made, err := os.Lstat(path)
	if err := errors.Join(ignoreMissing(err), make()); err != nil || owners == nil {
		return err
	}
	if made != nil && made.Mode()&os.ModeSetgid != 0 {
		return nil
	}
	if err := os.Lchown(path, -1, int(*owners)); err != nil {
		return err
	}
	return os.Chmod(path, 0o777|os.ModeSetgid)
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// makeDir makes a directory that any user of the group may write to, whatever the umask.
func makeDir(path string) error {
	if err := os.Mkdir(path, 0o777); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	} else if err != nil {
		return nil // its mode is the tenant's business now
	}
	return os.Chmod(path, 0o777)
}

func checkName(name string) error {
	if name == "" || strings.HasPrefix(name, ".") || strings.ContainsAny(name, "/:\x00") {
		return fault.New(fault.Invalid, "", "volume name %q: use letters, digits and hyphens", name)
	}
	return nil
}

// mountTmpfs mounts a tmpfs unless there is one.
func mountTmpfs(path string, size int64, mode os.FileMode) error {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	mounted, err := isMount(path)
	if err != nil || mounted {
		return err
	}
	// gofail: var volumeBeforeMount struct{}
	opts := fmt.Sprintf("mode=%o", mode)
	if size > 0 { // else the kernel's default: half of the memory
		opts += fmt.Sprintf(",size=%d", max(size, int64(os.Getpagesize())))
	}
	if err := unix.Mount("tmpfs", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		return fmt.Errorf("mount tmpfs %s: %w", path, err)
	}
	return nil
}

// isMount says whether a directory is on another file system than the one it lies in.
func isMount(path string) (bool, error) {
	var here, parent unix.Stat_t
	if err := unix.Lstat(path, &here); err != nil {
		return false, fmt.Errorf("look at %s: %w", path, err)
	}
	if err := unix.Lstat(filepath.Dir(path), &parent); err != nil {
		return false, fmt.Errorf("look at %s: %w", filepath.Dir(path), err)
	}
	return here.Dev != parent.Dev, nil
}

// share finds a directory share. An empty path without error means: try SMB.
func (m *Manager) share(name string, f *group.AzureFile) (Source, error) {
	path, ok := m.shares[f.Share]
	if !ok {
		if hasFilesystem("cifs") {
			return Source{}, nil
		}
		known := make([]string, 0, len(m.shares))
		for s := range m.shares {
			known = append(known, s)
		}
		sort.Strings(known)
		return Source{}, fault.New(fault.Invalid, "InvalidVolume", "volume %s: share %q is not one of this platform's (%s), and the kernel has no SMB client to reach %s.file.core.windows.net: start the platform with --share %s=DIR",
			name, f.Share, strings.Join(known, ", "), f.Account, f.Share)
	}
	if fi, err := os.Stat(path); err != nil || !fi.IsDir() {
		return Source{}, fault.New(fault.Unavailable, "", "volume %s: directory %s of share %s is not there: mount or make it on the host", name, path, f.Share)
	}
	return Source{Path: path, ReadOnly: f.ReadOnly}, nil
}

func hasFilesystem(name string) bool {
	b, err := os.ReadFile("/proc/filesystems")
	return err == nil && strings.Contains(string(b), "\t"+name+"\n")
}

// Remove takes a group's volumes away: mounts, then files. Shares are untouched, for they are not below dir. A directory
// that is not there is fine.
func (m *Manager) Remove(_ context.Context, dir string) error {
	list, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove volumes: %w", err)
	}
	for _, e := range list {
		if err := unmount(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove volumes: %w", err)
		}
	}
	// gofail: var volumesUnmounted struct{}
	if err := os.RemoveAll(dir); err != nil { // does not follow links
		return fmt.Errorf("remove volumes: %w", err)
	}
	return nil
}

// unmount takes away every mount on a path.
func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
			return nil // not, or no longer, a mount
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// Sync removes the volumes of groups that are not kept. root holds one directory per group, named by its uid.
func (m *Manager) Sync(ctx context.Context, root string, keep map[string]bool) error {
	list, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list volumes: %w", err)
	}
	var errs []error
	for _, e := range list {
		if keep[e.Name()] {
			continue
		}
		m.log.InfoContext(ctx, "leftover volumes removed", "group", e.Name())
		errs = append(errs, m.Remove(ctx, filepath.Join(root, e.Name())))
	}
	return errors.Join(errs...)
}
