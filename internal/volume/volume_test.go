package volume

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

func needRoot(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root to mount tmpfs")
	}
	root := t.TempDir()
	dir := filepath.Join(root, "g1")
	t.Cleanup(func() {
		if err := New(Config{}).Remove(context.Background(), dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func prepare(t *testing.T, m *Manager, dir string, spec *group.Spec) map[string]Source {
	t.Helper()
	out, err := m.Prepare(context.Background(), dir, spec)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// tree lists a volume as its reader sees it: name, mode and content of each file.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	list, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		if strings.HasPrefix(e.Name(), "..") {
			continue
		}
		path := filepath.Join(dir, e.Name())
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if fi.IsDir() {
			out = append(out, e.Name()+"/("+tree(t, path)+")")
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s:%o=%s", e.Name(), fi.Mode().Perm(), b))
	}
	sort.Strings(out)
	return strings.Join(out, " ")
}

func TestEveryKind(t *testing.T) {
	dir := needRoot(t)
	share := t.TempDir()
	m := New(Config{Shares: map[string]string{"data": share}})
	spec := &group.Spec{
		Volumes: []group.Volume{
			{Name: "scratch", EmptyDir: &group.EmptyDir{}},
			{Name: "ram", EmptyDir: &group.EmptyDir{Memory: true, SizeLimit: 1 << 20}},
			{Name: "secret", Secret: &group.Files{Data: map[string][]byte{"key": []byte("k"), "sub/deep": []byte("d")}, Mode: 0o440, Modes: map[string]uint32{"sub/deep": 0o400}}},
			{Name: "conf", ConfigMap: &group.Files{Data: map[string][]byte{"a": []byte("1")}}},
			{Name: "share", AzureFile: &group.AzureFile{Share: "data", ReadOnly: true}},
			{Name: "code", GitRepo: &group.GitRepo{Repository: "https://example.test/x/app.git"}},
		},
		Containers: []group.Container{{Name: "web", ConfigMap: map[string]string{"c": "2"}}},
	}
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	got := prepare(t, m, dir, spec)
	for name, want := range map[string]string{"secret": "key:440=k sub/(deep:400=d)", "conf": "a:644=1", ContainerConfigMap("web"): "c:644=2"} {
		if s := tree(t, got[name].Path); s != want || !got[name].ReadOnly {
			t.Errorf("%s = %q (read-only %v), want %q read-only", name, s, got[name].ReadOnly, want)
		}
	}
	for _, name := range []string{"scratch", "ram", "code"} {
		if fi, err := os.Stat(got[name].Path); err != nil || fi.Mode().Perm() != 0o777 {
			t.Errorf("%s = %v, %v, want mode 777", name, fi, err)
		}
	}
	for name, path := range map[string]string{"ram": got["ram"].Path, "secret": got["secret"].Path} {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
			t.Errorf("%s is on file system %x, %v, want tmpfs", name, st.Type, err)
		}
	}
	if err := os.WriteFile(filepath.Join(got["ram"].Path, "big"), make([]byte, 2<<20), 0o600); err == nil {
		t.Error("2 MiB fit into a volume of 1 MiB")
	}
	if fi, _ := os.Stat(dir); fi.Mode().Perm() != 0o700 {
		t.Errorf("group directory has mode %o, want 700", fi.Mode().Perm())
	}
	if got["share"] != (Source{Path: share, ReadOnly: true}) {
		t.Errorf("share = %+v", got["share"])
	}
	if c := got["code"].Clone; c == nil || c.Directory != "app" {
		t.Errorf("clone = %+v, want into app", c)
	}

	checkAgain(t, m, dir, spec)
	if _, err := os.Stat(share); err != nil {
		t.Error("the share went with the group")
	}
}

// checkAgain prepares once more, as after a restart of the agent, and then takes everything away.
func checkAgain(t *testing.T, m *Manager, dir string, spec *group.Spec) {
	t.Helper()
	got := prepare(t, m, dir, spec)
	if err := os.WriteFile(filepath.Join(got["scratch"].Path, "mine"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Cloned(dir, "code"); err != nil {
		t.Fatal(err)
	}
	again := prepare(t, m, dir, spec)
	if again["code"].Clone != nil || tree(t, again["scratch"].Path) != "mine:600=x" {
		t.Errorf("second Prepare: clone %v, scratch %q", again["code"].Clone, tree(t, again["scratch"].Path))
	}
	if n := mounts(t, dir); n != 2 {
		t.Errorf("%d mounts, want 2", n)
	}
	if err := m.Sync(context.Background(), filepath.Dir(dir), map[string]bool{"other": true}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) || mounts(t, dir) != 0 {
		t.Errorf("after Sync: %v, %d mounts", err, mounts(t, dir))
	}
	if err := m.Remove(context.Background(), dir); err != nil {
		t.Errorf("second Remove: %v", err)
	}
}

func mounts(t *testing.T, below string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), " "+below+"/")
}

func TestUpdateIsSeenThroughTheSamePath(t *testing.T) {
	dir := needRoot(t)
	m := New(Config{})
	spec := func(a string, more map[string][]byte) *group.Spec {
		data := map[string][]byte{"a": []byte(a)}
		for k, v := range more {
			data[k] = v
		}
		return &group.Spec{Volumes: []group.Volume{{Name: "conf", ConfigMap: &group.Files{Data: data}}}}
	}
	path := prepare(t, m, dir, spec("1", map[string][]byte{"b": []byte("old")}))["conf"].Path
	held, err := os.Open(path) // what a container has mounted
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if changed, err := m.Update(context.Background(), dir, spec("1", map[string][]byte{"b": []byte("old")})); err != nil || len(changed) != 0 {
		t.Errorf("Update without a change = %v, %v", changed, err)
	}
	if changed, err := m.Update(context.Background(), dir, spec("2", map[string][]byte{"c": []byte("new")})); err != nil || strings.Join(changed, " ") != "conf" {
		t.Errorf("Update = %v, %v, want conf", changed, err)
	}
	if got, want := tree(t, fmt.Sprintf("/proc/self/fd/%d", held.Fd())), "a:644=2 c:644=new"; got != want {
		t.Errorf("mounted volume shows %q, want %q", got, want)
	}
	list, _ := filepath.Glob(filepath.Join(path, "..gen-*"))
	if len(list) != 1 {
		t.Errorf("generations left: %v, want one", list)
	}
}

func TestMeasureFindsExcess(t *testing.T) {
	dir := needRoot(t)
	m := New(Config{})
	spec := &group.Spec{Volumes: []group.Volume{{Name: "scratch", EmptyDir: &group.EmptyDir{SizeLimit: 64 << 10}}}}
	path := prepare(t, m, dir, spec)["scratch"].Path
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "big"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(path, "link")); err != nil {
		t.Fatal(err)
	}
	if got, err := m.Measure(context.Background(), dir, spec); err != nil || len(got) != 0 {
		t.Errorf("Measure with a link to a large directory = %v, %v, want nothing", got, err)
	}
	if err := os.WriteFile(filepath.Join(path, "f"), make([]byte, 100<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(filepath.Join(path, "f"), filepath.Join(path, "g")); err != nil {
		t.Fatal(err)
	}
	got, err := m.Measure(context.Background(), dir, spec)
	if err != nil || len(got) != 1 || got[0].Size < 100<<10 || got[0].Size > 150<<10 {
		t.Errorf("Measure = %+v, %v, want scratch with about 100 KiB", got, err)
	}
}

func TestRemoveDoesNotFollowLinks(t *testing.T) {
	dir := needRoot(t)
	m := New(Config{})
	path := prepare(t, m, dir, &group.Spec{Volumes: []group.Volume{{Name: "v", EmptyDir: &group.EmptyDir{}}}})["v"].Path
	outside := t.TempDir()
	if err := os.WriteFile(filepath.Join(outside, "keep"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(path, "link")); err != nil {
		t.Fatal(err)
	}
	if err := m.Remove(context.Background(), dir); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(outside, "keep")); err != nil {
		t.Errorf("a file outside was removed: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	dir := needRoot(t)
	m := New(Config{Shares: map[string]string{"gone": filepath.Join(dir, "nowhere")}})
	for want, v := range map[string]group.Volume{
		"--share nosuch=DIR":         {Name: "v", AzureFile: &group.AzureFile{Share: "nosuch", Account: "acc"}},
		"mount or make it":           {Name: "v", AzureFile: &group.AzureFile{Share: "gone"}},
		"volume name":                {Name: "../x", EmptyDir: &group.EmptyDir{}},
		"file name \"../x\"":         {Name: "v", Secret: &group.Files{Data: map[string][]byte{"../x": nil}}},
		"file name \"/x\"":           {Name: "v", ConfigMap: &group.Files{Data: map[string][]byte{"/x": nil}}},
		"file name \"..data\"":       {Name: "v", ConfigMap: &group.Files{Data: map[string][]byte{"..data": nil}}},
		"bytes; at most":             {Name: "v", Secret: &group.Files{Data: map[string][]byte{"x": make([]byte, 2<<20)}}},
		"https:// or http://":        {Name: "v", GitRepo: &group.GitRepo{Repository: "file:///etc"}},
		"must be an https":           {Name: "v", GitRepo: &group.GitRepo{Repository: "/etc"}},
		"directory \"../x\"":         {Name: "v", GitRepo: &group.GitRepo{Repository: "https://h/x", Directory: "../x"}},
		"revision \"--upload-pack\"": {Name: "v", GitRepo: &group.GitRepo{Repository: "https://h/x", Revision: "--upload-pack"}},
	} {
		if strings.Contains(want, "--share") && hasFilesystem("cifs") {
			continue
		}
		_, err := m.Prepare(context.Background(), dir, &group.Spec{Volumes: []group.Volume{v}})
		if err == nil || fault.KindOf(err) == fault.Internal || !strings.Contains(err.Error(), want) {
			t.Errorf("Prepare(%+v) = %v, want a refusal with %q", v, err, want)
		}
	}
}
