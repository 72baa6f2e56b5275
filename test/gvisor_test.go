package test

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/keeper"
)

// withRunsc is a variable of the environment in which a platform finds gVisor: of this tree, or of the machine.
func withRunsc(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../bin/runsc")
	if err != nil || !exists(path) {
		if path, err = exec.LookPath("runsc"); err != nil {
			t.Skip("runsc is missing: make runsc")
		}
	}
	return "PATH=" + filepath.Dir(path) + ":" + os.Getenv("PATH")
}

func gvisorPlatform(t *testing.T) *platform {
	t.Helper()
	p := startPlatform(t, options{env: []string{withRunsc(t)}, args: []string{"--pool", "1"}})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	return p
}

var (
	inGVisor = M{"isolation": "gvisor", "restartPolicy": "Always"}
	roomy    = M{"resources": M{"requests": M{"cpu": 0.5, "memoryInGB": 0.3}}}
)

func TestGVisor(t *testing.T) {
	t.Parallel()
	p := gvisorPlatform(t)
	n := p.create("alone", []M{container("c", "dmesg | head -3; hostname; "+web("guest"), roomy, M{"livenessProbe": M{"httpGet": M{"path": "/", "port": 8000, "scheme": "http"}, "initialDelaySeconds": 1, "failureThreshold": 10}})}, inGVisor,
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
	p.lookInto(n, "c")
	waitFor(t, "the page beside an added container", serves)
	before = starts(g)
	if err := p.client.Restart(t.Context(), "", n); err != nil {
		t.Fatal(err)
	}
	g = p.await(n, "a new run", func(g *client.Group) bool { return starts(g) != before && g.State() == "Running" })
	waitFor(t, "the page after a restart of the group", serves)
	p.remove(n)
}

// lookInto adds a container to a running group, which fetches the page of the one that it joins and lists what runs, and
// fetches the page through the API.
func (p *platform) lookInto(n, target string) {
	p.Helper()
	look := M{"name": "look", "properties": M{"image": image, "targetContainer": target, "command": []string{"/bin/sh", "-c", "ps; wget -qO- http://127.0.0.1:8000/; echo; echo looked"}}}
	if _, err := p.client.PatchGroup(p.Context(), "", n, M{"properties": M{"ephemeralContainers": []M{look}}}); err != nil {
		p.Fatal(err)
	}
	page := map[string]string{"a": "from a", "c": "guest"}[target]
	if log := p.awaitLog(n, "look", "looked"); !strings.Contains(log, page) {
		p.Errorf("an added container got\n%s\nwant the page %q", log, page)
	}
	ctx, cancel := context.WithTimeout(p.Context(), patience)
	defer cancel()
	ours, theirs := net.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- p.client.Forward(ctx, "", n, 8000, theirs)
		theirs.Close()
	}()
	if _, err := ours.Write([]byte("GET / HTTP/1.0\r\n\r\n")); err != nil {
		p.Fatal(err)
	}
	if body, _ := io.ReadAll(ours); !strings.HasSuffix(strings.TrimSpace(string(body)), page) {
		p.Errorf("through the API came %q, want the page %q", body, page)
	}
	ours.Close()
	if err := <-done; err != nil {
		p.Errorf("forward: %v", err)
	}
}

// memoryLimit reads what the cgroup of the group's slot enforces.
func (p *platform) memoryLimit() int64 {
	p.Helper()
	var most int64
	for _, pattern := range []string{"/sys/fs/cgroup/memory/spillway-" + p.id + "/s*/memory.limit_in_bytes", "/sys/fs/cgroup/spillway-" + p.id + "/s*/memory.max"} {
		files, _ := filepath.Glob(pattern)
		for _, path := range files {
			body, _ := os.ReadFile(path)
			if n, err := strconv.ParseInt(strings.TrimSpace(string(body)), 10, 64); err == nil && n < 1<<40 {
				most = max(most, n)
			}
		}
	}
	return most
}

// crashGuest waits for one restart, bringing it about when the guest would not die by itself.
func (p *platform) crashGuest(n string) {
	p.Helper()
	if g := p.get(n); restarts(g, 0) == 0 && g.Properties.Containers[0].Properties.InstanceView.Current.State == "Running" {
		if err := syscall.Kill(p.pidOf(n), syscall.SIGKILL); err != nil {
			p.Fatal(err)
		}
	}
	p.await(n, "restart", func(g *client.Group) bool { return restarts(g, 0) >= 1 })
}

// gvisorPair is a group of two: a serves a page, b fetches it over loopback into their common volume, and ends with
// code 5 when it finds a file there.
func (p *platform) gvisorPair(parts ...M) string {
	v := mounts(M{"name": "common", "mountPath": "/v"})
	b := "while :; do wget -qO /v/got http://127.0.0.1:8000/; echo tick; if [ -e /v/end ]; then rm /v/end; exit 5; fi; sleep 0.1; done"
	return p.create("pair", []M{container("a", web("from a"), roomy, v), container("b", b, roomy, v)},
		append([]M{inGVisor, {"volumes": []M{{"name": "common", "emptyDir": M{}}}}}, parts...)...)
}

func (p *platform) pairServes(n, when string) {
	p.Helper()
	addr := address(p.running(n))
	waitFor(p.T, "the page "+when, func() bool { out, _ := fetch("http://" + addr + ":8000/"); return out == "from a" })
	waitFor(p.T, "a command "+when, func() bool { _, code, err := p.tryExec(n, "a", "rm -f /v/got"); return err == nil && code == 0 })
	waitFor(p.T, "the page over loopback "+when, func() bool { out, _ := p.exec(n, "b", "cat /v/got"); return out == "from a" })
}

func TestGVisorPair(t *testing.T) {
	t.Parallel()
	p := gvisorPlatform(t)
	before := p.holdings()
	n := p.gvisorPair()
	p.pairServes(n, "at first")
	a, _ := p.exec(n, "a", "hostname; cat /proc/version; ps | wc -l")
	if b, _ := p.exec(n, "b", "hostname; cat /proc/version"); !strings.HasPrefix(a, b) || !strings.Contains(b, "gvisor") || !strings.HasPrefix(b, n) {
		t.Errorf("a is %q, b is %q; want the group's name, one guest kernel", a, b)
	}
	if s, err := p.client.Stats(t.Context(), "", n); err != nil || len(s.Containers) != 1 || s.Containers[0].Name != host.AllContainers || s.Containers[0].Memory == 0 {
		t.Errorf("stats = %+v, %v; want one entry for all", s, err)
	}
	if limit := p.memoryLimit(); limit < 600<<20 || limit > 800<<20 {
		t.Errorf("the group's memory is limited to %d bytes, want what both containers asked for and a little for their kernel", limit)
	}
	p.lookInto(n, "a")
	first := starts(p.get(n))
	p.exec(n, "a", "touch /v/end")
	g := p.await(n, "restart of b", func(g *client.Group) bool { return restarts(g, 1) == 1 && g.State() == "Running" })
	if restarts(g, 0) != 0 || strings.Fields(starts(g))[0] != strings.Fields(first)[0] {
		t.Errorf("a was restarted with b: starts %q, before %q", starts(g), first)
	}
	if prev := g.Properties.Containers[1].Properties.InstanceView.Previous; prev == nil || prev.ExitCode == nil || *prev.ExitCode != 5 {
		t.Errorf("b ended as %+v, want code 5", prev)
	}
	p.pairServes(n, "after b's restart")
	if err := syscall.Kill(p.pidOf(n), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	p.await(n, "restart of both", func(g *client.Group) bool { return restarts(g, 0) == 1 && restarts(g, 1) == 2 })
	p.pairServes(n, "in a new guest")
	since := starts(p.get(n))
	if err := p.client.Restart(t.Context(), "", n); err != nil {
		t.Fatal(err)
	}
	p.await(n, "a new epoch", func(g *client.Group) bool {
		now := strings.Fields(starts(g))
		return len(now) == 2 && now[0] != strings.Fields(since)[0] && now[1] != strings.Fields(since)[1]
	})
	p.pairServes(n, "in a new epoch")
	if err := p.client.Stop(t.Context(), "", n); err != nil {
		t.Fatal(err)
	}
	p.awaitState(n, "Stopped")
	p.settleAs(before, n)
	if err := p.client.Start(t.Context(), "", n); err != nil {
		t.Fatal(err)
	}
	p.pairServes(n, "after stop and start")
	p.remove(n)
	p.settleAs(before, n)
}

func TestGVisorPairOutlivesItsKeepers(t *testing.T) {
	t.Parallel()
	p := gvisorPlatform(t)
	n := p.gvisorPair()
	p.pairServes(n, "at first")
	before := starts(p.get(n))
	for _, kill := range []struct{ server, keeper bool }{{true, false}, {false, true}, {true, true}} {
		pid := p.keeperPid()
		if kill.server {
			if err := p.signal(syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if kill.keeper {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
		if kill.server {
			if err := p.up(); err != nil {
				t.Fatal(err)
			}
		}
		waitFor(t, "a keeper", func() bool { now := p.keeperPid(); return now != 0 && (now != pid || !kill.keeper) })
		if now := starts(p.running(n)); now != before {
			t.Fatalf("after %+v: starts %q, before %q", kill, now, before)
		}
		p.pairServes(n, "after a kill")
	}
	p.upgradeKeeper()
	if now := starts(p.running(n)); now != before {
		t.Fatalf("after an upgrade of the keeper: starts %q, before %q", now, before)
	}
	p.pairServes(n, "after an upgrade of the keeper")
	p.exec(n, "a", "touch /v/end")
	g := p.await(n, "restart of b", func(g *client.Group) bool { return restarts(g, 1) == 1 && g.State() == "Running" })
	if prev := g.Properties.Containers[1].Properties.InstanceView.Previous; prev == nil || prev.ExitCode == nil || *prev.ExitCode != 5 || restarts(g, 0) != 0 {
		t.Errorf("b ended as %+v with %d restarts of a, want code 5 and none", prev, restarts(g, 0))
	}
	p.pairServes(n, "after the restart of an adopted container")
	p.remove(n)
}

// upgradeKeeper makes the keeper execute its program anew, in place.
func (p *platform) upgradeKeeper() {
	p.Helper()
	pid := p.keeperPid()
	k, err := keeper.Dial("/run/spillway/"+p.id, func(keeper.Container) {})
	if err != nil {
		p.Fatal(err)
	}
	defer k.Close()
	if err := k.Upgrade(p.Context(), p.bin.keeper); err != nil {
		p.Fatal(err)
	}
	waitFor(p.T, "the keeper after its upgrade", func() bool {
		again, err := keeper.Dial("/run/spillway/"+p.id, func(keeper.Container) {})
		if err == nil {
			again.Close()
		}
		return err == nil && p.keeperPid() == pid
	})
}

func TestGVisorSidecar(t *testing.T) {
	t.Parallel()
	p := gvisorPlatform(t)
	before := p.holdings()
	side := M{"initContainers": []M{initContainer("first", "true"), initContainer("side", web("side"), M{"restartPolicy": "Always"})}}
	n := p.create("sidecar", []M{container("c", "until wget -qO- http://127.0.0.1:8000/; do sleep 0.1; done; exit 6", roomy)}, inGVisor, M{"restartPolicy": "Never"}, side)
	g := p.awaitState(n, "Failed")
	if code := exitCode(g, 0); code != 6 {
		t.Errorf("exit code %d, want 6", code)
	}
	if log := p.logsOf(n, "c", host.LogOptions{}); log != "side\n" {
		t.Errorf("the job got %q from its sidecar, want side", log)
	}
	p.settleAs(before, n)
	n = p.create("missing", []M{container("c", "exit 0"), container("d", "", M{"command": []string{"/no/such"}})}, inGVisor, M{"restartPolicy": "Never"})
	g = p.awaitState(n, "Failed")
	if exitCode(g, 0) != 0 || exitCode(g, 1) != 127 {
		t.Errorf("exit codes %d and %d, want 0 and 127", exitCode(g, 0), exitCode(g, 1))
	}
	p.settleAs(before, n)
}

func TestGVisorShareProcesses(t *testing.T) {
	t.Parallel()
	p := gvisorPlatform(t)
	n := p.create("pidns", []M{container("a", `trap 'exit 0' TERM; while :; do sleep 4242 & wait $!; done`, roomy), container("b", sleeper, roomy)}, inGVisor, M{"shareProcessNamespace": true})
	p.running(n)
	if out, _ := p.exec(n, "b", "ps"); !strings.Contains(out, "sleep 4242") {
		t.Errorf("ps in b does not show a's process:\n%s", out)
	}
}

func TestKillsOfTheKeeperWithAGuest(t *testing.T) {
	t.Parallel()
	s := newSweep(t, withRunsc(t))
	for _, point := range append([]string{"keeperExitSeen"}, keeperGuestPoints...) {
		n := name("guest")
		body := s.body(n, "sleep 2; exit 4")
		body["properties"].(M)["isolation"] = "gvisor"
		s.strike(point, func(ctx context.Context) error {
			_, err := s.client.PutGroup(ctx, "", n, body)
			return err
		})
		g := s.await(n, "the end", func(g *client.Group) bool { return g.State() == "Failed" || g.State() == "Succeeded" })
		for i := range g.Properties.Containers {
			if code := exitCode(g, i); code != 4 {
				t.Errorf("after a kill at %s the exit code of container %d is %d, want 4: the guest knows it", point, i, code)
			}
		}
		s.once0(point, n)
		s.drop(point, n)
	}
}

// TestKillsOfTheKeeperWhileAGuestStarts kills the keeper at any moment, also while the runtime is at work: what it has
// left then is found again, and nothing runs twice.
func TestKillsOfTheKeeperWhileAGuestStarts(t *testing.T) {
	t.Parallel()
	s := newSweep(t, withRunsc(t))
	for at := 40 * time.Millisecond; at < 280*time.Millisecond; at += 30 * time.Millisecond {
		n, point := name("guest"), at.String()
		body := s.body(n, sleeper)
		body["properties"].(M)["isolation"] = "gvisor"
		done := make(chan error, 1)
		go func() {
			_, err := s.client.PutGroup(t.Context(), "", n, body)
			done <- err
		}()
		time.Sleep(at)
		if err := syscall.Kill(s.keeperPid(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Fatalf("put during a kill after %s: %v", point, err)
		}
		s.once(point, n)
		s.drop(point, n)
	}
}
