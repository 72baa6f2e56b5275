package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"spillway.dev/spillway/internal/client"
)

// runsc finds gVisor: of this tree, or of the machine.
func runsc(t *testing.T) string {
	t.Helper()
	own, err := filepath.Abs("../bin/runsc")
	if err == nil && exists(own) {
		return own
	}
	path, err := exec.LookPath("runsc")
	if err != nil {
		t.Skip("runsc is missing: make runsc")
	}
	return path
}

func TestGVisor(t *testing.T) {
	t.Parallel()
	program := runsc(t)
	dir, err := os.MkdirTemp(work, "data-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, filepath.Join(dir, "bin", "runsc")); err != nil {
		t.Fatal(err)
	}
	p := startPlatform(t, options{dir: dir, args: []string{"--pool", "1"}})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	gvisor := M{"isolation": "gvisor", "restartPolicy": "Always"}
	size := M{"resources": M{"requests": M{"cpu": 0.5, "memoryInGB": 0.3}}}
	n := p.create("guest", []M{container("c", "dmesg | head -3; hostname; "+web("guest"), size, M{"livenessProbe": M{"httpGet": M{"path": "/", "port": 8000, "scheme": "http"}, "initialDelaySeconds": 1, "failureThreshold": 10}})}, gvisor,
		M{"initContainers": []M{initContainer("i", "true")}})
	g := p.running(n)
	serves := func() bool { out, _ := fetch("http://" + address(g) + ":8000/"); return out == "guest" }
	waitFor(t, "the page", serves)
	if out, code := p.exec(n, "c", "cat /proc/version; exit 3"); code != 3 || !strings.Contains(out, "gvisor") {
		t.Errorf("exec = %q, %d; want another kernel's name, 3", out, code)
	}
	before := starts(g)
	if err := p.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.up(); err != nil {
		t.Fatal(err)
	}
	if now := starts(p.running(n)); now != before {
		t.Fatalf("starts %q, before the kill %q", now, before)
	}
	p.crashGuest(n)
	g = p.running(n)
	waitFor(t, "the page after a restart", serves)
	why := p.refused(name("pair"), group([]M{container("a", sleeper, size), container("b", sleeper, size)}, gvisor))
	if !strings.Contains(why, "gvisor") {
		t.Errorf("refusal %q does not name the isolation", why)
	}
	p.remove(n)
}

// crashGuest waits for one restart, bringing it about when the guest's first process would not die by itself.
func (p *platform) crashGuest(n string) {
	p.Helper()
	if g := p.get(n); restarts(g, 0) == 0 && g.Properties.Containers[0].Properties.InstanceView.Current.State == "Running" {
		if err := syscall.Kill(p.pidOf(n), syscall.SIGKILL); err != nil {
			p.Fatal(err)
		}
	}
	p.await(n, "restart", func(g *client.Group) bool { return restarts(g, 0) >= 1 })
}
