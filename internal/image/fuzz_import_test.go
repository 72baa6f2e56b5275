package image

import (
	"bytes"
	"context"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"spillway.dev/spillway/internal/fault"
)

// FuzzImport feeds archives to the importer: whatever they hold, the answer is an image or a refusal, never a fault of
// ours, and nothing is left in the way of the next one.
func FuzzImport(f *testing.F) {
	img := build(f, "amd64", layer(f, file("hello", "x")))
	path := filepath.Join(f.TempDir(), "docker.tar")
	tag, err := name.NewTag("sample:3")
	if err != nil {
		f.Fatal(err)
	}
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		f.Fatal(err)
	}
	whole := read(f, path)
	f.Add(whole)
	f.Add(whole[:len(whole)/2])
	f.Add(gzipped(f, whole))
	f.Add([]byte("not a tar"))
	f.Add([]byte{})
	s := open(f, Config{})
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := s.Import(context.Background(), bytes.NewReader(data)); err != nil && fault.KindOf(err) == fault.Internal {
			t.Errorf("import = %v, want a refusal that says what is wrong with the archive", err)
		}
	})
}
