package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"spillway.dev/spillway/internal/client"
)

// debs is where downloaded packages are kept between runs.
func debs() string {
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "spillway-test", "debs")
	}
	return filepath.Join(work, "debs")
}

var downloads sync.Mutex // apt-get of one test at a time

var packageLine = regexp.MustCompile(`^[a-z0-9][a-z0-9.+-]*$`)

// debian makes an image of Debian packages with all that they depend on, unpacked but not configured.
func debian(t *testing.T, ref string, cfg v1.Config, packages []string, extra ...entry) string {
	t.Helper()
	for _, tool := range []string{"apt-get", "apt-cache", "dpkg"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is missing: real software is made from Debian's packages", tool)
		}
	}
	root := t.TempDir()
	args := append([]string{"depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks", "--no-replaces", "--no-enhances"}, packages...)
	out, err := exec.Command("apt-cache", args...).Output()
	if err != nil {
		t.Skipf("the package lists are missing: run apt-get update (%v)", err)
	}
	var names []string
	for line := range strings.SplitSeq(string(out), "\n") {
		if packageLine.MatchString(line) && !slices.Contains(names, line) && !needless[line] {
			names = append(names, line)
		}
	}
	for _, file := range download(t, names) {
		if out, err := exec.Command("dpkg", "-x", file, root).CombinedOutput(); err != nil {
			t.Fatalf("unpack %s: %v: %s", file, err, out)
		}
	}
	base, err := tree(root)
	if err != nil {
		t.Fatal(err)
	}
	top, err := layerOf(append([]entry{{path: "etc/passwd", body: passwd, mode: 0o644}, {path: "etc/group", body: groups, mode: 0o644}, {path: "tmp", dir: true, mode: 0o1777}}, extra...)...)
	if err != nil {
		t.Fatal(err)
	}
	img, err := imageOf(cfg, base, top)
	if err != nil {
		t.Fatal(err)
	}
	path, err := archive(ref, img)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// needless are packages that only a booted system wants; the servers run without them.
var needless = map[string]bool{"systemd": true, "udev": true, "perl-modules-5.36": true, "init-system-helpers": true, "debconf": true, "ucf": true, "dpkg": true}

// download fetches what is not there and gives the files. Packages without a download are virtual.
func download(t *testing.T, names []string) []string {
	t.Helper()
	downloads.Lock()
	defer downloads.Unlock()
	dir := debs()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("apt-get", append([]string{"download", "--print-uris", "-q"}, names...)...).CombinedOutput()
	if err != nil {
		t.Skipf("the packages cannot be had: %v: %s", err, out)
	}
	var files, missing []string
	for line := range strings.SplitSeq(string(out), "\n") {
		f := strings.Fields(line)
		if len(f) < 3 || !strings.HasSuffix(f[1], ".deb") {
			continue
		}
		file := filepath.Join(dir, f[1])
		files = append(files, file)
		if !exists(file) {
			missing = append(missing, strings.SplitN(f[1], "_", 2)[0])
		}
	}
	if len(missing) > 0 {
		cmd := exec.Command("apt-get", append([]string{"download", "-q"}, missing...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Skipf("the packages cannot be downloaded: %v: %s", err, out)
		}
	}
	return files
}

func TestNginxServes(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	const ref = "registry.test/nginx:1"
	conf := "daemon off;\nerror_log stderr;\npid /tmp/nginx.pid;\nevents {}\nhttp { access_log /dev/stdout; server { listen 80; root /www; } }\n"
	if err := p.importImage(debian(t, ref, v1.Config{Cmd: []string{"/usr/sbin/nginx", "-c", "/etc/test.conf"}}, []string{"nginx"},
		entry{path: "etc/test.conf", body: conf, mode: 0o644}, entry{path: "www/index.html", body: "nginx is here", mode: 0o644}, entry{path: "var/lib/nginx", dir: true}), nil); err != nil {
		t.Fatal(err)
	}
	n := p.create("nginx", []M{container("web", "", M{"image": ref, "readinessProbe": M{"httpGet": M{"path": "/", "port": 80, "scheme": "http"}, "periodSeconds": 1}})}, M{"restartPolicy": "Always"})
	addr := address(p.running(n))
	if out, err := fetch("http://" + addr + "/"); out != "nginx is here" {
		t.Errorf("nginx answers %q, %v", out, err)
	}
	p.awaitLog(n, "web", `"GET / HTTP/1.1" 200`)
}

func TestRedisKeepsItsData(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	const ref = "registry.test/redis:1"
	if err := p.importImage(debian(t, ref, v1.Config{Cmd: []string{"/usr/bin/redis-server", "--dir", "/data", "--appendonly", "yes", "--appendfsync", "always", "--bind", "0.0.0.0", "--protected-mode", "no"}}, []string{"redis-server", "redis-tools", "dash"}), nil); err != nil {
		t.Fatal(err)
	}
	n := p.create("redis", []M{container("db", "", M{"image": ref, "readinessProbe": M{"exec": M{"command": []string{"/usr/bin/redis-cli", "ping"}}, "periodSeconds": 1}},
		mounts(M{"name": "data", "mountPath": "/data"}))}, M{"restartPolicy": "Always", "volumes": []M{{"name": "data", "emptyDir": M{}}}})
	p.running(n)
	if out, _ := p.exec(n, "db", "redis-cli set key kept"); out != "OK" {
		t.Fatalf("set = %q", out)
	}
	p.crash(n)
	if out, _ := p.exec(n, "db", "redis-cli get key"); out != "kept" {
		t.Errorf("after the crash the key is %q, want kept", out)
	}
}

// crash kills the first process of a group's only container from outside and waits until it is back.
func (p *platform) crash(n string) {
	p.Helper()
	pid := p.pidOf(n)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		p.Fatalf("kill process %d of %s: %v", pid, n, err)
	}
	p.await(n, "restart", func(g *client.Group) bool {
		v := g.Properties.Containers[0].Properties.InstanceView
		return restarts(g, 0) == 1 && v.Ready != nil && *v.Ready
	})
}

// pidOf finds the first process of a group's only container through the keeper's record.
func (p *platform) pidOf(n string) int {
	p.Helper()
	records, err := p.records()
	if err != nil {
		p.Fatal(err)
	}
	for _, r := range records {
		if strings.HasPrefix(r.ID, p.uidOf(n)+".") && !r.Exited {
			return r.Pid
		}
	}
	p.Fatalf("no process of %s is known to the keeper", n)
	return 0
}

func (p *platform) uidOf(n string) string {
	p.Helper()
	return p.get(n).Properties.UID
}

func TestPostgresKeepsItsData(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	const ref, bin = "registry.test/postgres:1", "/usr/lib/postgresql/15/bin"
	start := fmt.Sprintf(`set -e
[ -s /data/db/PG_VERSION ] || %[1]s/initdb -D /data/db -U owner --no-sync --auth=trust >/dev/null
exec %[1]s/postgres -D /data/db -k /tmp -c listen_addresses='*'`, bin)
	if err := p.importImage(debian(t, ref, v1.Config{Cmd: []string{"/bin/sh", "-c", start}, User: "1000", Env: []string{"LC_ALL=C"}}, []string{"postgresql-15", "postgresql-client-15", "dash", "coreutils"}), nil); err != nil {
		t.Fatal(err)
	}
	psql := bin + "/psql -h /tmp -U owner -d postgres -Atc "
	n := p.create("postgres", []M{container("db", "", M{"image": ref, "resources": M{"requests": M{"cpu": 0.5, "memoryInGB": 0.4}}, "terminationMessagePath": "/tmp/message",
		"readinessProbe": M{"exec": M{"command": []string{"/bin/sh", "-c", psql + "'select 1'"}}, "periodSeconds": 1, "timeoutSeconds": 5}}, mounts(M{"name": "data", "mountPath": "/data"}))},
		M{"restartPolicy": "Always", "volumes": []M{{"name": "data", "emptyDir": M{}}}})
	p.running(n)
	if out, code := p.exec(n, "db", psql+"\"create table t as select generate_series(1,1000) n\" && "+psql+"checkpoint"); code != 0 {
		t.Fatalf("create table: %s", out)
	}
	begun := time.Now()
	p.crash(n)
	if out, _ := p.exec(n, "db", psql+"'select sum(n) from t'"); out != "500500" {
		t.Errorf("%s after the crash the sum is %q, want 500500", time.Since(begun), out)
	}
}
