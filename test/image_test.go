package test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"

	refs "github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// entry is a file of an image: a link when link is set, a directory when dir is.
type entry struct {
	path, body, link string
	dir              bool
	mode             int64
	from             string // file of this machine
	uid              int
}

// layerOf packs entries.
func layerOf(entries ...entry) (v1.Layer, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{Name: e.path, Mode: e.mode, Typeflag: tar.TypeReg, Uid: e.uid, Gid: e.uid}
		body := []byte(e.body)
		switch {
		case e.link != "":
			h.Typeflag, h.Linkname = tar.TypeSymlink, e.link
		case e.dir:
			h.Typeflag, h.Name = tar.TypeDir, e.path+"/"
		case e.from != "":
			var err error
			if body, err = os.ReadFile(e.from); err != nil {
				return nil, err
			}
		}
		h.Size = int64(len(body))
		if h.Mode == 0 {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(body); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
}

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/home/web:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"
	groups = "root:x:0:\nweb:x:1000:\nextra:x:2000:web\nnogroup:x:65534:\n"
)

// busyboxPath is Debian's static busybox.
const busyboxPath = "/usr/bin/busybox"

func busyboxImage(extra ...entry) (v1.Image, error) {
	if _, err := os.Stat(busyboxPath); err != nil {
		return nil, fmt.Errorf("busybox is missing: apt-get install busybox-static")
	}
	entries := []entry{{path: "bin", dir: true}, {path: "bin/busybox", from: busyboxPath}, {path: "etc", dir: true},
		{path: "etc/passwd", body: passwd, mode: 0o644}, {path: "etc/group", body: groups, mode: 0o644},
		{path: "tmp", dir: true, mode: 0o1777}, {path: "root", dir: true, mode: 0o700}, {path: "home/web", dir: true, uid: 1000}}
	for _, applet := range applets {
		entries = append(entries, entry{path: "bin/" + applet, link: "busybox"})
	}
	base, err := layerOf(entries...)
	if err != nil {
		return nil, err
	}
	layers := []v1.Layer{base}
	if len(extra) > 0 {
		top, err := layerOf(extra...)
		if err != nil {
			return nil, err
		}
		layers = append(layers, top)
	}
	return imageOf(v1.Config{Cmd: []string{"/bin/sh"}, Env: []string{"PATH=/bin", "FROM_IMAGE=yes"}}, layers...)
}

var applets = []string{"sh", "cat", "echo", "env", "id", "ls", "sleep", "kill", "ps", "grep", "head", "tail", "wc", "yes", "dd", "mkdir", "rm",
	"touch", "chmod", "stat", "mount", "nc", "wget", "httpd", "nslookup", "ping", "hostname", "true", "false", "seq", "stty", "sync", "date", "tty",
	"ln", "readlink", "find", "mknod", "chown", "ip", "sort", "cut", "tr", "test", "ipcs", "df", "usleep", "md5sum", "uname", "sed", "awk", "printf", "nproc", "sysctl"}

func imageOf(cfg v1.Config, layers ...v1.Layer) (v1.Image, error) {
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.Config, file.OS, file.Architecture = cfg, "linux", runtime.GOARCH
	return mutate.ConfigFile(img, file)
}

// archive writes an image as a docker archive.
func archive(ref string, img v1.Image) (string, error) {
	tag, err := refs.NewTag(ref)
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(work, "image-*.tar")
	if err != nil {
		return "", err
	}
	defer f.Close()
	return f.Name(), tarball.Write(tag, img, f)
}

// busybox is the archive of the image that most tests use.
var busybox = sync.OnceValues(func() (string, error) {
	img, err := busyboxImage()
	if err != nil {
		return "", err
	}
	return archive(image, img)
})

// tree packs a directory of this machine into a layer.
func tree(root string) (v1.Layer, error) {
	f, err := os.CreateTemp(work, "layer-*.tar")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		return pack(w, root, path, d)
	})
	if err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return tarball.LayerFromFile(f.Name())
}

func pack(w *tar.Writer, root, path string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	if h.Name, err = filepath.Rel(root, path); err != nil {
		return err
	}
	if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(w, in)
	return err
}
