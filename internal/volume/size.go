package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"spillway.dev/spillway/internal/group"
)

// Excess is a disk volume that is larger than its limit.
type Excess struct {
	Volume string
	Size   int64
	Limit  int64
}

// Measure finds the disk volumes of a group that are over their size limit. The limit is kept by measuring now and
// then, as Kubernetes does: a group can be over it for a while, and is then to be stopped. Volumes in memory need no
// measuring: the kernel refuses what is too much.
func (m *Manager) Measure(ctx context.Context, dir string, spec *group.Spec) ([]Excess, error) {
	var out []Excess
	for _, v := range spec.Volumes {
		if v.EmptyDir == nil || v.EmptyDir.Memory || v.EmptyDir.SizeLimit == 0 {
			continue
		}
		size, err := Size(ctx, filepath.Join(dir, v.Name))
		if err != nil {
			return out, err
		}
		if size > v.EmptyDir.SizeLimit {
			out = append(out, Excess{Volume: v.Name, Size: size, Limit: v.EmptyDir.SizeLimit})
		}
	}
	return out, nil
}

// Size is the disk space that a directory takes: blocks, hard links once, links not followed, also not while a tenant
// changes the directory at the same time. A directory that is not there takes none.
func Size(ctx context.Context, dir string) (int64, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	defer root.Close()
	const block = 512
	var total int64
	seen := map[uint64]bool{}
	err = fs.WalkDir(root.FS(), ".", func(_ string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return nil // went away, or cannot be opened any more: what is left is measured
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok && !(st.Nlink > 1 && !d.IsDir() && seen[st.Ino]) {
			seen[st.Ino] = st.Nlink > 1
			total += st.Blocks * block
		}
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("measure %s: %w", dir, err)
	}
	return total, nil
}
