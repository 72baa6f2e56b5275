package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/host"
)

// Pull asks the registry what a reference means now and fetches what is missing of it. A pull that broke off leaves
// its parts for a day; the next one goes on from there.
func (s *Store) Pull(ctx context.Context, req Request) (Image, error) {
	name, err := canonical(req.Ref)
	if err != nil {
		return Image{}, err
	}
	key := name
	for _, c := range req.Credentials {
		if serverName(c.Server) == serverName(registryOf(name)) {
			key = name + "\x00" + req.Tenant + "\x00" + c.Username + "\x00" + c.Password
		}
	}
	img, err := s.flights.do(ctx, key, req.Progress, func(ctx context.Context, progress func(host.Progress)) (Image, error) {
		img, err := s.pull(s.context(ctx), name, req, progress)
		if err != nil {
			return Image{}, classify(req.Ref, err)
		}
		return img, nil
	})
	if err != nil {
		return Image{}, fmt.Errorf("pull image %s: %w", req.Ref, err)
	}
	return img, nil
}

func (s *Store) pull(ctx context.Context, name string, req Request, tell func(host.Progress)) (Image, error) {
	start := time.Now()
	p := newProgress(req.Ref, tell)
	p.say(host.Progress{Phase: "resolving"})
	if err := s.checkDisk(0); err != nil {
		return Image{}, err
	}
	var used atomic.Bool
	resolver := docker.NewResolver(docker.ResolverOptions{Hosts: s.hosts(req.Credentials, &used)})
	resolved, desc, err := resolver.Resolve(ctx, name)
	if err != nil {
		return Image{}, err
	}
	fetcher, err := resolver.Fetcher(ctx, resolved)
	if err != nil {
		return Image{}, err
	}
	ctx, release, err := s.lease(ctx, name)
	if err != nil {
		return Image{}, err
	}
	// gofail: var pullLeased struct{}
	handler := images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if err := s.fetch(ctx, fetcher, d, p); err != nil {
			return nil, fmt.Errorf("fetch %s: %w", d.Digest, err)
		}
		return nil, nil
	})
	if err := s.unpackAll(ctx, desc, handler, p); err != nil {
		return Image{}, err
	}
	// gofail: var pullUnpacked struct{}
	who := access{all: true}
	if used.Load() {
		who = only(req.Tenant)
	}
	img, err := s.record(ctx, name, desc, origin{access: who})
	if err != nil {
		return Image{}, err
	}
	// gofail: var pullRecorded struct{}
	if err := release(); err != nil {
		return Image{}, err
	}
	s.log.InfoContext(ctx, "image pulled", "image", name, "digest", img.Digest, "bytes", img.Size, "took", time.Since(start))
	return img, nil
}

// lease holds everything that a pull stores until the image's record does. A failed pull does not release it: that is
// what lets the next one resume.
func (s *Store) lease(ctx context.Context, name string) (context.Context, func() error, error) {
	l := leases.Lease{ID: "pull-" + digest.FromString(name).Encoded()}
	_, err := s.leases.Create(ctx, leases.WithID(l.ID), leases.WithExpiration(resumeTime))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, nil, fmt.Errorf("create lease: %w", err)
	}
	release := func() error {
		if err := s.leases.Delete(ctx, l); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("end lease: %w", err)
		}
		_, err := s.db.GarbageCollect(ctx) // compressed layers are no longer needed
		return err
	}
	return leases.WithLease(ctx, l.ID), release, nil
}

// fetch brings one blob into the content store, verified by its digest.
func (s *Store) fetch(ctx context.Context, from remotes.Fetcher, d ocispec.Descriptor, p *progress) error {
	document := images.IsManifestType(d.MediaType) || images.IsIndexType(d.MediaType) || images.IsConfigType(d.MediaType)
	if document && d.Size > MaxDocument {
		return fault.New(fault.Invalid, "InaccessibleImage", "image %s: its %s has %d bytes, more than the %d allowed", p.ref, d.MediaType, d.Size, MaxDocument)
	}
	if d.MediaType == images.MediaTypeDockerSchema1Manifest {
		return fault.New(fault.Invalid, "InaccessibleImage", "image %s has a manifest of version 1, which no engine supports any more: push it again with a current tool", p.ref)
	}
	d.URLs = nil // a manifest must not send the host to other servers
	d.Data = nil
	if document {
		p = nil
	}
	// gofail: var pullFetching struct{}
	err := remotes.Fetch(ctx, s.content, watched{from, p}, d)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// watched tells progress as a fetcher's bytes come in.
type watched struct {
	remotes.Fetcher
	p *progress
}

// Fetch opens a blob.
func (w watched) Fetch(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	rc, err := w.Fetcher.Fetch(ctx, d)
	if err != nil || w.p == nil {
		return rc, err
	}
	return &watchedReader{ReadCloser: rc, p: w.p, d: d}, nil
}

type watchedReader struct {
	io.ReadCloser
	p    *progress
	d    ocispec.Descriptor
	done int64
}

// Read counts.
func (r *watchedReader) Read(b []byte) (int, error) {
	n, err := r.ReadCloser.Read(b)
	r.done += int64(n)
	r.p.layer(r.d, "downloading", r.done)
	return n, err
}

// Seek is how a broken download goes on.
func (r *watchedReader) Seek(offset int64, whence int) (int64, error) {
	s, ok := r.ReadCloser.(io.Seeker)
	if !ok {
		return 0, errors.New("registry stream cannot be resumed")
	}
	at, err := s.Seek(offset, whence)
	r.done = at
	return at, err
}

// progress sends news of layers, not more often than people can read.
type progress struct {
	ref  string
	tell func(host.Progress)
	mu   sync.Mutex // guards last
	last map[digest.Digest]news
}

type news struct {
	phase string
	at    time.Time
}

const progressEvery = 100 * time.Millisecond

func newProgress(ref string, tell func(host.Progress)) *progress {
	return &progress{ref: ref, tell: tell, last: map[digest.Digest]news{}}
}

func (p *progress) say(m host.Progress) {
	m.Ref = p.ref
	p.tell(m)
}

func (p *progress) layer(d ocispec.Descriptor, phase string, done int64) {
	p.mu.Lock()
	now := time.Now()
	old := p.last[d.Digest]
	quiet := old.phase == phase && now.Sub(old.at) < progressEvery && done < d.Size
	if !quiet {
		p.last[d.Digest] = news{phase, now}
	}
	p.mu.Unlock()
	if !quiet {
		p.say(host.Progress{Layer: d.Digest.String(), Phase: phase, Done: done, Total: d.Size})
	}
}

// rest reports the layers of which nothing was heard: they were here before.
func (p *progress) rest(layers []ocispec.Descriptor) {
	for _, d := range layers {
		p.mu.Lock()
		_, heard := p.last[d.Digest]
		p.mu.Unlock()
		if !heard {
			p.layer(d, "exists", d.Size)
		}
	}
	p.say(host.Progress{Phase: "done", Detail: strings.TrimSpace(p.ref)})
}
