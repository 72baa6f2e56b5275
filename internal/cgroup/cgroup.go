// Package cgroup makes, limits, measures and removes the cgroups of groups and containers, on v1 and v2.
//
// Cgroups are named by path below one base per platform instance; nothing outside the base is ever changed, but for
// enabling controllers on v2. Processes are put into them by the keeper, never here. Start at Open.
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Mode is the version of the cgroup interface.
type Mode string

// The modes. Hybrid layouts count as v1: their v2 tree has no controllers.
const (
	V1 Mode = "v1"
	V2 Mode = "v2"
)

const mountPoint = "/sys/fs/cgroup"

// controllers that Spillway uses.
var controllers = []string{"cpu", "cpuacct", "memory", "pids"}

// Tree is the cgroups of one platform instance.
type Tree struct {
	mode Mode
	base string
	// hand is what a v2 cgroup writes to hand its controllers down, and withdraw what it writes to take them back.
	hand, withdraw string
	// roots are the mounted hierarchies, one per distinct mount, with the controllers that each carries.
	roots []hierarchy
	// others are v1 hierarchies that are not used here, but in which OCI runtimes make cgroups of the same names.
	others []string
}

type hierarchy struct {
	dir         string
	controllers []string
}

// Limits of one cgroup; zero means none.
type Limits struct {
	MilliCPU int64 // hard limit, thousandths of a core
	Shares   int64 // weight under contention, thousandths of a core
	Memory   int64 // bytes
	Pids     int64
}

// Stat is what a cgroup uses.
type Stat struct {
	CPUNanos int64
	Memory   int64 // bytes, without inactive file cache
	Pids     int64
	OOMKills int64
}

// Detect tells the machine's mode.
func Detect() Mode {
	var fs unix.Statfs_t
	if unix.Statfs(mountPoint, &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		return V2
	}
	return V1
}

// Open finds the hierarchies and makes the base cgroup in each.
func Open(base string) (*Tree, error) {
	if Detect() == V2 {
		return openV2(mountPoint, base, "cpu", "memory", "pids")
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	t := &Tree{mode: V1, base: base}
	t.roots, t.others = v1Roots(string(mounts))
	for _, c := range []string{"cpu", "memory", "pids"} {
		if t.root(c) == "" {
			return nil, missing(c)
		}
	}
	return t, t.Make("")
}

func missing(controller string) error {
	return fmt.Errorf("cgroup controller %s is not there on this machine", controller)
}

// OpenUnlimited makes the tree of an instance in a v2 hierarchy, wherever it is mounted and whatever controllers it
// has: for tests of v2 on machines whose controllers are in v1. Limits have no effect in it.
func OpenUnlimited(mount, base string) (*Tree, error) { return openV2(mount, base) }

func openV2(mount, base string, needed ...string) (*Tree, error) {
	body, err := os.ReadFile(filepath.Join(mount, "cgroup.controllers"))
	if err != nil {
		return nil, err
	}
	t := &Tree{mode: V2, base: base, roots: []hierarchy{{mount, controllers}}}
	var hand, withdraw []string
	for _, c := range needed {
		if !slices.Contains(strings.Fields(string(body)), c) {
			return nil, missing(c)
		}
		hand, withdraw = append(hand, "+"+c), append(withdraw, "-"+c)
	}
	t.hand, t.withdraw = strings.Join(hand, " "), strings.Join(withdraw, " ")
	return t, t.Make("")
}

// v1Roots reads the mounts of the controllers from mountinfo(5), and those of the other hierarchies.
func v1Roots(mountinfo string) (roots []hierarchy, others []string) {
	lines := bufio.NewScanner(strings.NewReader(mountinfo))
	for lines.Scan() {
		head, tail, ok := strings.Cut(lines.Text(), " - ")
		fields, fs := strings.Fields(head), strings.Fields(tail)
		if !ok || len(fields) < 5 || len(fs) < 3 || fs[0] != "cgroup" && fs[0] != "cgroup2" {
			continue
		}
		if fs[0] == "cgroup2" {
			others = append(others, fields[4])
			continue
		}
		h := hierarchy{dir: fields[4]}
		for _, option := range strings.Split(fs[2], ",") {
			if slices.Contains(controllers, option) {
				h.controllers = append(h.controllers, option)
			}
		}
		known := slices.ContainsFunc(roots, func(r hierarchy) bool { return slices.Equal(r.controllers, h.controllers) })
		if len(h.controllers) == 0 {
			others = append(others, h.dir)
		} else if !known {
			roots = append(roots, h)
		}
	}
	return roots, others
}

// Mode tells which interface the tree uses.
func (t *Tree) Mode() Mode { return t.mode }

func (t *Tree) root(controller string) string {
	for _, h := range t.roots {
		if slices.Contains(h.controllers, controller) {
			return h.dir
		}
	}
	return ""
}

func (t *Tree) file(controller, path, name string) string {
	return filepath.Join(t.root(controller), t.base, path, name)
}

// Dirs are the directories of a cgroup, one per hierarchy: what a process has to be put into.
func (t *Tree) Dirs(path string) []string {
	dirs := make([]string, len(t.roots))
	for i, h := range t.roots {
		dirs[i] = filepath.Join(h.dir, t.base, path)
	}
	return dirs
}

// RuntimePath is the cgroup as OCI runtimes name it.
func (t *Tree) RuntimePath(path string) string { return filepath.Join("/", t.base, path) }

// Make makes a cgroup; its parent must exist. One that exists is fine.
func (t *Tree) Make(path string) error {
	for _, dir := range t.Dirs(path) {
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make cgroup: %w", err)
		}
		// Children need the controllers; their parent hands them down. The leaf itself holds processes and hands down
		// nothing.
		if err := t.control(filepath.Dir(dir), t.hand); err != nil {
			return err
		}
	}
	return nil
}

// Leaf makes a cgroup that processes go into, without others below it.
func (t *Tree) Leaf(path string) error {
	for _, dir := range t.Dirs(path) {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if e.IsDir() {
				if err := removeDir(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
		if err == nil {
			// Controllers that are handed down keep processes out.
			if err := t.control(dir, t.withdraw); err != nil {
				return err
			}
		}
	}
	return t.Make(path)
}

// control changes what a v2 cgroup hands down to those below it.
func (t *Tree) control(dir, change string) error {
	if change == "" {
		return nil
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(change), 0o644); err != nil {
		return fmt.Errorf("hand down cgroup controllers: %w", err)
	}
	return nil
}

// Limit sets what a cgroup may use.
func (t *Tree) Limit(path string, l Limits) error {
	for _, w := range limitWrites(t.mode, l) {
		file := t.file(w.controller, path, w.file)
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteString(w.value)
			f.Close()
		}
		if err != nil && !(w.optional && errors.Is(err, os.ErrNotExist)) {
			return fmt.Errorf("limit cgroup: write %s: %w", file, err)
		}
	}
	return nil
}

type limitWrite struct {
	controller, file, value string
	optional                bool
}

// period is the span over which a CPU limit is enforced, in microseconds: the kernel's default.
const period = 100_000

// limitWrites is the pure part of Limit.
func limitWrites(mode Mode, l Limits) []limitWrite {
	num := func(n int64) string { return strconv.FormatInt(n, 10) }
	var writes []limitWrite
	if mode == V2 {
		if l.MilliCPU > 0 {
			writes = append(writes, limitWrite{"cpu", "cpu.max", num(max(l.MilliCPU*period/1000, 1000)) + " " + num(period), false})
		}
		if l.Shares > 0 {
			// 100 is one core's weight; the range is 1 to 10,000.
			writes = append(writes, limitWrite{"cpu", "cpu.weight", num(min(max(l.Shares/10, 1), 10_000)), false})
		}
		if l.Memory > 0 {
			writes = append(writes, limitWrite{"memory", "memory.max", num(l.Memory), false},
				limitWrite{"memory", "memory.swap.max", "0", true},
				limitWrite{"memory", "memory.oom.group", "1", true})
		}
	} else {
		if l.MilliCPU > 0 {
			writes = append(writes, limitWrite{"cpu", "cpu.cfs_quota_us", num(max(l.MilliCPU*period/1000, 1000)), false})
		}
		if l.Shares > 0 {
			writes = append(writes, limitWrite{"cpu", "cpu.shares", num(max(l.Shares*1024/1000, 2)), false})
		}
		if l.Memory > 0 {
			writes = append(writes, limitWrite{"memory", "memory.limit_in_bytes", num(l.Memory), false})
		}
	}
	if l.Pids > 0 {
		writes = append(writes, limitWrite{"pids", "pids.max", num(l.Pids), false})
	}
	return writes
}

// removeWait is how long Remove waits for the last processes of a cgroup to be gone.
const removeWait = 2 * time.Second

// Remove removes a cgroup and those below it. What does not exist is fine; processes in it make it fail.
func (t *Tree) Remove(path string) error {
	var all error
	dirs := t.Dirs(path)
	for _, other := range t.others {
		dirs = append(dirs, filepath.Join(other, t.base, path))
	}
	for _, dir := range dirs {
		all = errors.Join(all, removeDir(dir))
	}
	return all
}

func removeDir(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeDir(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	for deadline := time.Now().Add(removeWait); ; {
		err := unix.Rmdir(dir)
		if err == nil || err == unix.ENOENT {
			return nil
		}
		if err != unix.EBUSY || time.Now().After(deadline) {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
		time.Sleep(5 * time.Millisecond) // the kernel tells nobody when a cgroup becomes empty on v1
	}
}

// List gives the cgroups directly below the base.
func (t *Tree) List() ([]string, error) {
	seen := map[string]bool{}
	for _, dir := range t.Dirs("") {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.IsDir() {
				seen[e.Name()] = true
			}
		}
	}
	names := make([]string, 0, len(seen))
	for name := range seen {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

// Kill ends every process of a cgroup and those below it.
func (t *Tree) Kill(path string) error {
	if t.mode == V2 {
		return os.WriteFile(t.file("pids", path, "cgroup.kill"), []byte("1"), 0o644)
	}
	return filepath.WalkDir(t.file("pids", path, ""), func(dir string, e os.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return nil
		}
		body, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		for _, line := range strings.Fields(string(body)) {
			if pid, err := strconv.Atoi(line); err == nil {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		return nil
	})
}
