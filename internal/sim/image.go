package sim

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// Images implements host.Images.
func (h *Host) Images(context.Context) ([]host.Image, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []host.Image
	for _, i := range h.images {
		out = append(out, i)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Ref < out[j].Ref })
	return out, nil
}

// PullImage implements host.Images. A reference that contains "missing" does not exist.
func (h *Host) PullImage(_ context.Context, ref string, _ []group.RegistryCredential, progress func(host.Progress)) (host.Image, error) {
	progress(host.Progress{Ref: ref, Phase: "resolving"})
	if strings.Contains(ref, "missing") {
		return host.Image{}, fault.New(fault.NotFound, "InaccessibleImage", "The image '%s' is not accessible. Please check the image and registry credential.", ref)
	}
	progress(host.Progress{Ref: ref, Phase: "done", Done: 10, Total: 10})
	return h.addImage(ref, 10), nil
}

func (h *Host) addImage(ref string, size int64) host.Image {
	sum := sha256.Sum256([]byte(ref))
	i := host.Image{Ref: ref, Digest: "sha256:" + hex.EncodeToString(sum[:]), Size: size}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.images[ref] = i
	return i
}

// ImportImage implements host.Images: the archive's first line is the image's reference.
func (h *Host) ImportImage(_ context.Context, r io.Reader) ([]host.Image, error) {
	br := bufio.NewReader(r)
	line, err := br.ReadString('\n')
	if err != nil {
		return nil, fault.New(fault.Invalid, "", "The archive is not an image archive.")
	}
	n, err := io.Copy(io.Discard, br)
	if err != nil {
		return nil, fmt.Errorf("read archive: %w", err)
	}
	return []host.Image{h.addImage(strings.TrimSpace(line), n)}, nil
}

// RemoveImage implements host.Images.
func (h *Host) RemoveImage(_ context.Context, ref string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, ok := h.images[ref]; !ok {
		return fault.New(fault.NotFound, "ImageNotFound", "The image '%s' is not on the host.", ref)
	}
	delete(h.images, ref)
	return nil
}

// log is the log of one container.
type log struct {
	name  string
	start time.Time
	done  chan struct{}
}

func newLog(name string) *log { return &log{name: name, start: time.Now(), done: make(chan struct{})} }

func (l *log) ended() bool {
	select {
	case <-l.done:
		return true
	default:
		return false
	}
}

func (l *log) write(ctx context.Context, opt host.LogOptions, w io.Writer) error {
	lines := []string{"hello from " + l.name, "ready"}
	switch {
	case opt.Tail < 0:
		lines = nil
	case opt.Tail > 0 && opt.Tail < len(lines):
		lines = lines[len(lines)-opt.Tail:]
	}
	stamp := ""
	if opt.Timestamps {
		stamp = l.start.UTC().Format(time.RFC3339Nano) + " "
	}
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, stamp+line); err != nil {
			return fmt.Errorf("write log: %w", err)
		}
	}
	if !opt.Follow {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-l.done:
	}
	_, err := fmt.Fprintln(w, stamp+"bye")
	return errors.Join(err, ctx.Err())
}
