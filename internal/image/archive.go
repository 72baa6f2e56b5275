package image

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/host"
)

// unnamed is the repository of imported images whose archive names none.
const unnamed = "docker.io/library/imported"

// Import reads a docker archive or an OCI archive, compressed or not, and gives the images in it. They belong to all
// tenants: importing is the operator's business.
func (s *Store) Import(ctx context.Context, r io.Reader) ([]Image, error) {
	ctx = s.context(ctx)
	if err := s.checkDisk(0); err != nil {
		return nil, err
	}
	key := rand.Text()
	ctx, release, err := s.lease(ctx, "import "+key)
	if err != nil {
		return nil, err
	}
	out, err := s.importAll(ctx, ownKeys{s.content, key}, r)
	if releaseErr := release(); err == nil {
		err = releaseErr
	}
	if err != nil {
		if _, ok := err.(*fault.Error); ok {
			return nil, err
		}
		return nil, fmt.Errorf("import images: %w", err)
	}
	return out, nil
}

func (s *Store) importAll(ctx context.Context, blobs content.Store, r io.Reader) ([]Image, error) {
	plain, err := compression.DecompressStream(r)
	if err != nil {
		return nil, fault.New(fault.Invalid, "", "the archive cannot be read: %v", err)
	}
	defer plain.Close()
	desc, err := archive.ImportIndex(ctx, blobs, io.LimitReader(plain, s.cfg.MaxSize))
	if err != nil {
		return nil, fault.New(fault.Invalid, "", "this is neither a docker archive (docker save) nor an OCI archive: %v", err)
	}
	blob, err := content.ReadBlob(ctx, s.content, desc)
	if err != nil {
		return nil, fmt.Errorf("read index: %w", err)
	}
	var index ocispec.Index
	if err := json.Unmarshal(blob, &index); err != nil {
		return nil, fault.New(fault.Invalid, "", "the archive's index.json cannot be read: %v", err)
	}
	if len(index.Manifests) == 0 {
		return nil, fault.New(fault.Invalid, "", "the archive holds no image")
	}
	var out []Image
	for _, m := range index.Manifests {
		if m.Platform != nil && !s.match.Match(*m.Platform) && !images.IsIndexType(m.MediaType) {
			continue
		}
		name, err := importName(m)
		if err != nil {
			return out, err
		}
		m.Annotations, m.Platform = nil, nil
		if err := s.unpackAll(ctx, m, nil, newProgress(name, func(host.Progress) {})); err != nil {
			return out, fmt.Errorf("unpack %s: %w", name, err)
		}
		img, err := s.record(ctx, name, m, origin{access: access{all: true}, imported: true})
		if err != nil {
			return out, err
		}
		out = append(out, img)
	}
	if len(out) == 0 {
		return nil, fault.New(fault.Invalid, "OsVersionNotSupported", "the archive holds no image for this host's platform")
	}
	return out, nil
}

// ownKeys is the content store for one import. The library writes files under their names in the archive: two archives
// that arrive at the same moment have the same ones.
type ownKeys struct {
	content.Store
	key string
}

// Writer implements content.Ingester.
func (o ownKeys) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var w content.WriterOpts
	for _, opt := range opts {
		if err := opt(&w); err != nil {
			return nil, err
		}
	}
	return o.Store.Writer(ctx, content.WithRef("import-"+o.key+"-"+w.Ref), content.WithDescriptor(w.Desc))
}

// importName is what an archive calls an image. A bare tag or nothing gets a repository of its own.
func importName(m ocispec.Descriptor) (string, error) {
	name := m.Annotations[images.AnnotationImageName]
	if name == "" {
		name = m.Annotations[ocispec.AnnotationRefName]
	}
	switch {
	case name == "":
		return unnamed + "@" + m.Digest.String(), nil
	case !strings.ContainsAny(name, "/:@"):
		return canonical(unnamed + ":" + name)
	}
	return canonical(name)
}
