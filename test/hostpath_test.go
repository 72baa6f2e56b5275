package test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"spillway.dev/spillway/internal/client"
)

// TestHostPathsOfOneDirectory: a prefix is a wall that no link leads over.
func TestHostPathsOfOneDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	given := filepath.Join(dir, "given")
	if err := os.MkdirAll(filepath.Join(given, "a"), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{"out": "../", "abs": "/etc", "in": "a"} {
		if err := os.Symlink(to, filepath.Join(given, link)); err != nil {
			t.Fatal(err)
		}
	}
	p := givingPlatform(t, "host-path="+given)
	for _, path := range []string{dir, given + "x", "/etc"} {
		if why := p.refused(name("outside"), group([]M{container("c", sleeper)}, M{"volumes": []M{hostPath("v", path, "")}})); !strings.Contains(why, "--allow host-path") {
			t.Errorf("%s: refusal %q does not name the flag", path, why)
		}
	}
	volumes := M{"volumes": []M{hostPath("whole", given, "Directory"), hostPath("link", given+"/in", "Directory"), hostPath("fresh", given+"/new/dir", "DirectoryOrCreate")}}
	n := p.create("inside", []M{container("c", "touch /link/made /fresh/made && echo fine; "+sleeper,
		M{"volumeMounts": []M{mounted("whole", "/whole"), mounted("link", "/link"), mounted("fresh", "/fresh")}})}, volumes)
	p.running(n)
	p.awaitLog(n, "c", "fine")
	for _, path := range []string{"a/made", "new/dir/made"} {
		if !exists(filepath.Join(given, path)) {
			t.Errorf("%s is not on the host", path)
		}
	}
	for _, link := range []string{"out", "abs"} {
		n := p.create("climbs", []M{container("c", sleeper)}, M{"volumes": []M{hostPath("v", filepath.Join(given, link), "")}})
		p.await(n, "a failed mount", func(g *client.Group) bool { return strings.Contains(events(g), "leads out of "+given) })
	}
}

func TestHostPaths(t *testing.T) {
	t.Parallel()
	p := givingPlatform(t, everything)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("of the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	socket, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	below := filepath.Join(dir, "mount")
	if err := os.Mkdir(below, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", below, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Unmount(below, syscall.MNT_DETACH) }()
	if err := os.WriteFile(filepath.Join(below, "deep"), []byte("deep"), 0o644); err != nil {
		t.Fatal(err)
	}
	volumes := M{"volumes": []M{hostPath("dir", dir, "Directory"), hostPath("file", dir+"/file", "File"), hostPath("sock", dir+"/sock", "Socket"),
		hostPath("made", dir+"/made/deep", "DirectoryOrCreate"), hostPath("touched", dir+"/touched", "FileOrCreate"), hostPath("null", "/dev/null", "CharDevice"), hostPath("hosts", "/etc/hosts", "File")}}
	n := p.create("paths", []M{container("c", "cat /dir/file /dir/mount/deep; echo written >/dir/new; (echo x >/fixed/no) 2>/dev/null || echo read-only; (echo x >/fixed/mount/no) 2>/dev/null || echo all of it; test -S /sock && echo socket; echo t >/touched; ls -d /made; cmp /etc/hosts /original && echo same; echo end; "+sleeper,
		M{"volumeMounts": []M{mounted("dir", "/dir"), mounted("dir", "/fixed", M{"readOnly": true}), mounted("file", "/one"), mounted("sock", "/sock"), mounted("made", "/made"),
			mounted("touched", "/touched"), mounted("null", "/nothing"), mounted("hosts", "/etc/hosts"), mounted("hosts", "/original")}})}, volumes)
	p.running(n)
	log := p.awaitLog(n, "c", "end")
	for _, want := range []string{"of the hostdeep", "read-only", "all of it", "socket", "/made", "same"} {
		if !strings.Contains(log, want) {
			t.Errorf("the container did not see %q:\n%s", want, log)
		}
	}
	for path, want := range map[string]string{"new": "written\n", "touched": "t\n"} {
		if body, err := os.ReadFile(filepath.Join(dir, path)); err != nil || string(body) != want {
			t.Errorf("%s on the host = %q, %v, want %q", path, body, err, want)
		}
	}
	for kind, path := range map[string]string{"File": dir, "Directory": dir + "/file", "Socket": dir + "/file", "BlockDevice": "/dev/null", "CharDevice": dir + "/file"} {
		n := p.create("types", []M{container("c", sleeper)}, M{"volumes": []M{hostPath("v", path, kind)}})
		p.await(n, "a failed check", func(g *client.Group) bool { return strings.Contains(events(g), "hostPath type check failed: "+path) })
	}
	missing := p.create("missing", []M{container("c", sleeper)}, M{"volumes": []M{hostPath("v", dir+"/none", "Directory")}})
	p.await(missing, "a failed mount", func(g *client.Group) bool { return strings.Contains(events(g), "FailedMount") })
	p.remove(n)
	if !exists(dir + "/made/deep") {
		t.Error("deleting the group has removed what is the host's")
	}
}

func TestPrivileged(t *testing.T) {
	t.Parallel()
	p := givingPlatform(t, everything)
	beside := container("beside", "grep -E 'CapEff|Seccomp:|NoNewPrivs' /proc/self/status; mount -t tmpfs none /mnt 2>/dev/null || echo refused; "+sleeper)
	n := p.create("all", []M{container("c", sleeper, privileged), beside,
		container("less", sleeper, M{"securityContext": M{"privileged": true, "capabilities": M{"drop": []string{"MKNOD"}}}})})
	p.running(n)
	for script, want := range map[string]string{
		"grep '^Seccomp:' /proc/self/status":                                          "Seccomp:\t0",
		"grep NoNewPrivs /proc/self/status":                                           "NoNewPrivs:\t0",
		"mkdir -p /t && mount -t tmpfs none /t && echo mounted":                       "mounted",
		"mount | grep -c '/proc/sys.*ro,' || true":                                    "0",
		"test -w /proc/sys/kernel/panic && echo writable":                             "writable",
		"mount | grep '^sysfs' | grep -c '[(,]rw'":                                    "1",
		"mkdir /sys/fs/cgroup/x 2>/dev/null || mkdir /sys/fs/cgroup/pids/x && echo c": "c",
		"ls /dev/kmsg /dev/mem 2>/dev/null | head -1 | wc -l":                         "1",
		"head -c 1 /dev/kmsg >/dev/null && echo opened":                               "opened",
		"mknod /tmp/null c 1 3 && echo x >/tmp/null && echo node":                     "node",
	} {
		if out, _ := p.exec(n, "c", "{ "+script+"; } 2>&1"); !strings.HasSuffix(out, want) {
			t.Errorf("%s\n = %q, want %q", script, out, want)
		}
	}
	const sysAdmin, mknod = 21, 27
	for c, want := range map[string]struct{ admin, mknod bool }{"c": {true, true}, "less": {true, false}} {
		out, _ := p.exec(n, c, "sed -n 's/^CapEff:[[:space:]]*//p' /proc/self/status")
		var caps uint64
		if _, err := fmt.Sscanf(out, "%x", &caps); err != nil || caps>>sysAdmin&1 == 1 != want.admin || caps>>mknod&1 == 1 != want.mknod {
			t.Errorf("capabilities of %s = %q, %v", c, out, err)
		}
	}
	log := p.awaitLog(n, "beside", "refused")
	if !strings.Contains(log, "Seccomp:\t2") || !strings.Contains(log, "NoNewPrivs:\t1") || !strings.Contains(log, "00000000a00425fb") {
		t.Errorf("a container beside a privileged one has more than others:\n%s", log)
	}
	// A privileged container of the host's paths can use its devices there.
	devices := p.create("devices", []M{container("c", "cat /host/dev/null && echo opened; "+sleeper, M{"securityContext": M{"privileged": true}, "volumeMounts": []M{mounted("root", "/host")}}),
		container("d", "cat /host/dev/null 2>/dev/null || echo closed; "+sleeper, M{"volumeMounts": []M{mounted("root", "/host")}})}, M{"volumes": []M{hostPath("root", "/", "")}})
	p.running(devices)
	p.awaitLog(devices, "c", "opened")
	p.awaitLog(devices, "d", "closed")
}
