package test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
)

// fencing is a fleet of two hosts beside the platform's own, which takes no groups. Each run of a group writes signs of
// life into a file of its own: how long the machine had been up.
type fencing struct {
	*platform
	share string
	hosts map[string]*fleetHost
}

// alive is a script that shows signs of life, below a directory of its group.
const alive = `mkdir -p /signs/$HOSTNAME; read now _ </proc/uptime; f=/signs/$HOSTNAME/$now
while :; do read now _ </proc/uptime; echo $now >>$f; sleep 0.03; done`

func startFencing(t *testing.T, env ...string) *fencing {
	t.Helper()
	s := newSite(t)
	first := s.machine("first")
	f := &fencing{share: t.TempDir(), hosts: map[string]*fleetHost{}}
	f.platform = startPlatform(t, options{on: first, args: []string{"--hosts-listen", first.addr + ":8444", "--beat", beat.String(), "--share", "signs=" + f.share}})
	for _, name := range []string{"h1", "h2"} {
		h := prepareHost(t, s.machine(name))
		h.args, h.env = []string{"--share", "signs=" + f.share}, env
		h.join(endpointOf(t, f.dir), token(t, f.client))
		f.hosts[name] = h
		awaitHost(t, f.client, name, host.Ready)
	}
	if err := f.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	return f
}

// only lets new groups onto one host, or with "" onto the two that have joined.
func (f *fencing) only(name string) {
	f.Helper()
	list, err := f.client.Hosts(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	for _, h := range list {
		action := "cordon"
		if h.Name == name || name == "" && f.hosts[h.Name] != nil {
			action = "uncordon"
		}
		if _, err := f.client.HostAction(f.Context(), h.Name, action); err != nil {
			f.Fatal(err)
		}
	}
}

// living makes a group that shows signs of life.
func (f *fencing) living(failover M) string {
	f.Helper()
	return f.livingWith([]M{container("c", alive, inSigns)}, failover)
}

var inSigns = mounts(M{"name": "signs", "mountPath": "/signs"})

func (f *fencing) livingWith(containers []M, parts ...M) string {
	f.Helper()
	n := f.create("living", containers, append(parts, M{"restartPolicy": "Always",
		"volumes": []M{{"name": "signs", "azureFile": M{"shareName": "signs", "storageAccountName": "acc"}}}})...)
	f.running(n)
	return n
}

// signs are the first and the last sign of life of each run of a group, in order.
func (f *fencing) signs(n string) [][2]float64 {
	files, _ := filepath.Glob(filepath.Join(f.share, n, "*"))
	var out [][2]float64
	for _, path := range files {
		body, _ := os.ReadFile(path)
		var run [2]float64
		for i, line := range strings.Fields(string(body)) {
			if at, err := strconv.ParseFloat(line, 64); err == nil && (i == 0 || at > run[1]) {
				run[1] = at
				if run[0] == 0 {
					run[0] = at
				}
			}
		}
		out = append(out, run)
	}
	slices.SortFunc(out, func(a, b [2]float64) int { return int(1000 * (a[0] - b[0])) })
	return out
}

// inTurn checks that a group has had so many runs, and that none began before the one before was dead.
func (f *fencing) inTurn(n string, runs int, when string) {
	f.Helper()
	signs := f.signs(n)
	if len(signs) != runs {
		f.Fatalf("%s: %d runs of %s: %v, want %d", when, len(signs), n, signs, runs)
	}
	for i := 1; i < runs; i++ {
		if signs[i][0] <= signs[i-1][1] {
			f.Errorf("%s: run %d began at %.2f, the one before was alive at %.2f", when, i+1, signs[i][0], signs[i-1][1])
		}
	}
	f.Logf("%s: %.2f s between the last sign of the old copy and the first of the new", when, signs[runs-1][0]-signs[runs-2][1])
}

func (f *fencing) movedTo(n, name string) {
	f.Helper()
	f.await(n, "a run on "+name, func(g *client.Group) bool { return g.Properties.Host == name && g.State() == "Running" })
}

// TestFencedFailover cuts hosts off whose agents are stopped or killed: what runs there is gone before it runs elsewhere.
func TestFencedFailover(t *testing.T) {
	t.Parallel()
	f := startFencing(t)
	f.only("h1")
	n := f.living(M{"failover": "Fenced"})
	f.only("")
	one := f.hosts["h1"].cmd.Process
	if err := one.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	f.movedTo(n, "h2")
	waitFor(t, "signs of life on the second host", func() bool { return len(f.signs(n)) > 1 })
	f.inTurn(n, 2, "agent stopped")
	// It goes on, believing that nothing has happened.
	if err := one.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	awaitHost(t, f.client, "h1", host.Ready)
	time.Sleep(2 * beat)
	f.inTurn(n, 2, "agent that goes on")

	f.hosts["h2"].signal(syscall.SIGKILL)
	f.movedTo(n, "h1")
	waitFor(t, "signs of life on the first host", func() bool { return len(f.signs(n)) > 2 })
	f.inTurn(n, 3, "agent killed")
	f.hosts["h2"].start()
	awaitHost(t, f.client, "h2", host.Ready)
	time.Sleep(2 * beat)
	f.inTurn(n, 3, "agent that has come back")
	f.remove(n)
}

// TestFencedWithoutServers: a host that has lost its servers stops what is fenced and nothing else, and starts it again
// when they are back. One that is its own server has nobody to lose.
func TestFencedWithoutServers(t *testing.T) {
	t.Parallel()
	f := startFencing(t)
	f.only("h1")
	fenced, plain := f.living(M{"failover": "Fenced"}), f.living(nil)
	list, err := f.client.Hosts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	own := slices.IndexFunc(list, func(h host.Host) bool { return f.hosts[h.Name] == nil })
	f.only(list[own].Name)
	here := f.living(M{"failover": "Fenced"})
	// An agent that is killed and comes back in time restarts nothing, and ends nothing.
	f.hosts["h1"].signal(syscall.SIGKILL)
	f.hosts["h1"].start()
	awaitHost(t, f.client, "h1", host.Ready)
	time.Sleep(4 * beat)
	for _, n := range []string{fenced, plain, here} {
		if len(f.signs(n)) != 1 {
			t.Errorf("after a kill of the agent: runs of %s: %v", n, f.signs(n))
		}
	}
	if err := f.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f.dies(fenced)
	f.comesBack(fenced, 1, "servers lost")
	g := f.get(fenced)
	if prev := g.Properties.Containers[0].Properties.InstanceView.Previous; prev == nil || !strings.HasPrefix(prev.Detail, "LeaseLost") || g.Properties.Host != "h1" {
		t.Errorf("on %s the run before ended as %+v, want LeaseLost on h1", g.Properties.Host, prev)
	}
	// A keeper that is stopped kills nothing: the agent does.
	id, _, err := instanceOf(f.hosts["h1"].dir)
	if err != nil {
		t.Fatal(err)
	}
	keeper := (&process{id: id}).keeperPid()
	for _, err := range []error{syscall.Kill(keeper, syscall.SIGSTOP), f.signal(syscall.SIGKILL)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	f.dies(fenced)
	if err := syscall.Kill(keeper, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	f.comesBack(fenced, 2, "keeper stopped")
	for _, n := range []string{plain, here} {
		if len(f.signs(n)) != 1 {
			t.Errorf("after the loss of the server: runs of %s: %v", n, f.signs(n))
		}
	}
}

// dies waits until a group shows no more signs of life.
func (f *fencing) dies(n string) {
	f.Helper()
	waitFor(f.T, "the end of "+n, func() bool {
		before := f.signs(n)
		time.Sleep(beat)
		return slices.Equal(f.signs(n), before)
	})
}

// comesBack starts the server again, and waits for a group's next run.
func (f *fencing) comesBack(n string, times int, when string) {
	f.Helper()
	if err := f.up(); err != nil {
		f.Fatal(err)
	}
	f.await(n, "a restart", func(g *client.Group) bool { return g.State() == "Running" && restarts(g, 0) == times })
	waitFor(f.T, "signs of life after that", func() bool { return len(f.signs(n)) > times })
	f.inTurn(n, times+1, when)
}

// TestFencedKinds ends groups whose containers are more than one process: in a guest kernel, shared and not, and in a
// process namespace that they share. The signs of life come from a child.
func TestFencedKinds(t *testing.T) {
	t.Parallel()
	f := startFencing(t, withRunsc(t))
	f.only("h1")
	child := `mkdir -p /signs/$HOSTNAME; f=/signs/$HOSTNAME/$(date +%s)
( while :; do read now _ </proc/uptime; echo $now >>$f; sleep 0.05; done ) & wait`
	one, fenced := container("c", child, inSigns, roomy), M{"failover": "Fenced"}
	pair := []M{one, container("d", sleeper, roomy)}
	groups := []string{f.livingWith([]M{one}, fenced, M{"isolation": "gvisor"}), f.livingWith(pair, fenced, M{"isolation": "gvisor"}),
		f.livingWith(pair, fenced, M{"shareProcessNamespace": true})}
	if err := f.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, n := range groups {
		f.dies(n)
	}
	if err := f.up(); err != nil {
		t.Fatal(err)
	}
	for _, n := range groups {
		g := f.await(n, "a restart", func(g *client.Group) bool { return restarts(g, 0) == 1 && g.State() == "Running" })
		for _, c := range g.Properties.Containers {
			if v := c.Properties.InstanceView; v.Current.State != "Running" || v.Previous == nil || !strings.HasPrefix(v.Previous.Detail, "LeaseLost") {
				t.Errorf("container %s of %s: %+v after %+v", c.Name, n, v.Current, v.Previous)
			}
		}
	}
}
