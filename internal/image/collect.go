package image

import (
	"context"
	"fmt"
	"sort"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"spillway.dev/spillway/internal/fault"
)

// CollectOptions say when to collect and what to spare.
type CollectOptions struct {
	InUse func(digest string) bool // images that groups use; never removed
	Free  int64                    // bytes of disk that should be free: nothing is removed while there are
}

// Collect removes unused images, those that were not used for the longest time first, until enough of the disk is
// free. What was imported stays, as nobody could bring it back. It gives the references it removed.
func (s *Store) Collect(ctx context.Context, opt CollectOptions) ([]string, error) {
	var removed []string
	for _, img := range s.byAge() {
		free, err := freeBytes(s.cfg.Root)
		if err != nil || free >= opt.Free {
			return removed, err
		}
		if img.imported || opt.InUse(img.Digest) {
			continue
		}
		if err := s.remove(s.context(ctx), img); err != nil {
			return removed, err
		}
		s.log.InfoContext(ctx, "image collected", "image", img.Ref, "free", free)
		removed = append(removed, img.Ref)
	}
	return removed, nil
}

func (s *Store) byAge() []Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	used := map[string]int64{}
	var out []Image
	for ref, e := range s.known {
		used[ref] = e.used.Load()
		out = append(out, e.image)
	}
	sort.Slice(out, func(i, j int) bool { return used[out[i].Ref] < used[out[j].Ref] })
	return out
}

// Remove forgets a reference and frees what no other image needs. Whoever calls it makes sure that no group uses the
// image. Errors: not-found.
func (s *Store) Remove(ctx context.Context, ref string) error {
	img, ok := s.Get(ref)
	if !ok {
		return fault.New(fault.NotFound, "", "image %s is not on this host; `spillway image ls` shows what is", ref)
	}
	return s.remove(s.context(ctx), img)
}

func (s *Store) remove(ctx context.Context, img Image) error {
	s.mu.Lock()
	delete(s.known, img.Ref)
	shared := false
	for _, e := range s.known {
		shared = shared || e.image.chain == img.chain
	}
	s.mu.Unlock()
	if err := s.images.Delete(ctx, img.Ref); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove image %s: %w", img.Ref, err)
	}
	if !shared {
		if err := s.snaps.Remove(ctx, viewKey(img.chain)); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove layers of image %s: %w", img.Ref, err)
		}
	}
	if _, err := s.db.GarbageCollect(ctx); err != nil {
		return fmt.Errorf("free space of image %s: %w", img.Ref, err)
	}
	return nil
}

// Usage is the bytes that images take on disk: unpacked layers and stored blobs.
func (s *Store) Usage(ctx context.Context) (int64, error) {
	ctx = s.context(ctx)
	var total int64
	err := s.snaps.Walk(ctx, func(ctx context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			return nil
		}
		u, err := s.snaps.Usage(ctx, info.Name)
		if err != nil && !errdefs.IsNotFound(err) {
			return err
		}
		total += u.Size
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("measure layers: %w", err)
	}
	err = s.content.Walk(ctx, func(info content.Info) error {
		total += info.Size
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("measure blobs: %w", err)
	}
	return total, nil
}
