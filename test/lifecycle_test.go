package test

import (
	"context"
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
)

func TestRunToEnd(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("end", []M{container("c", "echo hello; echo problem >&2; exit 3")})
	g := p.awaitState(n, "Failed")
	if exitCode(g, 0) != 3 || detail(g, 0) != "Error" {
		t.Errorf("exit code %d, detail %q; want 3, Error", exitCode(g, 0), detail(g, 0))
	}
	if out := p.logsOf(n, "c", host.LogOptions{}); out != "hello\nproblem\n" && out != "problem\nhello\n" {
		t.Errorf("log %q, want hello and problem", out)
	}
	ok := p.create("ok", []M{container("c", "exit 0")})
	if g := p.awaitState(ok, "Succeeded"); detail(g, 0) != "Completed" {
		t.Errorf("detail %q, want Completed", detail(g, 0))
	}
}

func TestEnvironmentAndFiles(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("env", []M{container("c", `echo "$FROM_IMAGE $MINE $SECRET $(pwd) $(hostname) $(cat /etc/hostname)"; cat /etc/hosts; cat /etc/resolv.conf; `+sleeper, M{
		"environmentVariables": []M{{"name": "MINE", "value": "a b"}, {"name": "SECRET", "secureValue": "s3cret"}},
		"workingDirectory":     "/home/web",
	})}, M{"hostname": "inside", "hostAliases": []M{{"ip": "10.9.8.7", "hostnames": []string{"far.test", "away.test"}}},
		"dnsConfig": M{"nameServers": []string{"192.0.2.53"}, "searchDomains": "one.test two.test", "options": "ndots:2"}})
	g := p.running(n)
	log := p.awaitLog(n, "c", "ndots:2")
	for _, want := range []string{"yes a b s3cret /home/web inside inside", "10.9.8.7\tfar.test\taway.test", address(g), "nameserver 192.0.2.53", "search one.test two.test", "options ndots:2"} {
		if !strings.Contains(strings.ReplaceAll(log, "10.9.8.7 ", "10.9.8.7\t"), want) {
			t.Errorf("log lacks %q:\n%s", want, log)
		}
	}
	if strings.Contains(string(g.Raw), "s3cret") {
		t.Errorf("the answer shows a secret value:\n%s", g.Raw)
	}
}

func TestStopStartRestartDelete(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	ctx := context.Background()
	n := p.create("cycle", []M{container("c", "date +%s%N; "+sleeper)})
	p.running(n)
	first := p.get(n).Properties.Containers[0].Properties.InstanceView.Current.Start
	if err := p.client.Stop(ctx, "", n); err != nil {
		t.Fatal(err)
	}
	g := p.awaitState(n, "Stopped")
	if address(g) != "" {
		t.Errorf("a stopped group has the address %s", address(g))
	}
	if err := p.client.Start(ctx, "", n); err != nil {
		t.Fatal(err)
	}
	g = p.running(n)
	v := g.Properties.Containers[0].Properties.InstanceView
	if v.Current.Start == first || v.Previous == nil {
		t.Errorf("after a start: current %+v, previous %+v; want a new run and the old one as previous", v.Current, v.Previous)
	}
	if err := p.client.Restart(ctx, "", n); err != nil {
		t.Fatal(err)
	}
	second := v.Current.Start
	p.await(n, "restart", func(g *client.Group) bool {
		v := g.Properties.Containers[0].Properties.InstanceView
		return v != nil && v.Current != nil && v.Current.State == "Running" && v.Current.Start != second
	})
	p.remove(n)
	if _, err := p.client.GetGroup(ctx, "", n); err == nil {
		t.Error("a deleted group still answers")
	}
}

func TestUpdateInPlace(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("update", []M{container("c", "echo one; "+sleeper)})
	p.running(n)
	p.put(n, group([]M{container("c", "echo two $NEW; "+sleeper, M{"environmentVariables": []M{{"name": "NEW", "value": "x"}}})}))
	p.awaitLog(n, "c", "two x")
	p.running(n)
	why := p.refused(n, group([]M{container("c", sleeper), container("d", sleeper)}))
	if !strings.Contains(why, n) || !strings.Contains(why, "set of containers") {
		t.Errorf("refusal of another container = %q, want it to name group and rule", why)
	}
}

func TestInitContainersInOrder(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	mount := M{"volumeMounts": []M{{"name": "data", "mountPath": "/data"}}}
	n := p.create("init", []M{container("c", "cat /data/order; "+sleeper, mount)}, M{
		"volumes": []M{{"name": "data", "emptyDir": M{}}},
		"initContainers": []M{
			initContainer("one", "sleep 0.3; echo one >>/data/order", mount),
			initContainer("side", `echo side >>/data/order; trap 'echo side-stopped; exit 0' TERM; while :; do sleep 1000 & wait; done`, mount, M{"restartPolicy": "Always"}),
			initContainer("two", "sleep 0.1; echo two >>/data/order", mount),
		},
	})
	if log := p.awaitLog(n, "c", "two"); log != "one\nside\ntwo\n" {
		t.Errorf("order %q, want one, side, two", log)
	}
	p.running(n)
	if out, _ := p.exec(n, "side", "echo alive"); out != "alive" {
		t.Errorf("exec in the sidecar = %q, want alive", out)
	}
}

func TestInitContainerFails(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("initfail", []M{container("c", "echo never")}, M{"initContainers": []M{initContainer("bad", "exit 5")}})
	g := p.awaitState(n, "Failed")
	if v := g.Properties.Containers[0].Properties.InstanceView; v != nil && v.Current != nil && v.Current.State != "Waiting" {
		t.Errorf("the container behind a failed init container is %s", v.Current.State)
	}
}

func TestJobWithSidecarEnds(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("job", []M{container("c", "sleep 0.3")}, M{"initContainers": []M{initContainer("side", sleeper, M{"restartPolicy": "Always"})}})
	p.awaitState(n, "Succeeded")
}

func TestGraceAndKill(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("grace", []M{container("soft", `trap 'echo got-term; exit 7' TERM; echo up; while :; do sleep 100 & wait $!; done`),
		container("hard", `trap 'echo ignored' TERM; echo up; while :; do sleep 100 & wait $!; done`)}, M{"terminationGracePeriodSeconds": 2})
	p.awaitLog(n, "soft", "up")
	p.awaitLog(n, "hard", "up")
	begun := time.Now()
	if err := p.client.Stop(context.Background(), "", n); err != nil {
		t.Fatal(err)
	}
	g := p.awaitState(n, "Stopped")
	if took := time.Since(begun); took < 1900*time.Millisecond || took > 6*time.Second {
		t.Errorf("stop took %s, want about the grace period of 2 s", took)
	}
	if exitCode(g, 0) != 7 || exitCode(g, 1) != 137 {
		t.Errorf("exit codes %d, %d; want 7 (its own), 137 (killed)", exitCode(g, 0), exitCode(g, 1))
	}
	if log := p.logsOf(n, "soft", host.LogOptions{}); !strings.Contains(log, "got-term") {
		t.Errorf("log after the stop = %q, want got-term", log)
	}
}

func TestHooks(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	mount := M{"volumeMounts": []M{{"name": "data", "mountPath": "/data"}}}
	n := p.create("hooks", []M{
		container("c", `trap 'cat /data/hook; exit 0' TERM; while :; do sleep 100 & wait $!; done`, mount, M{"lifecycle": M{
			"postStart": M{"exec": M{"command": []string{"/bin/sh", "-c", "echo begun >>/data/hook"}}},
			"preStop":   M{"exec": M{"command": []string{"/bin/sh", "-c", "echo stopping >>/data/hook; sleep 0.2"}}}}}),
		container("bad", sleeper, M{"lifecycle": M{"postStart": M{"exec": M{"command": []string{"/bin/false"}}}}}),
	}, M{"volumes": []M{{"name": "data", "emptyDir": M{}}}})
	waitFor(t, "the start hook", func() bool {
		out, _, err := p.tryExec(n, "c", "cat /data/hook")
		return err == nil && out == "begun"
	})
	p.await(n, "failed hook", func(g *client.Group) bool { return strings.Contains(events(g), "FailedPostStartHook") })
	if err := p.client.Stop(context.Background(), "", n); err != nil {
		t.Fatal(err)
	}
	p.awaitState(n, "Stopped")
	if log := p.logsOf(n, "c", host.LogOptions{}); log != "begun\nstopping\n" {
		t.Errorf("log = %q, want begun, stopping", log)
	}
}

func TestTerminationMessage(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("message", []M{
		container("file", "printf 'last words' >/dev/termination-log; exit 1", M{"terminationMessagePath": "/dev/termination-log"}),
		container("log", "echo from the log; exit 1", M{"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "FallbackToLogsOnError"})})
	g := p.awaitState(n, "Failed")
	for i, want := range []string{"last words", "from the log"} {
		if got := strings.TrimSpace(g.Properties.Containers[i].Properties.InstanceView.Current.Message); got != want {
			t.Errorf("message of container %d = %q, want %q", i, got, want)
		}
	}
}

func TestManyContainersShareNamespaces(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("many", []M{container("a", "echo ready | nc -l -p 7001; "+sleeper), container("b", "sleep 0.3; nc 127.0.0.1 7001; "+sleeper), container("c", sleeper)})
	p.awaitLog(n, "b", "ready")
	seen := map[string]string{}
	for _, c := range []string{"a", "b", "c"} {
		out, _ := p.exec(n, c, "for n in net ipc uts; do readlink /proc/self/ns/$n; done")
		lines := strings.Split(out, "\n")
		for i, kind := range []string{"net", "ipc", "uts"} {
			if seen[kind] == "" {
				seen[kind] = lines[i]
			}
			if seen[kind] != lines[i] {
				t.Errorf("%s namespace of %s is %s, of the first container %s", kind, c, lines[i], seen[kind])
			}
		}
	}
}

func TestShareProcesses(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("pidns", []M{container("a", `trap 'exit 0' TERM; while :; do sleep 4242 & wait $!; done`), container("b", sleeper)}, M{"shareProcessNamespace": true})
	p.running(n)
	if out, _ := p.exec(n, "b", "ps"); !strings.Contains(out, "sleep 4242") {
		t.Errorf("ps in b does not show a's process:\n%s", out)
	}
}

func TestSysctls(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("sysctl", []M{container("c", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start")}, M{"sysctls": M{"net.ipv4.ip_unprivileged_port_start": "1023"}})
	p.awaitState(n, "Succeeded")
	if log := p.logsOf(n, "c", host.LogOptions{}); log != "1023\n" {
		t.Errorf("sysctl inside = %q, want 1023", log)
	}
	if why := p.refused(name("sysctl"), group([]M{container("c", "true")}, M{"sysctls": M{"kernel.panic": "1"}})); !strings.Contains(why, "kernel.panic") {
		t.Errorf("refusal %q does not name the sysctl", why)
	}
}

func TestEndedGroupHoldsNothing(t *testing.T) {
	t.Parallel()
	p := startPlatform(t, options{args: []string{"--pool", "1"}})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	warm := p.create("warm", []M{container("c", "true")})
	p.awaitState(warm, "Succeeded")
	p.settle(p.holdings(), warm)
	before := p.holdings()
	n := p.create("ended", []M{container("c", "echo x"), container("d", "true")}, M{"volumes": []M{{"name": "memory", "emptyDir": M{"medium": "Memory"}}}})
	p.awaitState(n, "Succeeded")
	want := before
	p.settleAs(want, n)
	if log := p.logsOf(n, "c", host.LogOptions{}); log != "x\n" {
		t.Errorf("log of an ended group = %q, want x", log)
	}
}

// settle waits until the holdings stay the same for a moment.
func (p *platform) settle(last holdings, _ string) {
	for quiet := 0; quiet < 20; {
		time.Sleep(30 * time.Millisecond)
		if now := p.holdings(); now == last {
			quiet++
		} else {
			last, quiet = now, 0
		}
	}
}

// settleAs waits until an ended group holds no link, cgroup, mount or run beyond those of before.
func (p *platform) settleAs(want holdings, n string) {
	p.Helper()
	var now holdings
	for deadline := time.Now().Add(patience / 2); time.Now().Before(deadline); time.Sleep(30 * time.Millisecond) {
		if now = p.holdings(); now.links == want.links && now.cgroups == want.cgroups && now.mounts == want.mounts && now.runs == want.runs {
			return
		}
	}
	p.Errorf("the ended group %s holds something: %+v, before it was %+v", n, now, want)
}
