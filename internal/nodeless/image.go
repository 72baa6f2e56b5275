package nodeless

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"spillway.dev/spillway/internal/client"
)

// registry is in front of the images' names. It is nobody's: these images are made here, and never pulled.
const registry = "spillway.internal/"

// image is one static program as a container image of one layer. Its tag is its content: another build is another
// image, and the cluster replaces its pods.
type image struct {
	name  string
	file  *os.File // open as long as the image is offered: the path may get another program meanwhile
	size  int64
	layer string // digest
	bytes int64  // of the layer
	ref   string
}

func openImage(name, path string) (*image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	i := &image{name: name, file: f, size: info.Size()}
	h := sha256.New()
	count := &counter{w: h}
	if err := i.writeLayer(count); err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", path, err), f.Close())
	}
	const digits = 12
	i.layer, i.bytes = hex.EncodeToString(h.Sum(nil)), count.n
	i.ref = registry + name + ":" + i.layer[:digits]
	return i, nil
}

type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

// writeLayer writes the one layer: the program, at /NAME. The same program gives the same bytes.
func (i *image) writeLayer(w io.Writer) error {
	t := tar.NewWriter(w)
	if err := t.WriteHeader(&tar.Header{Name: i.name, Mode: 0o755, Size: i.size, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	if _, err := io.Copy(t, io.NewSectionReader(i.file, 0, i.size)); err != nil {
		return err
	}
	return t.Close()
}

// write writes the image as a docker archive: configuration, layer, and the list that names them.
func (i *image) write(w io.Writer) error {
	config, err := json.Marshal(map[string]any{"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/" + i.name}, "WorkingDir": "/"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + i.layer}}})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(config)
	configName, layerName := hex.EncodeToString(sum[:])+".json", i.layer+"/layer.tar"
	manifest, err := json.Marshal([]any{map[string]any{"Config": configName, "RepoTags": []string{i.ref}, "Layers": []string{layerName}}})
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, e := range []struct {
		name string
		size int64
		body io.Reader // nil: the layer
	}{{configName, int64(len(config)), bytes.NewReader(config)}, {layerName, i.bytes, nil}, {"manifest.json", int64(len(manifest)), bytes.NewReader(manifest)}} {
		if err := t.WriteHeader(&tar.Header{Name: e.name, Mode: 0o644, Size: e.size, Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		if e.body == nil {
			err = i.writeLayer(t)
		} else {
			_, err = io.Copy(t, e.body)
		}
		if err != nil {
			return err
		}
	}
	return t.Close()
}

// images are those that a cluster's add-ons run.
type images map[string]*image

// openImages makes an image of each program that is there.
func openImages(paths map[string]string) (images, error) {
	all := images{}
	for name, path := range paths {
		if path == "" {
			continue
		}
		i, err := openImage(name, path)
		if err != nil {
			all.close()
			return nil, err
		}
		all[name] = i
	}
	return all, nil
}

func (all images) close() {
	for _, i := range all {
		i.file.Close()
	}
}

// flag is how the control plane is told of them.
func (all images) flag() string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list = append(list, name+"="+all[name].ref)
	}
	return strings.Join(list, ",")
}

// Times of keep: the platform may remove images that nobody uses, when its disk is full.
const (
	imageRetry = 2 * time.Second
	imageCheck = time.Minute
)

// keep sees to it that the platform has the images.
func (all images) keep(ctx context.Context, config string, log *slog.Logger) {
	for ctx.Err() == nil {
		next := imageCheck
		if err := all.offer(ctx, config); err != nil && ctx.Err() == nil {
			log.Warn("images of the cluster's add-ons", "error", err)
			next = imageRetry
		}
		pause(ctx, next)
	}
}

// offer imports what the platform lacks.
func (all images) offer(ctx context.Context, config string) error {
	cfg, err := client.LoadConfig(config)
	if err != nil {
		return err
	}
	api, err := client.New(*cfg)
	if err != nil {
		return err
	}
	defer api.Close()
	have, err := api.Images(ctx)
	if err != nil {
		return err
	}
	for _, i := range all {
		if slices.ContainsFunc(have, func(h client.HostImage) bool { return h.Ref == i.ref }) {
			continue
		}
		r, w := io.Pipe()
		go func() { w.CloseWithError(i.write(w)) }()
		_, err := api.ImportImage(ctx, r)
		r.Close() // lets the writer go, whatever has been read
		if err != nil {
			return fmt.Errorf("import %s: %w", i.ref, err)
		}
	}
	return nil
}
