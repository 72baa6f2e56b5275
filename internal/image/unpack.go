package image

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/unpack"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
)

// unpackAll walks from a descriptor to its layers, lets fetch bring each, and unpacks layers while others still come
// in. fetch may be nil when everything is here.
func (s *Store) unpackAll(ctx context.Context, desc ocispec.Descriptor, fetch images.Handler, p *progress) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := s.guardDisk(ctx, cancel)
	defer stop()
	var layers []ocispec.Descriptor
	children := images.SetChildrenMappedLabels(s.content, images.ChildrenHandler(s.content), images.ChildGCLabelsFilterLayers)
	children = images.LimitManifests(images.FilterPlatforms(children, s.match), s.match, 1)
	limited := images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		list, err := children(ctx, d)
		if err == nil && images.IsManifestType(d.MediaType) {
			layers = list
			err = s.checkManifest(p.ref, list)
		}
		return list, err
	})
	chain := []images.Handler{limited}
	if fetch != nil {
		chain = []images.Handler{fetch, limited}
	}
	unpacker, err := unpack.NewUnpacker(ctx, s.content, unpack.WithLimiter(s.fetches), unpack.WithUnpackLimiter(s.unpacks),
		unpack.WithDuplicationSuppressor(s.locks), unpack.WithUnpackPlatform(unpack.Platform{
			Platform: s.match, SnapshotterKey: snapshotterName, Snapshotter: s.snaps, SnapshotterCapabilities: []string{snapshots.RebaseCap},
			Applier: &applier{inner: apply.NewFileSystemApplier(s.content), p: p}, ApplyOpts: []diff.ApplyOpt{diff.WithSyncFs(true)},
		}))
	if err != nil {
		return fmt.Errorf("prepare unpacking: %w", err)
	}
	walkErr := images.Dispatch(ctx, unpacker.Unpack(images.Handlers(chain...)), nil, desc)
	if walkErr != nil {
		cancel(nil)
	}
	_, unpackErr := unpacker.Wait()
	if cause := context.Cause(ctx); cause != nil && cause != context.Canceled && fault.KindOf(cause) == fault.Exhausted {
		return cause
	}
	if walkErr != nil {
		return walkErr
	}
	if unpackErr != nil {
		return unpackErr
	}
	p.rest(layerTypes(layers))
	return nil
}

func layerTypes(list []ocispec.Descriptor) []ocispec.Descriptor {
	var out []ocispec.Descriptor
	for _, d := range list {
		if images.IsLayerType(d.MediaType) {
			out = append(out, d)
		}
	}
	return out
}

// checkManifest refuses what could not run or would fill the disk, before any layer is fetched.
func (s *Store) checkManifest(ref string, list []ocispec.Descriptor) error {
	var total int64
	layers := 0
	for _, d := range list {
		if d.Size < 0 {
			return fault.New(fault.Invalid, "InaccessibleImage", "image %s: its manifest gives blob %s a negative size", ref, d.Digest)
		}
		total += d.Size
		if images.IsLayerType(d.MediaType) {
			layers++
		}
	}
	if layers > MaxLayers {
		return fault.New(fault.Invalid, "InaccessibleImage", "image %s has %d layers; at most %d can be mounted: build it with fewer", ref, layers, MaxLayers)
	}
	if total > s.cfg.MaxSize || total < 0 {
		return fault.New(fault.Invalid, "InaccessibleImage", "image %s has %d bytes; this platform takes images of at most %d", ref, total, s.cfg.MaxSize)
	}
	return s.checkDisk(total)
}

// checkDisk refuses when fetching so many bytes would eat into the reserve.
func (s *Store) checkDisk(need int64) error {
	free, err := freeBytes(s.cfg.Root)
	if err != nil {
		return err
	}
	if free-need < s.cfg.Reserve {
		return fault.New(fault.Exhausted, "", "the disk of %s has %d MiB free and the image needs %d MiB on top of a reserve of %d MiB: free space or remove images with `spillway image rm`",
			s.cfg.Root, free>>20, need>>20, s.cfg.Reserve>>20)
	}
	return nil
}

func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("measure disk of %s: %w", dir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// guardDisk ends an unpacking that is about to fill the disk: a small layer can hold a very large file.
func (s *Store) guardDisk(ctx context.Context, cancel context.CancelCauseFunc) (stop func()) {
	var wg sync.WaitGroup
	ctx, end := context.WithCancel(ctx)
	wg.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if err := s.checkDisk(0); err != nil {
					cancel(err)
					return
				}
			}
		}
	})
	return func() { end(); wg.Wait() }
}

// applier unpacks one layer straight into its snapshot's directory: it never mounts.
type applier struct {
	inner diff.Applier
	p     *progress
}

// Apply unpacks a layer. A bind mount, which is how the lowest layer comes, is read as an overlay without lower
// directories: both mean "write here".
func (a *applier) Apply(ctx context.Context, d ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	a.p.layer(d, "unpacking", 0)
	if len(mounts) == 1 && mounts[0].Type == "bind" {
		mounts = []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"upperdir=" + mounts[0].Source}}}
	}
	got, err := a.inner.Apply(ctx, d, mounts, opts...)
	if err == nil {
		a.p.layer(d, "done", d.Size)
	}
	return got, err
}

// read is the configuration of an image and the compressed size of all of it, from what is in the content store.
func (s *Store) read(ctx context.Context, name string, target ocispec.Descriptor) (ocispec.Image, int64, error) {
	var config ocispec.Image
	manifest, err := images.Manifest(ctx, s.content, target, s.match)
	if err != nil {
		return config, 0, fmt.Errorf("read manifest: %w", err)
	}
	blob, err := content.ReadBlob(ctx, s.content, manifest.Config)
	if err != nil {
		return config, 0, fmt.Errorf("read configuration: %w", err)
	}
	if err := json.Unmarshal(blob, &config); err != nil {
		return config, 0, fault.New(fault.Invalid, "InaccessibleImage", "image %s: its configuration is not an image configuration: %v", name, err)
	}
	if !s.match.Match(platforms.Normalize(config.Platform)) && !s.match.Match(config.Platform) {
		return config, 0, fault.New(fault.Invalid, "OsVersionNotSupported", "image %s is for %s; this host is linux/%s: use an image built for it", name, platforms.Format(config.Platform), runtime.GOARCH)
	}
	size := manifest.Config.Size
	for _, l := range manifest.Layers {
		size += l.Size
	}
	return config, size, nil
}
