package test

import (
	"context"
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
)

func TestNeverNeverRestarts(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("never", []M{container("bad", "exit 1"), container("killed", "kill -9 $$"), container("c", "sleep 1")})
	g := p.awaitState(n, "Failed")
	for i := range 3 {
		if restarts(g, i) != 0 {
			t.Errorf("container %d was restarted %d times", i, restarts(g, i))
		}
	}
}

func TestOnFailureRestartsFailuresOnly(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("onfail", []M{container("c", "if [ -e /data/been ]; then echo second; exit 0; fi; touch /data/been; echo first; exit 4",
		M{"volumeMounts": []M{{"name": "data", "mountPath": "/data"}}})},
		M{"restartPolicy": "OnFailure", "volumes": []M{{"name": "data", "emptyDir": M{}}}})
	begun := time.Now()
	g := p.awaitState(n, "Succeeded")
	if restarts(g, 0) != 1 || exitCode(g, 0) != 0 {
		t.Errorf("restarts %d, exit code %d; want 1, 0", restarts(g, 0), exitCode(g, 0))
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("the first restart came after %s, want at once", took)
	}
	if v := g.Properties.Containers[0].Properties.InstanceView.Previous; v == nil || v.ExitCode == nil || *v.ExitCode != 4 {
		t.Errorf("previous state %+v, want exit code 4", v)
	}
	if log := p.logsOf(n, "c", host.LogOptions{Previous: true}); log != "first\n" {
		t.Errorf("previous log %q, want first", log)
	}
	if log := p.logsOf(n, "c", host.LogOptions{}); log != "second\n" {
		t.Errorf("log %q, want second", log)
	}
}

func TestAlwaysBacksOff(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("always", []M{container("c", "exit 0")}, M{"restartPolicy": "Always"})
	g := p.await(n, "back-off", func(g *client.Group) bool {
		return restarts(g, 0) == 1 && strings.Contains(detail(g, 0), "CrashLoopBackOff")
	})
	begun := time.Now()
	if g.State() != "Running" {
		t.Errorf("state in back-off = %s, want Running", g.State())
	}
	p.await(n, "second restart", func(g *client.Group) bool { return restarts(g, 0) == 2 })
	if took := time.Since(begun); took < 9*time.Second || took > 12*time.Second {
		t.Errorf("the second restart came after %s, want 10 s", took)
	}
}

func TestOOMKilled(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	// The shell itself grows, so that the first process is the one that is killed.
	n := p.create("oom", []M{container("c", `x=0123456789abcdef; while :; do x="$x$x"; done`, M{"resources": M{"requests": M{"cpu": 0.5, "memoryInGB": 0.02}}}),
		container("calm", "sleep 2")})
	g := p.awaitState(n, "Failed")
	if detail(g, 0) != "OOMKilled" || exitCode(g, 0) != 137 {
		t.Errorf("detail %q, exit code %d; want OOMKilled, 137", detail(g, 0), exitCode(g, 0))
	}
	if exitCode(g, 1) != 0 {
		t.Errorf("the container beside it ended with %d, want 0", exitCode(g, 1))
	}
}

func TestProgramThatDoesNotExist(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	missing := container("missing", "", M{"command": []string{"/no/such/program"}})
	denied := container("denied", "", M{"command": []string{"/etc/passwd"}})
	n := p.create("noexec", []M{missing, denied})
	g := p.awaitState(n, "Failed")
	if exitCode(g, 0) != 127 || exitCode(g, 1) != 126 {
		t.Errorf("exit codes %d, %d; want 127, 126", exitCode(g, 0), exitCode(g, 1))
	}
	if !strings.Contains(detail(g, 0), "/no/such/program") {
		t.Errorf("detail %q does not name the program", detail(g, 0))
	}
}

func TestLivenessRestarts(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("live", []M{container("c", "touch /tmp/ok; sleep 1; rm /tmp/ok; "+sleeper, M{
		"livenessProbe": M{"exec": M{"command": []string{"/bin/cat", "/tmp/ok"}}, "periodSeconds": 1, "failureThreshold": 1, "initialDelaySeconds": 1}})},
		M{"restartPolicy": "Always"})
	g := p.await(n, "restart", func(g *client.Group) bool { return restarts(g, 0) >= 1 })
	if !strings.Contains(events(g), "Liveness probe failed") {
		t.Errorf("events lack the failed probe:\n%s", events(g))
	}
}

func TestReadinessAndStartup(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("ready", []M{
		container("http", "mkdir -p /tmp/www; httpd -p 8080 -h /tmp/www; sleep 1; echo ok >/tmp/www/health; "+sleeper, M{
			"readinessProbe": M{"httpGet": M{"path": "/health", "port": 8080, "scheme": "http"}, "periodSeconds": 1}}),
		container("tcp", "sleep 1; httpd -p 9090; "+sleeper, M{
			"startupProbe":  M{"tcpSocket": M{"port": 9090}, "periodSeconds": 1, "failureThreshold": 10},
			"livenessProbe": M{"tcpSocket": M{"port": 9090}, "periodSeconds": 1}}),
	})
	p.await(n, "running, not ready", func(g *client.Group) bool {
		v := g.Properties.Containers[0].Properties.InstanceView
		return v != nil && v.Current != nil && v.Current.State == "Running" && v.Ready != nil && !*v.Ready
	})
	p.running(n)
	if g := p.get(n); restarts(g, 0)+restarts(g, 1) != 0 {
		t.Error("a container was restarted")
	}
	if _, code := p.exec(n, "http", "rm /tmp/www/health"); code != 0 {
		t.Fatal("cannot remove the health file")
	}
	p.await(n, "not ready again", func(g *client.Group) bool {
		v := g.Properties.Containers[0].Properties.InstanceView
		return v.Ready != nil && !*v.Ready
	})
}

func TestStartupFailureRestarts(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("startup", []M{container("c", "trap 'exit 3' TERM; while :; do sleep 100 & wait $!; done", M{
		"startupProbe": M{"exec": M{"command": []string{"/bin/false"}}, "periodSeconds": 1, "failureThreshold": 1}})})
	g := p.awaitState(n, "Failed")
	if !strings.Contains(events(g), "Startup probe failed") || restarts(g, 0) != 0 {
		t.Errorf("want one run and the failed probe in the events, got %d restarts and\n%s", restarts(g, 0), events(g))
	}
}

func TestStopDuringBackoff(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("backoff", []M{container("c", "exit 1")}, M{"restartPolicy": "Always"})
	p.await(n, "back-off", func(g *client.Group) bool { return strings.Contains(detail(g, 0), "CrashLoopBackOff") })
	begun := time.Now()
	if err := p.client.Stop(context.Background(), "", n); err != nil {
		t.Fatal(err)
	}
	p.awaitState(n, "Stopped")
	if took := time.Since(begun); took > 3*time.Second {
		t.Errorf("stop in back-off took %s", took)
	}
}
