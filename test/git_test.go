package test

import (
	"fmt"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"spillway.dev/spillway/internal/client"
)

// gitServer serves one repository over smart HTTP in the outside world and gives its URL and two revisions.
func gitServer(t *testing.T, world *outside) (url, first string) {
	t.Helper()
	git, err := exec.LookPath("git")
	if err != nil {
		t.Skip("git is missing: apt-get install git")
	}
	root := t.TempDir()
	dir := filepath.Join(root, "work")
	run := func(args ...string) string {
		t.Helper()
		cmd := exec.Command(git, append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.test", "-c", "init.defaultBranch=main"}, args...)...)
		cmd.Env = append(os.Environ(), "HOME="+root)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("git %v: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(body string) {
		if err := os.WriteFile(filepath.Join(dir, "page.txt"), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run("init", "-q")
	write("first\n")
	run("add", ".")
	run("commit", "-qm", "one")
	first = run("rev-parse", "HEAD")
	write("second\n")
	run("commit", "-qam", "two")
	run("clone", "-q", "--bare", dir, filepath.Join(root, "repo.git"))
	l := world.listen(t, 8081)
	go http.Serve(l, &cgi.Handler{Path: git, Args: []string{"http-backend"}, Root: "/",
		Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1", "HOME=" + root, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=safe.directory", "GIT_CONFIG_VALUE_0=*"}})
	return fmt.Sprintf("http://%s:8081/repo.git", world.addr), first
}

func TestGitRepoVolume(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	url, first := gitServer(t, newOutside(t, 2))
	n := p.create("git", []M{container("c", "cat /new/repo/page.txt /old/here/page.txt; ls -a /new/repo; "+sleeper,
		mounts(M{"name": "newest", "mountPath": "/new"}, M{"name": "older", "mountPath": "/old"}))},
		M{"volumes": []M{{"name": "newest", "gitRepo": M{"repository": url}}, {"name": "older", "gitRepo": M{"repository": url, "revision": first, "directory": "here"}}}})
	if log := p.awaitLog(n, "c", ".git"); !strings.HasPrefix(log, "second\nfirst\n") {
		t.Errorf("log %q, want second, first", log)
	}
	bad := name("nogit")
	p.put(bad, group([]M{container("c", "true", mounts(M{"name": "repo", "mountPath": "/repo"}))}, M{"volumes": []M{{"name": "repo", "gitRepo": M{"repository": url, "revision": "nosuchbranch"}}}}))
	t.Cleanup(func() { p.remove(bad) })
	p.await(bad, "the reason", func(g *client.Group) bool { return strings.Contains(events(g), "FailedMount") })
}

// TestGitRepoVolumeForAGuest clones in kernels of their own before the containers get theirs: each takes the network of
// the slot with it.
func TestGitRepoVolumeForAGuest(t *testing.T) {
	t.Parallel()
	p := gvisorPlatform(t)
	url, first := gitServer(t, newOutside(t, 5))
	volumes := M{"volumes": []M{{"name": "newest", "gitRepo": M{"repository": url}}, {"name": "older", "gitRepo": M{"repository": url, "revision": first, "directory": "here"}}}}
	where := mounts(M{"name": "newest", "mountPath": "/new"}, M{"name": "older", "mountPath": "/old"})
	script := "cat /new/repo/page.txt /old/here/page.txt; " + web("guest")
	alone := p.create("git", []M{container("c", script, where)}, inGVisor, volumes)
	pair := p.create("git", []M{container("c", script, where), container("d", sleeper)}, inGVisor, volumes)
	for _, n := range []string{alone, pair} {
		if log := p.awaitLog(n, "c", "first"); log != "second\nfirst\n" {
			t.Errorf("log %q, want second, first", log)
		}
		addr := address(p.running(n))
		waitFor(t, "the page of "+n, func() bool { out, _ := fetch("http://" + addr + ":8000/"); return out == "guest" })
	}
}
