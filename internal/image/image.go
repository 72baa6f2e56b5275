// Package image keeps container images on a host: it pulls, verifies, unpacks, imports, lists and collects them.
//
// It stands on containerd's core libraries, in this process: a content store, overlay snapshots and a metadata
// database with leases and garbage collection. A snapshot chain stays committed for every image, so that the layer
// directories of an image are known without asking anybody: Lookup, which lies on the start path, reads memory only.
//
// An image that needed credentials belongs to the tenants that showed theirs; an image that anybody could pull, or that
// the operator imported, belongs to all. Blobs are shared between images by digest: who knows the digest of a blob and
// can name it in a manifest of his own registry can use it, as in other engines.
//
// It must never mount anything, run a program, or touch a file outside its root. Start reading at Open and Ensure.
package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/containerd/log"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"
	"go.etcd.io/bbolt"
	"golang.org/x/sync/semaphore"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// Limits.
const (
	MaxLayers       = 127       // lower directories that one overlay mount takes safely
	MaxDocument     = 8 << 20   // bytes of a manifest, index or configuration
	DefaultMaxSize  = 15 << 30  // bytes of an image, compressed: Azure's limit
	DefaultReserve  = 512 << 20 // bytes of disk that unpacking leaves free
	fetchesAtOnce   = 6         // layers in download, over all pulls
	unpacksAtOnce   = 2         // layers in unpacking, over all pulls: they are processor-bound
	resumeTime      = 24 * time.Hour
	namespace       = "spillway"
	snapshotterName = "overlayfs"
)

// Config says where images are and how registries are reached.
type Config struct {
	Root      string
	Mirrors   map[string][]string // registry host → URLs that are tried first
	PlainHTTP []string            // registry hosts without TLS; loopback needs no entry
	MaxSize   int64               // bytes, compressed; 0: DefaultMaxSize
	Reserve   int64               // bytes of disk that stay free; 0: DefaultReserve
	Log       *slog.Logger
}

// Image is an unpacked image. It must not be changed by readers.
type Image struct {
	Ref     string // canonical: docker.io/library/nginx:latest
	Digest  string // what the reference resolved to
	Size    int64  // bytes, compressed
	Created time.Time
	Layers  []string // lower directories, topmost first, ready for an overlay mount; one at least
	Config  ocispec.ImageConfig

	chain string // of the snapshots
	origin
}

// Store is the images of one host. All methods are safe for concurrent use.
type Store struct {
	cfg       Config
	log       *slog.Logger
	db        *metadata.DB
	bolt      *bbolt.DB
	content   content.Store
	snaps     snapshots.Snapshotter
	raw       snapshots.Snapshotter
	images    images.Store
	recording sync.Mutex // records of images: two may arrive for one name
	leases    leases.Manager
	match     platforms.MatchComparer

	fetches *semaphore.Weighted
	unpacks *semaphore.Weighted
	locks   *keyedLocks
	flights *flights

	mu    sync.RWMutex // guards known
	known map[string]*entry
}

type entry struct {
	image Image
	used  atomic.Int64 // unix nanoseconds of the last Lookup
}

// Open reads the store, or makes an empty one.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if strings.ContainsAny(cfg.Root, ":,") || !filepath.IsAbs(cfg.Root) {
		return nil, fault.New(fault.Invalid, "", "image directory %q must be absolute and without ':' and ',': overlay mounts cannot name it otherwise", cfg.Root)
	}
	if cfg.MaxSize == 0 {
		cfg.MaxSize = DefaultMaxSize
	}
	if cfg.Reserve == 0 {
		cfg.Reserve = DefaultReserve
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{
		cfg: cfg, log: cfg.Log, known: map[string]*entry{},
		match:   lenient{platforms.Only(platforms.Normalize(ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}))},
		fetches: semaphore.NewWeighted(fetchesAtOnce), unpacks: semaphore.NewWeighted(unpacksAtOnce),
		locks: newKeyedLocks(), flights: newFlights(),
	}
	if err := s.open(s.context(ctx)); err != nil {
		return nil, errors.Join(fmt.Errorf("open image store %s: %w", cfg.Root, err), s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	if err := os.MkdirAll(s.cfg.Root, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	// The content store warns on every file system without fs-verity, through a logger that no context reaches.
	if err := log.SetLevel("error"); err != nil {
		return fmt.Errorf("set library log level: %w", err)
	}
	blobs, err := local.NewStore(filepath.Join(s.cfg.Root, "content"))
	if err != nil {
		return fmt.Errorf("open content: %w", err)
	}
	if s.raw, err = overlay.NewSnapshotter(filepath.Join(s.cfg.Root, "snapshots")); err != nil {
		return fmt.Errorf("open snapshots: %w", err)
	}
	opts := *bbolt.DefaultOptions
	opts.Timeout = 5 * time.Second
	if s.bolt, err = bbolt.Open(filepath.Join(s.cfg.Root, "meta.db"), 0o600, &opts); err != nil {
		return fmt.Errorf("open database (is another process using it?): %w", err)
	}
	s.db = metadata.NewDB(s.bolt, blobs, map[string]snapshots.Snapshotter{snapshotterName: s.raw})
	if err := s.db.Init(ctx); err != nil {
		return fmt.Errorf("prepare database: %w", err)
	}
	s.content, s.snaps = s.db.ContentStore(), s.db.Snapshotter(snapshotterName)
	s.images, s.leases = metadata.NewImageStore(s.db), metadata.NewLeaseManager(s.db)
	return s.load(ctx)
}

// Close ends pulls and closes the store; layer directories stay as they are.
func (s *Store) Close() error {
	s.flights.close()
	var errs []error
	if s.raw != nil {
		errs = append(errs, s.raw.Close())
	}
	if s.bolt != nil {
		errs = append(errs, s.bolt.Close())
	}
	return errors.Join(errs...)
}

// context carries what containerd's libraries look for: a namespace, and a logger that stays silent. What matters of
// their messages comes back as errors.
func (s *Store) context(ctx context.Context) context.Context {
	quiet := logrus.New()
	quiet.SetOutput(io.Discard)
	return log.WithLogger(namespaces.WithNamespace(ctx, namespace), logrus.NewEntry(quiet))
}

// Lookup finds an image that a tenant may use. It does no IO.
func (s *Store) Lookup(ref, tenant string) (Image, bool) {
	name, err := canonical(ref)
	if err != nil {
		return Image{}, false
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, ok := s.known[name]
	if !ok || !e.image.access.allows(tenant) {
		return Image{}, false
	}
	e.used.Store(time.Now().UnixNano())
	return e.image, true
}

// Request asks for an image on behalf of a tenant.
type Request struct {
	Ref         string
	Tenant      string // whose credentials these are: a subscription
	Credentials []group.RegistryCredential
	Progress    func(host.Progress) // may be nil; called from several goroutines, one at a time
}

// Ensure gives an image that is here, or pulls it. Requests for one image at the same time pull once.
// Errors: *fault.Error with code InaccessibleImage or RegistryErrorResponse, exhausted when the disk is full.
func (s *Store) Ensure(ctx context.Context, req Request) (Image, error) {
	if img, ok := s.Lookup(req.Ref, req.Tenant); ok {
		return img, nil
	}
	return s.Pull(ctx, req)
}

// Images lists what is here, by reference.
func (s *Store) Images() []Image {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]Image, 0, len(s.known))
	for _, e := range s.known {
		out = append(out, e.image)
	}
	sortImages(out)
	return out
}

// Get finds an image by reference or digest, whoever may use it: for operators.
func (s *Store) Get(ref string) (Image, bool) {
	name, err := canonical(ref)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e, ok := s.known[name]; ok && err == nil {
		return e.image, true
	}
	for _, e := range s.known {
		if e.image.Digest == ref {
			return e.image, true
		}
	}
	return Image{}, false
}

// put makes an image visible.
func (s *Store) put(img Image) {
	e := &entry{image: img}
	e.used.Store(time.Now().UnixNano())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[img.Ref] = e
}
