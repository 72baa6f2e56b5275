package test

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"spillway.dev/spillway/internal/host"
)

func TestOtherRuntimes(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"crun", "runc"} {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(program); err != nil {
				t.Skipf("%s is missing: apt-get install %s", program, program)
			}
			p := startPlatform(t, options{args: []string{"--runtime", program, "--pool", "2"}})
			if err := p.importImage(busybox()); err != nil {
				t.Fatal(err)
			}
			n := p.create("oci", []M{container("c", "hostname; cat /data/f; echo up; "+sleeper, mounts(M{"name": "data", "mountPath": "/data"})), container("d", web("oci"))},
				M{"restartPolicy": "Always", "volumes": []M{{"name": "data", "emptyDir": M{}}},
					"initContainers": []M{initContainer("i", "echo made >/data/f", mounts(M{"name": "data", "mountPath": "/data"}))}})
			g := p.running(n)
			if log := p.awaitLog(n, "c", "up"); log != n+"\nmade\nup\n" {
				t.Errorf("log %q, want the host name, made, up", log)
			}
			if out, code := p.exec(n, "c", "grep NoNewPrivs /proc/self/status; exit 4"); code != 4 || !strings.HasSuffix(out, "1") {
				t.Errorf("exec = %q, %d", out, code)
			}
			waitFor(t, "the page", func() bool { out, _ := fetch("http://" + address(g) + ":8000/"); return out == "oci" })
			before := starts(g)
			for _, kill := range []func(){func() { _ = p.signal(syscall.SIGKILL) }, func() { _ = syscall.Kill(p.keeperPid(), syscall.SIGKILL); _ = p.signal(syscall.SIGKILL) }} {
				kill()
				if err := p.up(); err != nil {
					t.Fatal(err)
				}
				if now := starts(p.running(n)); now != before {
					t.Fatalf("starts %q, before the kill %q", now, before)
				}
			}
			end := p.create("end", []M{container("c", "echo out; exit 3")})
			if g := p.awaitState(end, "Failed"); exitCode(g, 0) != 3 || p.logsOf(end, "c", host.LogOptions{}) != "out\n" {
				t.Errorf("exit code %d, want 3", exitCode(g, 0))
			}
			missing := p.create("missing", []M{container("c", "", M{"command": []string{"/no/such"}})})
			if g := p.awaitState(missing, "Failed"); exitCode(g, 0) != 127 {
				t.Errorf("exit code of a missing program = %d (%s), want 127", exitCode(g, 0), detail(g, 0))
			}
			p.remove(n)
		})
	}
}
