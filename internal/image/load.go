package image

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// record writes what a reference means now, and makes the image visible. Who could use the same content before still can.
func (s *Store) record(ctx context.Context, name string, target ocispec.Descriptor, from origin) (Image, error) {
	if old, ok := s.Get(name); ok && old.Digest == target.Digest.String() {
		from = old.origin.and(from)
	}
	img, err := s.build(ctx, name, target, from)
	if err != nil {
		return Image{}, err
	}
	s.recording.Lock()
	defer s.recording.Unlock()
	rec := images.Image{Name: name, Target: target, Labels: from.labels()}
	_, err = s.images.Update(ctx, rec)
	if errdefs.IsNotFound(err) {
		_, err = s.images.Create(ctx, rec)
	}
	if err != nil {
		return Image{}, fmt.Errorf("record image: %w", err)
	}
	s.put(img)
	return img, nil
}

// load makes every recorded image visible. One that cannot be read is forgotten: the next use pulls it again.
func (s *Store) load(ctx context.Context) error {
	list, err := s.images.List(ctx)
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	for _, rec := range list {
		img, err := s.build(ctx, rec.Name, rec.Target, parseOrigin(rec.Labels))
		if err != nil {
			s.log.WarnContext(ctx, "image forgotten", "image", rec.Name, "error", err)
			if err := s.images.Delete(ctx, rec.Name); err != nil {
				return fmt.Errorf("forget image %s: %w", rec.Name, err)
			}
			continue
		}
		s.put(img)
		s.known[rec.Name].used.Store(rec.UpdatedAt.UnixNano())
	}
	return nil
}

// build reads an image from the stores and finds its layer directories.
func (s *Store) build(ctx context.Context, name string, target ocispec.Descriptor, from origin) (Image, error) {
	config, size, err := s.read(ctx, name, target)
	if err != nil {
		return Image{}, err
	}
	img := Image{Ref: name, Digest: target.Digest.String(), Size: size, Config: config.Config, origin: from}
	if config.Created != nil {
		img.Created = *config.Created
	}
	img.chain = identity.ChainID(config.RootFS.DiffIDs).String()
	if img.Layers, err = s.layers(ctx, img.chain); err != nil {
		return Image{}, fmt.Errorf("find layers: %w", err)
	}
	return img, nil
}

// layers are the directories of a snapshot chain. A view of the chain keeps them where they are until removeView.
func (s *Store) layers(ctx context.Context, chain string) ([]string, error) {
	key := viewKey(chain)
	mounts, err := s.snaps.Mounts(ctx, key)
	if errdefs.IsNotFound(err) {
		pinned := snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "image"})
		mounts, err = s.snaps.View(ctx, key, chain, pinned)
		if errdefs.IsAlreadyExists(err) {
			mounts, err = s.snaps.Mounts(ctx, key)
		}
	}
	if err != nil {
		return nil, err
	}
	return directories(mounts)
}

func viewKey(chain string) string { return "view-" + chain }

// directories reads the layer directories out of a view's mount: one layer comes as a bind mount, more as an overlay.
func directories(mounts []mount.Mount) ([]string, error) {
	if len(mounts) != 1 {
		return nil, fmt.Errorf("view has %d mounts, want 1", len(mounts))
	}
	if mounts[0].Type == "bind" {
		return []string{mounts[0].Source}, nil
	}
	for _, o := range mounts[0].Options {
		if dirs, ok := strings.CutPrefix(o, "lowerdir="); ok {
			return strings.Split(dirs, ":"), nil
		}
	}
	return nil, fmt.Errorf("view of type %s has no lower directories", mounts[0].Type)
}
