// Command image packs a directory or single files into a docker archive, for machines without a registry:
//
//	go run ./hack/image -o hello.tar -name hello:1 -file ./hello=/hello -- /hello
//
// The archive is what 'spillway image import', and 'docker load', take.
package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"runtime"
	"strings"
)

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	var names, files, env, entrypoint list
	f := flag.NewFlagSet("image", flag.ContinueOnError)
	out := f.String("o", "", "archive to write")
	f.Var(&names, "name", "name of the image; repeatable")
	user := f.String("user", "", "user that its programs run as")
	f.Var(&entrypoint, "entrypoint", "word of the entrypoint; repeatable")
	dir := f.String("dir", "", "directory that becomes the root")
	f.Var(&files, "file", "SRC=DEST: a file of this machine and its path in the image; repeatable")
	f.Var(&env, "env", "K=V: environment variable of the image; repeatable")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *out == "" || len(names) == 0 || *dir == "" && len(files) == 0 {
		return errors.New("needs -o, -name, and -dir or -file")
	}
	layer, err := pack(*dir, files)
	if err != nil {
		return err
	}
	w, err := os.Create(*out)
	if err != nil {
		return err
	}
	return errors.Join(write(w, names, layer, config(layer, settings{env, entrypoint, f.Args(), *user})), w.Close())
}

// pack makes the one layer.
func pack(dir string, files []string) ([]byte, error) {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	if dir != "" {
		if err := t.AddFS(os.DirFS(dir)); err != nil {
			return nil, fmt.Errorf("pack %s: %w", dir, err)
		}
	}
	for _, pair := range files {
		src, dest, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("-file %q: must be SRC=DEST", pair)
		}
		body, err := os.ReadFile(src)
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(src)
		if err != nil {
			return nil, err
		}
		h := &tar.Header{Name: strings.TrimPrefix(path.Clean(dest), "/"), Mode: int64(info.Mode().Perm()), Size: int64(len(body)), Typeflag: tar.TypeReg}
		if err := add(t, h, body); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), t.Close()
}

func add(t *tar.Writer, h *tar.Header, body []byte) error {
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err := t.Write(body)
	return err
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// settings are what an image says of its programs.
type settings struct {
	env, entrypoint, command []string
	user                     string
}

// config is the image's configuration.
func config(layer []byte, s settings) any {
	return map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Env": append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, s.env...),
			"Entrypoint": s.entrypoint, "Cmd": s.command, "User": s.user},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + sum(layer)}},
	}
}

// write makes the archive: configuration, layer, and the list that names them.
func write(w io.Writer, names []string, layer []byte, cfg any) error {
	body, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	configName, layerName := sum(body)+".json", sum(layer)+"/layer.tar"
	manifest, err := json.Marshal([]any{map[string]any{"Config": configName, "RepoTags": names, "Layers": []string{layerName}}})
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, e := range []struct {
		name string
		body []byte
	}{{configName, body}, {layerName, layer}, {"manifest.json", manifest}} {
		if err := add(t, &tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.body)), Typeflag: tar.TypeReg}, e.body); err != nil {
			return err
		}
	}
	return t.Close()
}
