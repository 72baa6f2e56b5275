package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

func TestPullLayersAndConfig(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "app", build(t, "amd64", layer(t, file("a", "low"), file("b", "low"), file("gone", "x")), layer(t, file("a", "high"), file(".wh.gone", ""))))
	root := t.TempDir()
	s := open(t, Config{Root: root})
	var mu sync.Mutex
	phases := map[string]int{}
	img, err := s.Ensure(context.Background(), Request{Ref: ref, Progress: func(p host.Progress) { mu.Lock(); phases[p.Phase]++; mu.Unlock() }})
	if err != nil {
		t.Fatal(err)
	}
	if len(img.Layers) != 2 || img.Config.Cmd[0] != "/hello" || img.Config.User != "7" || !img.Created.Equal(time.Unix(1e9, 0)) || img.Ref != ref+":latest" {
		t.Errorf("image = %+v", img)
	}
	for i, want := range []string{"high", "low"} {
		if got, err := os.ReadFile(filepath.Join(img.Layers[i], "a")); string(got) != want {
			t.Errorf("layer %d has a = %q, %v, want %q (topmost first)", i, got, err, want)
		}
	}
	if fi, err := os.Lstat(filepath.Join(img.Layers[0], "gone")); err != nil || fi.Mode()&os.ModeCharDevice == 0 {
		t.Errorf("whiteout = %v, %v, want a character device", fi, err)
	}
	for _, p := range []string{"resolving", "downloading", "unpacking", "done"} {
		if phases[p] == 0 {
			t.Errorf("phases told = %v, want %s among them", phases, p)
		}
	}
	if _, ok := s.Lookup(ref, "anybody"); !ok {
		t.Error("a public image is not there for everybody")
	}
	s.Close()
	s = open(t, Config{Root: root})
	again, ok := s.Lookup(ref, "t")
	if !ok || strings.Join(again.Layers, ":") != strings.Join(img.Layers, ":") || again.Digest != img.Digest {
		t.Errorf("after reopening: %+v, %v, want %+v", again, ok, img)
	}
	if n := reg.count("GET", "/blobs/"); n != 3 {
		t.Errorf("blobs fetched = %d, want 3", n)
	}
}

func TestIndexGivesThisHostsPlatform(t *testing.T) {
	reg := newRegistry(t)
	idx := mutate.IndexMediaType(empty.Index, "application/vnd.oci.image.index.v1+json")
	for _, arch := range []string{"arm64", "amd64", "s390x"} {
		idx = mutate.AppendManifests(idx, mutate.IndexAddendum{Add: build(t, arch, layer(t, file("arch", arch))), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	tag, _ := name.ParseReference(reg.addr+"/multi:1", name.Insecure)
	if err := remote.WriteIndex(tag, idx); err != nil {
		t.Fatal(err)
	}
	s := open(t, Config{})
	img := ensure(t, s, reg.addr+"/multi:1")
	if img.Config.Env[0] != "A=amd64" {
		t.Errorf("chosen configuration = %v, want amd64", img.Config.Env)
	}
	if n := reg.count("GET", "/blobs/"); n != 2 {
		t.Errorf("blobs fetched = %d, want 2: other platforms are not fetched", n)
	}
	other := reg.push(t, "arm", build(t, "arm64", layer(t, file("x", "y"))))
	if _, err := s.Ensure(context.Background(), Request{Ref: other}); code(err) != "OsVersionNotSupported" {
		t.Errorf("image of another platform: %v, want OsVersionNotSupported", err)
	}
}

func TestTwoAskersOnePull(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "app", build(t, "amd64", layer(t, file("a", "x"))))
	reg.spoilWith(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		time.Sleep(50 * time.Millisecond)
		return false
	})
	s := open(t, Config{})
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			if _, err := s.Ensure(context.Background(), Request{Ref: ref, Tenant: fmt.Sprint("t", i)}); err != nil {
				t.Error(err)
			}
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Ensure(ctx, Request{Ref: ref}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("impatient caller got %v, want its deadline", err)
	}
	wg.Wait()
	if n := reg.count("HEAD", "/manifests/"); n != 1+1 { // one of the push
		t.Errorf("manifest resolved %d times, want once", n-1)
	}
	if n := reg.count("GET", "/blobs/"); n != 2 {
		t.Errorf("blobs fetched = %d, want 2", n)
	}
}

func TestBrokenPullResumes(t *testing.T) {
	reg := newRegistry(t)
	l, err := random.Layer(1<<20, "application/vnd.docker.image.rootfs.diff.tar.gzip")
	if err != nil {
		t.Fatal(err)
	}
	ref := reg.push(t, "big", build(t, "amd64", l))
	d, _ := l.Digest()
	cut := func(broken bool) {
		reg.spoilWith(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
			if r.Method != "GET" || !strings.HasSuffix(r.URL.Path, d.String()) {
				return false
			}
			if broken && r.Header.Get("Range") != "" {
				http.Error(w, "no", http.StatusBadGateway)
				return true
			}
			req := r.Clone(r.Context())
			req.Header.Del("Range")
			rec := httptest.NewRecorder()
			next.ServeHTTP(rec, req)
			body := rec.Body.Bytes()
			if !broken {
				http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
				return true
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			w.Write(body[:len(body)/2])
			panic(http.ErrAbortHandler)
		})
	}
	root := t.TempDir()
	s := open(t, Config{Root: root})
	cut(true)
	if _, err := s.Ensure(context.Background(), Request{Ref: ref}); code(err) != "RegistryErrorResponse" {
		t.Fatalf("broken pull: %v, want RegistryErrorResponse", err)
	}
	s.Close() // the parts outlive the process
	s = open(t, Config{Root: root})
	cut(false)
	before := reg.count("GET", d.String())
	ensure(t, s, ref)
	reg.mu.Lock()
	defer reg.mu.Unlock()
	var after []string
	for _, line := range reg.seen {
		if strings.HasPrefix(line, "GET") && strings.Contains(line, d.String()) {
			after = append(after, line)
		}
	}
	for _, line := range after[before:] {
		if !strings.Contains(line, "bytes=") || strings.Contains(line, "bytes=0-") {
			t.Errorf("second pull asked for the whole blob again: %q", line)
		}
	}
	if len(after) == before {
		t.Error("second pull did not ask for the rest")
	}
}

func TestWrongContentIsRefused(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "bad", build(t, "amd64", layer(t, file("a", "x"))))
	reg.spoilWith(func(w http.ResponseWriter, r *http.Request, next http.Handler) bool {
		if r.Method != "GET" || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		body := rec.Body.Bytes()
		body[len(body)/2] ^= 1
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.Write(body)
		return true
	})
	s := open(t, Config{})
	if _, err := s.Ensure(context.Background(), Request{Ref: ref}); err == nil {
		t.Error("spoiled image was accepted")
	}
	if list := s.Images(); len(list) != 0 {
		t.Errorf("images = %v, want none", list)
	}
}

func TestPrivateImageStaysPrivate(t *testing.T) {
	reg := newRegistry(t)
	ref := reg.push(t, "private/app:2", build(t, "amd64", layer(t, file("a", "x"))))
	reg.spoilWith(func(w http.ResponseWriter, r *http.Request, _ http.Handler) bool {
		if u, p, ok := r.BasicAuth(); ok && u == "me" && p == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	root := t.TempDir()
	s := open(t, Config{Root: root})
	good := []group.RegistryCredential{{Server: "http://" + reg.addr + "/v2/", Username: "me", Password: "secret"}}
	bad := []group.RegistryCredential{{Server: reg.addr, Username: "me", Password: "wrong"}}
	for name, req := range map[string]Request{"none": {Ref: ref, Tenant: "t1"}, "wrong": {Ref: ref, Tenant: "t1", Credentials: bad}} {
		if _, err := s.Ensure(context.Background(), req); code(err) != "InaccessibleImage" {
			t.Errorf("credentials %s: %v, want InaccessibleImage", name, err)
		}
	}
	if _, err := s.Pull(context.Background(), Request{Ref: ref, Credentials: good}); err != nil {
		t.Fatal(err)
	}
	s.Close()
	s = open(t, Config{Root: root})
	for _, tenant := range []string{"", "t1"} {
		if _, ok := s.Lookup(ref, tenant); ok {
			t.Errorf("what the operator pulled with a password is open to %q", tenant)
		}
	}
	if _, err := s.Ensure(context.Background(), Request{Ref: ref, Tenant: "t1", Credentials: good}); err != nil {
		t.Fatal(err)
	}
	if _, ok := s.Lookup(ref, "t1"); !ok {
		t.Error("the tenant that pulled it cannot use it")
	}
	if _, ok := s.Lookup(ref, "t2"); ok {
		t.Error("another tenant can use a private image")
	}
	if _, err := s.Ensure(context.Background(), Request{Ref: ref, Tenant: "t2"}); code(err) != "InaccessibleImage" {
		t.Errorf("another tenant without credentials: %v, want InaccessibleImage", err)
	}
	if _, err := s.Ensure(context.Background(), Request{Ref: ref, Tenant: "t2", Credentials: good}); err != nil {
		t.Fatal(err)
	}
	for _, tenant := range []string{"t1", "t2"} {
		if _, ok := s.Lookup(ref, tenant); !ok {
			t.Errorf("%s lost its access", tenant)
		}
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	reg := newRegistry(t)
	s := open(t, Config{})
	for ref, want := range map[string]string{
		reg.addr + "/nothing:1":    "InaccessibleImage",
		"app/UPPER":                "InvalidImageName",
		"169.254.169.254/latest:1": "RegistryErrorResponse",
		"127.0.0.1:1/closed":       "RegistryErrorResponse",
	} {
		if _, err := s.Ensure(context.Background(), Request{Ref: ref}); code(err) != want {
			t.Errorf("%s: %v, want %s", ref, err, want)
		}
	}
	var many []v1.Layer
	for i := range MaxLayers + 1 {
		many = append(many, layer(t, file("f", fmt.Sprint(i))))
	}
	ref := reg.push(t, "many", build(t, "amd64", many...))
	if _, err := s.Ensure(context.Background(), Request{Ref: ref}); err == nil || !strings.Contains(err.Error(), "128 layers") {
		t.Errorf("128 layers: %v, want a refusal", err)
	}
	small := open(t, Config{MaxSize: 100})
	ref = reg.push(t, "small", build(t, "amd64", many[0]))
	if _, err := small.Ensure(context.Background(), Request{Ref: ref}); err == nil || !strings.Contains(err.Error(), "at most 100") {
		t.Errorf("too large: %v, want a refusal", err)
	}
	full := open(t, Config{Reserve: 1 << 60})
	if _, err := full.Ensure(context.Background(), Request{Ref: ref}); fault.KindOf(err) != fault.Exhausted {
		t.Errorf("full disk: %v, want exhausted", err)
	}
}

func TestHostileLayersStayInside(t *testing.T) {
	outside := t.TempDir()
	reg := newRegistry(t)
	s := open(t, Config{})
	for name, headers := range map[string][]*tar.Header{
		"dotdot":       {file("../../../../../../../../.."+outside+"/evil", "x")},
		"absolute":     {file(outside+"/evil", "x")},
		"symlink":      {{Name: "link", Typeflag: tar.TypeSymlink, Linkname: outside}, file("link/evil", "x")},
		"symlink up":   {{Name: "link", Typeflag: tar.TypeSymlink, Linkname: "../../../../../../../../.." + outside}, file("link/evil", "x")},
		"hard link":    {{Name: "link", Typeflag: tar.TypeSymlink, Linkname: outside}, file("f", "x"), {Name: "link/evil", Typeflag: tar.TypeLink, Linkname: "f"}},
		"whiteout":     {{Name: "link", Typeflag: tar.TypeSymlink, Linkname: outside}, file("link/.wh..wh..opq", "")},
		"host hard":    {{Name: "passwd", Typeflag: tar.TypeLink, Linkname: "../../../../../../../../../etc/passwd"}},
		"device below": {{Name: "link", Typeflag: tar.TypeSymlink, Linkname: outside}, {Name: "link/dev", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3}},
	} {
		ref := reg.push(t, "hostile/"+strings.ReplaceAll(name, " ", "-"), build(t, "amd64", layer(t, headers...)))
		img, err := s.Ensure(context.Background(), Request{Ref: ref}) // refusing is as good as containing
		if list, _ := os.ReadDir(outside); len(list) != 0 {
			t.Fatalf("%s: wrote %v outside", name, list)
		}
		if err == nil && name == "host hard" {
			a, _ := os.Stat("/etc/passwd")
			if b, err := os.Stat(filepath.Join(img.Layers[0], "passwd")); err == nil && os.SameFile(a, b) {
				t.Fatal("the layer holds the host's password file")
			}
		}
	}
}

func TestImportArchives(t *testing.T) {
	img := build(t, "amd64", layer(t, file("hello", "x")), layer(t, file("more", "y")))
	dir := t.TempDir()
	docker := filepath.Join(dir, "docker.tar")
	tag, _ := name.NewTag("sample:3")
	if err := tarball.WriteToFile(docker, tag, img); err != nil {
		t.Fatal(err)
	}
	oci := filepath.Join(dir, "oci")
	p, err := layout.Write(oci, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "v9"})); err != nil {
		t.Fatal(err)
	}
	for want, data := range map[string][]byte{
		"docker.io/library/sample:3":    read(t, docker),
		"docker.io/library/imported:v9": tarDir(t, oci),
	} {
		for _, zip := range []bool{false, true} {
			s := open(t, Config{})
			if zip {
				data = gzipped(t, data)
			}
			got, err := s.Import(context.Background(), bytes.NewReader(data))
			if err != nil || len(got) != 1 || got[0].Ref != want || len(got[0].Layers) != 2 {
				t.Errorf("import (zip %v) = %+v, %v, want %s with 2 layers", zip, got, err, want)
				continue
			}
			if found, ok := s.Lookup(want, "any"); !ok || found.Config.Cmd[0] != "/hello" {
				t.Errorf("Lookup(%s) = %+v, %v", want, found, ok)
			}
		}
	}
	s := open(t, Config{})
	if _, err := s.Import(context.Background(), strings.NewReader("not a tar")); fault.KindOf(err) != fault.Invalid {
		t.Errorf("garbage: %v, want invalid", err)
	}
}

func TestRemoveAndCollect(t *testing.T) {
	reg := newRegistry(t)
	shared := layer(t, file("base", strings.Repeat("b", 1000)))
	refs := []string{
		reg.push(t, "one", build(t, "amd64", shared, layer(t, file("one", "1")))),
		reg.push(t, "two", build(t, "amd64", shared, layer(t, file("two", "2")))),
		reg.push(t, "three", build(t, "amd64", shared)),
	}
	s := open(t, Config{})
	for _, r := range refs {
		ensure(t, s, r)
	}
	two, _ := s.Lookup(refs[1], "")
	s.Lookup(refs[0], "") // one is the most recently used
	dirs := func() int {
		list, err := os.ReadDir(filepath.Join(s.cfg.Root, "snapshots", "snapshots"))
		if err != nil {
			t.Fatal(err)
		}
		return len(list)
	}
	if err := s.Remove(context.Background(), refs[2]); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(context.Background(), refs[2]); fault.KindOf(err) != fault.NotFound {
		t.Errorf("second Remove = %v, want not-found", err)
	}
	if _, err := os.Stat(filepath.Join(two.Layers[1], "base")); err != nil {
		t.Errorf("a shared layer went with one of its images: %v", err)
	}
	removed, err := s.Collect(context.Background(), CollectOptions{Free: 1 << 62, InUse: func(d string) bool { return d == two.Digest }})
	if err != nil || strings.Join(removed, " ") != refs[0]+":latest" {
		t.Errorf("Collect = %v, %v, want %s: the other is in use", removed, err, refs[0])
	}
	if _, ok := s.Lookup(refs[1], ""); !ok {
		t.Error("an image in use was collected")
	}
	if _, err := s.Collect(context.Background(), CollectOptions{Free: 1 << 62, InUse: func(string) bool { return false }}); err != nil {
		t.Fatal(err)
	}
	if n := dirs(); n != 0 {
		t.Errorf("%d snapshot directories left, want none", n)
	}
	if u, err := s.Usage(context.Background()); err != nil || u != 0 {
		t.Errorf("Usage = %d, %v, want 0", u, err)
	}
	ensure(t, s, refs[0]) // everything comes back
}

// TestCollectSparesImports: what was imported is collected neither at once nor by the next process, also when it was pulled too,
// unless what its name means was replaced.
func TestCollectSparesImports(t *testing.T) {
	reg := newRegistry(t)
	img := build(t, "amd64", layer(t, file("hello", "x")))
	ref := reg.push(t, "pulled", img)
	archive := filepath.Join(t.TempDir(), "image")
	p, err := layout.Write(archive, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img, layout.WithAnnotations(map[string]string{"io.containerd.image.name": ref + ":latest"})); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	s := open(t, Config{Root: root})
	if _, err := s.Import(context.Background(), bytes.NewReader(tarDir(t, archive))); err != nil {
		t.Fatal(err)
	}
	all := CollectOptions{Free: 1 << 62, InUse: func(string) bool { return false }}
	stays := func(when string, want bool) {
		t.Helper()
		removed, err := s.Collect(context.Background(), all)
		if err != nil || (len(removed) == 0) != want {
			t.Errorf("%s: collected %v, %v, want it to stay %v", when, removed, err, want)
		}
	}
	stays("imported", true)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Root: root})
	stays("opened again", true)
	pull := func() {
		t.Helper()
		if _, err := s.Pull(context.Background(), Request{Ref: ref}); err != nil {
			t.Fatal(err)
		}
	}
	pull()
	stays("pulled as well", true)
	reg.push(t, "pulled", build(t, "amd64", layer(t, file("hello", "y"))))
	pull()
	stays("replaced", false)
}

func BenchmarkLookup(b *testing.B) {
	s := &Store{known: map[string]*entry{}}
	s.put(Image{Ref: "docker.io/library/nginx:latest", origin: origin{access: access{all: true}}})
	for b.Loop() {
		if _, ok := s.Lookup("nginx", "t"); !ok {
			b.Fatal("not found")
		}
	}
}
