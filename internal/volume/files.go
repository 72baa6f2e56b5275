package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

// Files change all at once: they lie in a directory of their own, ..data is a link to it, and each visible name is a
// link through ..data. A change writes a new directory and moves ..data, as Kubernetes does.
const dataLink = "..data"

// fileVolume is a volume of named files.
type fileVolume struct {
	name  string
	group *int64 // owns the files beside their user
	files group.Files
	live  bool // changes while the group runs
}

// fileVolumes are a group's secrets, config maps and containers' config maps.
func fileVolumes(spec *group.Spec) []fileVolume {
	var out []fileVolume
	for _, v := range spec.Volumes {
		switch {
		case v.Secret != nil:
			out = append(out, fileVolume{name: v.Name, files: *v.Secret, group: spec.FSGroup, live: true})
		case v.ConfigMap != nil:
			out = append(out, fileVolume{name: v.Name, files: *v.ConfigMap, group: spec.FSGroup, live: true})
		}
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		if len(c.ConfigMap) == 0 {
			continue
		}
		data := map[string][]byte{}
		for k, v := range c.ConfigMap {
			data[k] = []byte(v)
		}
		out = append(out, fileVolume{name: ContainerConfigMap(c.Name), files: group.Files{Data: data}, live: true})
	}
	return out
}

// Update brings changed files into running groups and gives the names of the volumes that changed. Volumes that were
// not prepared are left out.
func (m *Manager) Update(_ context.Context, dir string, spec *group.Spec) ([]string, error) {
	var changed []string
	for _, f := range fileVolumes(spec) {
		if _, err := os.Lstat(filepath.Join(dir, filesDir, f.name)); !f.live || err != nil {
			continue
		}
		_, wrote, err := writeFiles(dir, f)
		if err != nil {
			return changed, fmt.Errorf("update volume %s: %w", f.name, err)
		}
		if wrote {
			changed = append(changed, f.name)
		}
	}
	return changed, nil
}

// writeFiles makes a volume hold exactly these files; it says whether anything changed. Containers get the directory
// read-only, so that nobody else writes there.
func writeFiles(dir string, v fileVolume) (string, bool, error) {
	if err := checkFiles(v); err != nil {
		return "", false, err
	}
	tmpfs := filepath.Join(dir, filesDir)
	if err := mountTmpfs(tmpfs, filesSize, 0o700); err != nil {
		return "", false, err
	}
	path := filepath.Join(tmpfs, v.name)
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", false, err
	}
	if err := os.Chmod(path, 0o755); err != nil {
		return "", false, err
	}
	current, _ := os.Readlink(filepath.Join(path, dataLink))
	if current != "" && sameFiles(filepath.Join(path, current), v) {
		return path, false, nil
	}
	fresh, err := writeGeneration(path, v)
	if err != nil {
		return "", false, err
	}
	if err := swapLink(path, dataLink, filepath.Base(fresh)); err != nil {
		return "", false, err
	}
	if err := linkNames(path, v.files); err != nil {
		return "", false, err
	}
	if current != "" {
		return path, true, os.RemoveAll(filepath.Join(path, current))
	}
	return path, true, nil
}

func checkFiles(v fileVolume) error {
	total := 0
	for name, data := range v.files.Data {
		total += len(data)
		if !filepath.IsLocal(name) || name == "." || name != filepath.Clean(name) || strings.HasPrefix(name, "..") || strings.Contains(name, "/..") {
			return fault.New(fault.Invalid, "", "volume %s: file name %q must be a relative path without '..'", v.name, name)
		}
	}
	if total > group.MaxSecretBytes {
		return fault.New(fault.Invalid, "", "volume %s: its files have %d bytes; at most %d are allowed", v.name, total, group.MaxSecretBytes)
	}
	return nil
}

func fileMode(f group.Files, name string) os.FileMode {
	if m, ok := f.Modes[name]; ok {
		return os.FileMode(m).Perm()
	}
	if f.Mode != 0 {
		return os.FileMode(f.Mode).Perm()
	}
	return group.DefaultFileMode
}

// writeGeneration writes all files into a new directory.
func writeGeneration(path string, v fileVolume) (string, error) {
	f := v.files
	fresh, err := os.MkdirTemp(path, "..gen-")
	if err != nil {
		return "", err
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return "", err
	}
	for name, data := range f.Data {
		full := filepath.Join(fresh, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(full, data, 0o600); err != nil {
			return "", err
		}
		mode, user, owners := fileMode(f, name), 0, 0
		if id, ok := f.Owners[name]; ok {
			user = int(id)
		}
		if v.group != nil {
			owners = int(*v.group)
			mode |= groupReads
		}
		if err := os.Lchown(full, user, owners); err != nil {
			return "", err
		}
		if err := os.Chmod(full, mode); err != nil {
			return "", err
		}
	}
	return fresh, nil
}

// groupReads lets the group's own group read a file.
const groupReads = 0o440

// swapLink points a link elsewhere in one step.
func swapLink(dir, name, target string) error {
	tmp := filepath.Join(dir, name+".new")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, name))
}

// linkNames makes the visible names equal to the files: one link per first path element.
func linkNames(path string, f group.Files) error {
	want := map[string]bool{}
	for name := range f.Data {
		first, _, _ := strings.Cut(name, "/")
		want[first] = true
	}
	list, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), "..") || want[e.Name()] {
			continue
		}
		if err := os.Remove(filepath.Join(path, e.Name())); err != nil {
			return err
		}
	}
	for name := range want {
		if err := os.Symlink(filepath.Join(dataLink, name), filepath.Join(path, name)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

// sameFiles compares a directory with files: names, bytes and modes.
func sameFiles(dir string, v fileVolume) bool {
	f, seen := v.files, 0
	extra := os.FileMode(0)
	if v.group != nil {
		extra = groupReads
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		data, ok := f.Data[name]
		info, err := d.Info()
		if err != nil {
			return err
		}
		have, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if !ok || info.Mode().Perm() != fileMode(f, name)|extra || !bytes.Equal(have, data) {
			return fs.ErrInvalid
		}
		seen++
		return nil
	})
	return err == nil && seen == len(f.Data)
}
