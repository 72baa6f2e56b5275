package test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
)

// instanceOf reads which instance a data directory is, and the address of its gateway.
func instanceOf(dir string) (id, gateway string, err error) {
	body, err := os.ReadFile(filepath.Join(dir, "instance.json"))
	if err != nil {
		return "", "", err
	}
	var i struct {
		ID   string       `json:"id"`
		CIDR netip.Prefix `json:"cidr"`
	}
	err = json.Unmarshal(body, &i)
	return i.ID, i.CIDR.Masked().Addr().Next().String(), err
}

// leftovers says what a purged platform has left on the machine. Some of it goes a moment later than the purge ends:
// the kernel takes network namespaces apart in the background.
func leftovers(id, dir, gateway string) error {
	var err error
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = errors.Join(gatewayOf(gateway), clusterAddressOf(id), linksOf(id), tablesOf(id), cgroupsOf(id), mountsOf(dir, id), processesOf(id, dir), runDirOf(id)); err == nil {
			return nil
		}
	}
	return err
}

// gatewayOf looks for the platform's own address on the loopback device.
func gatewayOf(gateway string) error {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return err
	}
	addrs, err := lo.Addrs()
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if gateway != "" && strings.HasPrefix(a.String(), gateway+"/") {
			return fmt.Errorf("address %s is left", a)
		}
	}
	routes, err := exec.Command("ip", "-4", "route", "show", "table", "all").Output()
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(routes)) {
		if gateway != "" && slices.Contains(strings.Fields(line), gateway) {
			return fmt.Errorf("route %q is left", strings.TrimSpace(line))
		}
	}
	return nil
}

// clusterAddressOf looks for the address of a Kubernetes beside the platform.
func clusterAddressOf(id string) error {
	out, err := exec.Command("ip", "-4", "addr", "show", "dev", "lo").Output()
	if err == nil && strings.Contains(string(out), "lo:sk"+id) {
		err = fmt.Errorf("an address labelled lo:sk%s is left", id)
	}
	return err
}

func linksOf(id string) error {
	links, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, "sw"+id) {
			return fmt.Errorf("link %s is left", l.Name)
		}
	}
	return nil
}

func tablesOf(id string) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		if strings.Contains(t.Name, id) && strings.Contains(t.Name, "spillway") {
			return fmt.Errorf("table %s is left", t.Name)
		}
	}
	return nil
}

func cgroupsOf(id string) error {
	var left error
	found, _ := filepath.Glob("/sys/fs/cgroup/*/spillway-" + id)
	direct, _ := filepath.Glob("/sys/fs/cgroup/spillway-" + id)
	for _, dir := range append(found, direct...) {
		left = errors.Join(left, fmt.Errorf("cgroup %s is left", dir))
	}
	return left
}

func mountsOf(dir, id string) error {
	body, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.SplitSeq(string(body), "\n") {
		f := strings.Fields(line)
		if len(f) > 4 && (strings.HasPrefix(f[4], dir+"/") || strings.HasPrefix(f[4], "/run/spillway/"+id)) {
			return fmt.Errorf("mount %s is left", f[4])
		}
	}
	return nil
}

func runDirOf(id string) error {
	if _, err := os.Stat("/run/spillway/" + id); err == nil {
		return fmt.Errorf("/run/spillway/%s is left", id)
	}
	return nil
}

// processesOf looks for processes whose arguments name the instance's directories: the server, keeper and inits.
func processesOf(id, dir string) error {
	run := "/run/spillway/" + id
	pid := findProcess(func(argv []string) bool {
		for _, a := range argv {
			if a == dir || a == run || strings.HasPrefix(a, run+"/") {
				return true
			}
		}
		return false
	})
	if pid != 0 {
		return fmt.Errorf("process %d is left", pid)
	}
	return nil
}

// findProcess gives the first process whose arguments match, 0 when there is none.
func findProcess(match func(argv []string) bool) int {
	for _, pid := range processIDs() {
		body, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || len(body) == 0 {
			continue
		}
		if match(strings.Split(strings.TrimRight(string(body), "\x00"), "\x00")) && !unborn(pid, body) {
			return pid
		}
	}
	return 0
}

// unborn says whether a process is about to become another one: until then it passes for its parent.
func unborn(pid int, cmdline []byte) bool {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return true // it has ended
	}
	parent, _ := os.ReadFile("/proc/" + fields[1] + "/cmdline")
	return bytes.Equal(parent, cmdline)
}

func processIDs() []int {
	entries, _ := os.ReadDir("/proc")
	var pids []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// holdings counts what an instance holds on the machine now, for comparisons before and after.
type holdings struct {
	links, cgroups, mounts, runs, files int
}

func (p *process) holdings() holdings {
	var h holdings
	links, _ := net.Interfaces()
	for _, l := range links {
		if strings.HasPrefix(l.Name, "sw"+p.id) {
			h.links++
		}
	}
	for _, pattern := range []string{"/sys/fs/cgroup/memory/spillway-" + p.id + "/*", "/sys/fs/cgroup/spillway-" + p.id + "/*"} {
		dirs, _ := filepath.Glob(pattern)
		for _, d := range dirs {
			if info, err := os.Stat(d); err == nil && info.IsDir() {
				h.cgroups++
			}
		}
	}
	body, _ := os.ReadFile("/proc/self/mountinfo")
	h.mounts = strings.Count(string(body), p.dir+"/")
	runs, _ := os.ReadDir(filepath.Join(p.dir, "agent/runs"))
	h.runs = len(runs)
	for _, sub := range []string{"groups", "files", "logs", "volumes"} {
		entries, _ := os.ReadDir(filepath.Join(p.dir, "agent", sub))
		h.files += len(entries)
	}
	records, _ := filepath.Glob("/run/spillway/" + p.id + "/containers/*")
	h.files += len(records)
	fifos, _ := filepath.Glob("/run/spillway/" + p.id + "/fifo/*")
	h.files += len(fifos)
	return h
}
