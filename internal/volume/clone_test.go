package volume

import (
	"bytes"
	"context"
	"net/http/cgi"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/group"
)

// serveRepo is a git server with two commits: "first" (tag v1) and "second" on the default branch, with a hook and a
// file that links out of the tree.
func serveRepo(t *testing.T) (url, first string) {
	t.Helper()
	backend, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Skip("needs git")
	}
	root := t.TempDir()
	run := func(args ...string) string {
		cmd := exec.Command("git", append([]string{"-C", filepath.Join(root, "app.git"), "-c", "user.name=a", "-c", "user.email=a@b"}, args...)...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if err := os.MkdirAll(filepath.Join(root, "app.git"), 0o755); err != nil {
		t.Fatal(err)
	}
	run("init", "-q", "-b", "main")
	write := func(text string) {
		if err := os.WriteFile(filepath.Join(root, "app.git", "file"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		run("add", "-A")
		run("commit", "-q", "-m", text)
	}
	write("first")
	run("tag", "v1")
	first = run("rev-parse", "HEAD")
	write("second")
	h := &cgi.Handler{Path: filepath.Join(strings.TrimSpace(string(backend)), "git-http-backend"), Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1"}, Stderr: &bytes.Buffer{}}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	return srv.URL + "/app.git", first
}

func TestClone(t *testing.T) {
	url, first := serveRepo(t)
	for _, c := range []struct{ revision, directory, file, want string }{
		{"", "", "app/file", "second"},
		{"", ".", "file", "second"},
		{"", "src/x", "src/x/file", "second"},
		{"v1", ".", "file", "first"},
		{first, ".", "file", "first"},
		{"main", ".", "file", "second"},
	} {
		clone, err := newClone(&group.Volume{Name: "v", GitRepo: &group.GitRepo{Repository: url, Revision: c.revision, Directory: c.directory}})
		if err != nil {
			t.Fatal(err)
		}
		target := t.TempDir()
		if err := clone.run(context.Background(), target); err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		if got, err := os.ReadFile(filepath.Join(target, c.file)); string(got) != c.want {
			t.Errorf("%+v: file = %q, %v", c, got, err)
		}
	}
}

func TestCloneLimits(t *testing.T) {
	url, _ := serveRepo(t)
	base := Clone{Repository: url, Directory: ".", MaxBytes: 1 << 20, Timeout: time.Minute}
	small, late, wrong := base, base, base
	small.MaxBytes = 50
	late.Timeout = time.Nanosecond
	wrong.Revision = "nosuch"
	for want, c := range map[string]Clone{"larger than the limit": small, "not complete after": late, "no commit, tag or branch": wrong} {
		if err := c.run(context.Background(), t.TempDir()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}

func TestCloneHidesPasswords(t *testing.T) {
	c := Clone{Repository: "http://me:hunter2@127.0.0.1:1/app.git", Directory: ".", MaxBytes: 1000, Timeout: time.Second}
	env, err := c.Env()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	code := CloneMain(context.Background(), func(string) string { return strings.TrimPrefix(env, cloneEnv+"=") }, &stderr)
	if code == 0 || strings.Contains(stderr.String(), "hunter2") || !strings.Contains(stderr.String(), "127.0.0.1:1") {
		t.Errorf("exit code %d, stderr %q: want a failure without the password", code, stderr.String())
	}
}
