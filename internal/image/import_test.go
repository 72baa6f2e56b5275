package image

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// TestImportsAtOnce: the same archive several times, beside an upload that does not go on.
func TestImportsAtOnce(t *testing.T) {
	img := build(t, "amd64", layer(t, file("hello", "x")), layer(t, file("more", "y")))
	path := filepath.Join(t.TempDir(), "docker.tar")
	tag, err := name.NewTag("sample:3")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	data := read(t, path)
	s := open(t, Config{})
	var all sync.WaitGroup
	stalled, more := io.Pipe()
	all.Go(func() {
		if _, err := s.Import(context.Background(), stalled); err == nil {
			t.Error("an upload that broke off was imported")
		}
	})
	if _, err := more.Write(data[:len(data)/2]); err != nil {
		t.Fatal(err)
	}
	var imports sync.WaitGroup
	for range 6 {
		imports.Go(func() {
			got, err := s.Import(context.Background(), bytes.NewReader(data))
			if err != nil || len(got) != 1 || len(got[0].Layers) != 2 {
				t.Errorf("import = %+v, %v, want one image of 2 layers", got, err)
			}
		})
	}
	imports.Wait()
	if err := more.CloseWithError(io.ErrUnexpectedEOF); err != nil {
		t.Fatal(err)
	}
	all.Wait()
}
