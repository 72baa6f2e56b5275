package cgroup

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestV1Roots(t *testing.T) {
	const mounts = `24 23 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw
25 24 0:22 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
26 24 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
27 24 0:24 / /sys/fs/cgroup/pids rw shared:9 - cgroup cgroup rw,pids
28 24 0:25 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
29 24 0:23 / /mnt/again rw - cgroup cgroup rw,memory
30 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
broken line
`
	var got []string
	roots, _ := v1Roots(mounts)
	for _, h := range roots {
		got = append(got, h.dir+" "+strings.Join(h.controllers, "+"))
	}
	want := []string{"/sys/fs/cgroup/cpu,cpuacct cpu+cpuacct", "/sys/fs/cgroup/memory memory", "/sys/fs/cgroup/pids pids"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("v1Roots: (-want +got)\n%s", diff)
	}
}

func TestLimitWrites(t *testing.T) {
	full := Limits{MilliCPU: 500, Shares: 2000, Memory: 1 << 20, Pids: 7}
	tests := []struct {
		name string
		mode Mode
		in   Limits
		want []string
	}{
		{"v2", V2, full, []string{"cpu.max=50000 100000", "cpu.weight=200", "memory.max=1048576", "memory.swap.max=0?", "memory.oom.group=1?", "pids.max=7"}},
		{"v1", V1, full, []string{"cpu.cfs_quota_us=50000", "cpu.shares=2048", "memory.limit_in_bytes=1048576", "pids.max=7"}},
		{"nothing", V2, Limits{}, nil},
		{"the kernel's least quota", V1, Limits{MilliCPU: 1}, []string{"cpu.cfs_quota_us=1000"}},
		{"the kernel's least weight", V2, Limits{Shares: 1}, []string{"cpu.weight=1"}},
	}
	for _, tt := range tests {
		var got []string
		for _, w := range limitWrites(tt.mode, tt.in) {
			text := w.file + "=" + w.value
			if w.optional {
				text += "?"
			}
			got = append(got, text)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", tt.name, diff)
		}
	}
}

func TestTreeOnThisMachine(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	base := filepath.Base(t.TempDir()) + "-spillway-cgroup-test"
	tree, err := Open(base)
	if err != nil {
		t.Skipf("needs cgroups: %v", err)
	}
	t.Cleanup(func() {
		if err := tree.Remove(""); err != nil {
			t.Error(err)
		}
	})
	for _, path := range []string{"a", "a/0", "a/0", "b"} {
		if err := tree.Make(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.Limit("a/0", Limits{MilliCPU: 250, Shares: 250, Memory: 16 << 20, Pids: 5}); err != nil {
		t.Fatal(err)
	}
	if got := number(read(tree.file("pids", "a/0", "pids.max"))); got != 5 {
		t.Errorf("pids.max = %d, want 5", got)
	}
	if names, err := tree.List(); err != nil || !slices.Equal(names, []string{"a", "b"}) {
		t.Errorf("List() = %v, %v", names, err)
	}
	if err := tree.Leaf("a"); err != nil {
		t.Fatal(err)
	}
	for _, dir := range tree.Dirs("a/0") {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			t.Errorf("Leaf left %s", dir)
		}
	}
	if s := tree.Stat("a"); s.Pids != 0 || s.OOMKills != 0 {
		t.Errorf("Stat of an empty cgroup = %+v", s)
	}
	if err := tree.Remove("nothing"); err != nil {
		t.Errorf("Remove of what is not there: %v", err)
	}
}
