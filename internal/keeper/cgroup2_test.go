package keeper_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/sandbox"
)

// v2Rig is a rig whose containers are in the v2 hierarchy, also on a machine that has its controllers in v1.
func v2Rig(t *testing.T) *rig {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	mount := t.TempDir()
	if err := unix.Mount("cgroup2", mount, "cgroup2", 0, ""); err != nil {
		t.Skipf("the kernel has no cgroup v2: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return newRigIn(t, func(base string) (*cgroup.Tree, error) { return cgroup.OpenUnlimited(mount, base) })
}

// v2Of is a process's cgroup in the v2 hierarchy.
func v2Of(t *testing.T, pid int) string {
	t.Helper()
	body, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(body)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path
		}
	}
	t.Fatalf("process %d has no v2 cgroup:\n%s", pid, body)
	return ""
}

func TestCgroupV2IsEnteredAtBirth(t *testing.T) {
	r := v2Rig(t)
	r.park("s")
	base := "/" + filepath.Base(r.dir)
	first, err := r.start("first", "s", sandbox.Process{Args: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	second, err := r.start("second", "s", sandbox.Process{Args: []string{"sh", "-c", "sleep 1000 & sleep 1000"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []keeper.Container{first, second} {
		if got := v2Of(t, c.Pid); !strings.HasSuffix(got, base+"/s/c") {
			t.Errorf("container %s is in cgroup %q, want %s/s/c", c.ID, got, base)
		}
	}
	var out bytes.Buffer
	code, err := r.k.Exec(context.Background(), keeper.ExecRequest{ID: "first", Process: sandbox.Process{Args: []string{"cat", "/proc/self/cgroup"}}},
		host.Streams{Stdout: &out})
	if err != nil || code != 0 || !strings.Contains(out.String(), "0::") {
		t.Errorf("exec = %d, %v, %q", code, err, out.String())
	}
	counters, err := r.k.Counters(context.Background())
	if err != nil || counters.CgroupMoves != 0 {
		t.Errorf("counters = %+v, %v, want no move: clone puts it there", counters, err)
	}
	if err := r.tree.Kill("s"); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"first", "second"} {
		if c := r.exit(id); c.Signal != int(unix.SIGKILL) {
			t.Errorf("container %s ended with signal %d, want %d", id, c.Signal, unix.SIGKILL)
		}
	}
	if err := r.tree.Remove("s"); err != nil {
		t.Errorf("remove: %v", err)
	}
	if names, err := r.tree.List(); err != nil || len(names) != 0 {
		t.Errorf("cgroups left: %v, %v", names, err)
	}
}
