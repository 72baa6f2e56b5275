package test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"spillway.dev/spillway/internal/port"
)

// Lines "gofail: var NAME struct{}" mark the places where a process may be killed between two effects. The programs
// of these tests are built from a copy of the tree in which they are switched on; a point that is armed stops there,
// and the test kills the process.

// failing are the programs with failpoints.
var failing = sync.OnceValues(func() (binaries, error) {
	tree := filepath.Join(work, "tree")
	if err := os.CopyFS(tree, sourceTree{os.DirFS("..")}); err != nil {
		return binaries{}, err
	}
	args := []string{"tool", "gofail", "enable"}
	dirs, err := exec.Command("grep", "-rl", "--include=*.go", "gofail: var", filepath.Join(tree, "internal")).Output()
	if err != nil {
		return binaries{}, fmt.Errorf("find failpoints: %w", err)
	}
	seen := map[string]bool{}
	for file := range strings.FieldsSeq(string(dirs)) {
		if dir := filepath.Dir(file); !seen[dir] {
			seen[dir] = true
			args = append(args, dir)
		}
	}
	cmd := exec.Command("go", args...)
	cmd.Dir = tree
	if out, err := cmd.CombinedOutput(); err != nil {
		return binaries{}, fmt.Errorf("gofail enable: %w: %s", err, out)
	}
	// The keeper's environment is fixed; here it is told where its failpoints are switched.
	path := filepath.Join(tree, "internal/agent/keeper.go")
	body, err := os.ReadFile(path)
	if err != nil {
		return binaries{}, err
	}
	changed := bytes.Replace(body, []byte(`"GOGC=50"}`), []byte(`"GOGC=50", "GOFAIL_HTTP=" + os.Getenv("KEEPER_GOFAIL")}`), 1)
	if bytes.Equal(body, changed) {
		return binaries{}, fmt.Errorf("the keeper's environment in %s has changed", path)
	}
	if err := os.WriteFile(path, changed, 0o644); err != nil {
		return binaries{}, err
	}
	return build(tree, filepath.Join(work, "failing"))
})

// armed is a platform whose failpoints can be switched.
type armed struct {
	*platform
	share            string
	agentAt, keeperA string
}

// keptPorts is where the next port that stays ours is looked for.
var keptPorts atomic.Int32

// keptPort finds a port that a killed process gets back: below those from which the kernel chooses for others.
func keptPort(t *testing.T) string {
	t.Helper()
	const first, count = 12000, 15000
	for range count {
		n := first + (os.Getpid()*97+int(keptPorts.Add(1)))%count
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", n))
		if err != nil {
			continue
		}
		defer l.Close()
		return l.Addr().String()
	}
	t.Fatal("no port is free")
	return ""
}

// awaitPorts waits until the port on which failpoints are switched is free: a child that a killed process was about to
// execute has it a moment longer.
func awaitPorts(env []string) error {
	for _, e := range env {
		addr, ok := strings.CutPrefix(e, "GOFAIL_HTTP=")
		if !ok {
			continue
		}
		l, err := port.Take(context.Background(), patience, func() (net.Listener, error) { return net.Listen("tcp", addr) })
		if err != nil {
			return err
		}
		l.Close()
	}
	return nil
}

func startArmed(t *testing.T, env ...string) *armed {
	t.Helper()
	bin, err := failing()
	if err != nil {
		t.Fatal(err)
	}
	a := &armed{share: t.TempDir(), agentAt: keptPort(t), keeperA: keptPort(t)}
	a.platform = startPlatform(t, options{bin: &bin, args: []string{"--pool", "2", "--share", "count=" + a.share}, env: append(env, "GOFAIL_HTTP="+a.agentAt, "KEEPER_GOFAIL="+a.keeperA)})
	if err := a.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	return a
}

// at is where a point is switched: in the keeper or in the server.
func (a *armed) at(point string) string {
	if strings.HasPrefix(point, "keeper") {
		return a.keeperA
	}
	return a.agentAt
}

func (a *armed) arm(point string) { a.armFor(point, 10*time.Minute) }

// armFor lets who comes to a point stop there for a while.
func (a *armed) armFor(point string, pause time.Duration) {
	a.Helper()
	q, err := http.NewRequest(http.MethodPut, "http://"+a.at(point)+"/"+point, strings.NewReader(fmt.Sprintf("sleep(%d)", pause.Milliseconds())))
	if err != nil {
		a.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(q)
	if err != nil {
		a.Fatalf("arm %s: %v", point, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		body, _ := io.ReadAll(resp.Body)
		a.Fatalf("arm %s: %s: %s", point, resp.Status, body)
	}
}

// reached waits until somebody has come to an armed point.
func (a *armed) reached(point string) bool {
	for deadline := time.Now().Add(8 * time.Second); time.Now().Before(deadline); time.Sleep(3 * time.Millisecond) {
		resp, err := http.Get("http://" + a.at(point) + "/" + point + "/count")
		if err != nil {
			continue
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if n, err := strconv.Atoi(strings.TrimSpace(string(body))); err == nil && n > 0 {
			return true
		}
	}
	return false
}

// strike does something with a point armed, kills whoever comes there and brings the platform back.
func (a *armed) strike(point string, do func(ctx context.Context) error) (acknowledged bool) {
	a.Helper()
	a.arm(point)
	ctx, cancel := context.WithTimeout(a.Context(), patience)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	if !a.reached(point) {
		a.Fatalf("nobody came to %s", point)
	}
	if strings.HasPrefix(point, "keeper") {
		old := a.keeperPid()
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			a.Fatalf("kill the keeper: %v", err)
		}
		return <-done == nil
	}
	if err := a.signal(syscall.SIGKILL); err != nil {
		a.Fatal(err)
	}
	cancel() // a client that would wait for the platform to come back must not ask twice
	acknowledged = <-done == nil
	if err := a.up(); err != nil {
		a.Fatalf("start after a kill at %s: %v", point, err)
	}
	return acknowledged
}

// executions counts how often a container's program has begun: each run writes a line to the share.
func (a *armed) executions(n, container string) int {
	body, _ := os.ReadFile(filepath.Join(a.share, n+"-"+container))
	return strings.Count(string(body), "\n")
}

// body is a group whose runs are counted.
func (a *armed) body(n, script string) M {
	one := func(name string) M {
		return container(name, "echo run >>/count/"+n+"-"+name+"; "+script,
			mounts(M{"name": "count", "mountPath": "/count"}, M{"name": "memory", "mountPath": "/memory"}, M{"name": "secret", "mountPath": "/secret"}))
	}
	return group([]M{one("a"), one("b")}, M{"volumes": []M{{"name": "count", "azureFile": M{"shareName": "count", "storageAccountName": "acc"}},
		{"name": "memory", "emptyDir": M{"medium": "Memory"}}, {"name": "secret", "secret": M{"k": "eA=="}}}})
}

// tally is what the machine holds, in numbers that must come back after every operation.
func (a *armed) tally() string {
	h := a.holdings()
	procs := 0
	for _, pattern := range []string{"/sys/fs/cgroup/pids/spillway-" + a.id, "/sys/fs/cgroup/spillway-" + a.id} {
		_ = filepath.WalkDir(pattern, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.Name() == "cgroup.procs" {
				body, _ := os.ReadFile(path)
				procs += strings.Count(string(body), "\n")
			}
			return nil
		})
	}
	return fmt.Sprintf("%+v processes:%d", h, procs)
}

// same waits until the machine holds what it held before.
func (a *armed) same(before string) {
	a.Helper()
	var now string
	for deadline := time.Now().Add(15 * time.Second); time.Now().Before(deadline); time.Sleep(30 * time.Millisecond) {
		if now = a.tally(); now == before {
			return
		}
	}
	a.Errorf("the machine holds\n%s\nbefore it was\n%s", now, before)
}

func TestArmedPointsExist(t *testing.T) {
	t.Parallel()
	a := startArmed(t)
	resp, err := http.Get("http://" + a.agentAt + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	for _, list := range [][]string{createPoints, stopPoints, deletePoints, pullPoints, addressPoints, addressGonePoints, networkPoints, recoveryPoints, evictionPoints, overlayPoints, keeperCreatePoints, keeperDeletePoints, keeperGuestPoints} {
		for _, point := range list {
			if !strings.Contains(string(body), point+"=") && !strings.HasPrefix(point, "keeper") {
				t.Errorf("the point %s is not in the programs", point)
			}
		}
	}
	all := strings.Join([]string{fmt.Sprint(createPoints), fmt.Sprint(stopPoints), fmt.Sprint(deletePoints), fmt.Sprint(pullPoints), fmt.Sprint(addressPoints), fmt.Sprint(addressGonePoints), fmt.Sprint(networkPoints), fmt.Sprint(recoveryPoints), fmt.Sprint(evictionPoints), fmt.Sprint(overlayPoints), fmt.Sprint(keeperCreatePoints), fmt.Sprint(keeperDeletePoints), fmt.Sprint(keeperGuestPoints)}, " ")
	for line := range strings.FieldsSeq(string(body)) {
		if name, _, _ := strings.Cut(line, "="); !strings.Contains(all, name) {
			t.Errorf("no test arms the point %s", name)
		}
	}
}
