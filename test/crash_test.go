package test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
)

// starts are the start times of all runs of a group: a restart shows in them.
func starts(g *client.Group) string {
	var all []string
	for i := range g.Properties.Containers {
		if v := g.Properties.Containers[i].Properties.InstanceView; v != nil && v.Current != nil {
			all = append(all, v.Current.Start)
		}
	}
	return strings.Join(all, " ")
}

func TestKilledServerRestartsNothing(t *testing.T) {
	t.Parallel()
	p := startPlatform(t, options{})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	n := p.create("survive", []M{container("c", "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.1; done", M{"stdin": true}), container("d", web("still here"))}, M{
		"restartPolicy": "Always", "volumes": []M{{"name": "data", "emptyDir": M{}}, {"name": "secret", "secret": M{"k": "eA=="}}, {"name": "memory", "emptyDir": M{"medium": "Memory"}}}})
	dying := p.create("dying", []M{container("c", "sleep 1; echo done; exit 5")})
	g := p.running(n)
	before, ip := starts(g), address(g)
	waitFor(t, "the web server", func() bool { out, _ := fetch("http://" + ip + ":8000/"); return out == "still here" })
	for round, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGKILL} {
		if err := p.signal(sig); err != nil {
			t.Fatal(err)
		}
		if out, err := fetch("http://" + ip + ":8000/"); out != "still here" {
			t.Errorf("round %d: with the server down the group answers %q, %v", round, out, err)
		}
		if round == 0 {
			time.Sleep(1200 * time.Millisecond) // the dying one ends unseen by the server
		}
		if err := p.up(); err != nil {
			t.Fatal(err)
		}
		g := p.running(n)
		if now := starts(g); now != before || address(g) != ip {
			t.Fatalf("round %d: starts %q, address %s; before the kill %q, %s", round, now, address(g), before, ip)
		}
		if restarts(g, 0)+restarts(g, 1) != 0 {
			t.Errorf("round %d: restarts are counted", round)
		}
	}
	if g := p.awaitState(dying, "Failed"); exitCode(g, 0) != 5 {
		t.Errorf("exit code of a container that ended meanwhile = %d, want 5", exitCode(g, 0))
	}
	log := p.logsOf(n, "c", host.LogOptions{})
	for i, line := range strings.Split(strings.TrimSpace(log), "\n") {
		if want := "tick " + itoa(i+1); line != want {
			t.Fatalf("line %d of the log is %q, want %q: output was lost", i, line, want)
		}
	}
	if out, _ := p.exec(n, "c", "echo alive"); out != "alive" {
		t.Errorf("exec after adoption = %q", out)
	}
}

func TestKilledKeeperRestartsNothing(t *testing.T) {
	t.Parallel()
	p := startPlatform(t, options{})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	n := p.create("survive", []M{container("c", "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.1; done"), container("d", web("still here"))}, M{"restartPolicy": "Always"})
	shared := p.create("shared", []M{container("c", sleeper), container("d", sleeper)}, M{"shareProcessNamespace": true})
	g := p.running(n)
	p.running(shared)
	before, beforeShared := starts(g), starts(p.get(shared))
	for round := range 2 {
		pid := p.keeperPid()
		if pid == 0 {
			t.Fatal("there is no keeper")
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "a new keeper", func() bool { now := p.keeperPid(); return now != 0 && now != pid })
		later := p.create("later", []M{container("c", "echo fine")})
		p.awaitState(later, "Succeeded")
		if now := starts(p.running(n)); now != before {
			t.Fatalf("round %d: starts %q, before the kill %q", round, now, before)
		}
		if now := starts(p.running(shared)); now != beforeShared {
			t.Fatalf("round %d: starts with a shared process namespace %q, before the kill %q", round, now, beforeShared)
		}
		if out, _ := p.exec(n, "c", "echo alive"); out != "alive" {
			t.Errorf("exec after adoption = %q", out)
		}
		p.awaitLog(n, "c", "tick "+itoa(30*(round+1)))
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if pid := p.keeperPid(); pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if err := p.up(); err != nil {
		t.Fatal(err)
	}
	if now := starts(p.running(n)); now != before {
		t.Fatalf("after the death of both: starts %q, before %q", now, before)
	}
	p.remove(n)
}

func itoa(i int) string {
	const digits = "0123456789"
	if i < 10 {
		return digits[i : i+1]
	}
	return itoa(i/10) + digits[i%10:i%10+1]
}

func TestKilledServerDuringStopAndDelete(t *testing.T) {
	t.Parallel()
	p := startPlatform(t, options{})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	slow := `trap 'sleep 1; exit 0' TERM; echo up; while :; do sleep 100 & wait $!; done`
	n := name("deleting")
	p.put(n, group([]M{container("c", slow)}, M{"terminationGracePeriodSeconds": 8}))
	p.awaitLog(n, "c", "up")
	if err := p.client.DeleteGroup(t.Context(), "", n, false); err != nil {
		t.Fatal(err)
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.up(); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	waitFor(t, "the deletion to finish", func() bool { _, err := p.client.GetGroup(t.Context(), "", n); return err != nil })
	if took := time.Since(begun); took > 6*time.Second {
		t.Errorf("the deletion finished %s after the restart, want about a second", took)
	}
}
