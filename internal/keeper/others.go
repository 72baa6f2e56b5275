package keeper

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// othersPatience bounds how long the end of a container's other processes is waited for.
const othersPatience = 2 * time.Second

// endOthers ends what a container's first process has left behind in the host's process namespace, and of one that has
// lost its lease also in one that it shares. In a namespace of its own the kernel does that; here they are found by their
// cgroup, which the container has to itself.
func (s *Server) endOthers(ct *container) {
	s.mu.Lock()
	leaseLost := ct.LeaseLost
	s.mu.Unlock()
	if !ct.HostPID && !leaseLost || len(ct.Cgroups) == 0 {
		return
	}
	for deadline := time.Now().Add(othersPatience); ; time.Sleep(time.Millisecond) {
		left := killCgroup(ct.Cgroups)
		if left == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.cfg.Log.Error("processes of an ended container are left", "container", ct.ID, "processes", left)
			return
		}
	}
}

// killCgroup kills all processes of a cgroup, given by its directories, and says how many there were.
func killCgroup(dirs []string) int {
	for _, dir := range dirs {
		if os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) == nil {
			break // v2: the kernel does it at once
		}
		// v1: none may be born while we look. The next start in the cgroup sets the limit again.
		_ = os.WriteFile(filepath.Join(dir, "pids.max"), []byte("0"), 0)
	}
	pids := cgroupProcesses(dirs[0])
	held := map[int]*os.File{}
	for _, pid := range pids {
		if fd, err := openPidfd(pid); err == nil {
			held[pid] = fd
			defer fd.Close()
		}
	}
	// Who is listed while we hold it is meant, and not another process that has got its number since.
	for _, pid := range cgroupProcesses(dirs[0]) {
		if fd, ok := held[pid]; ok {
			_ = (&container{pidfd: fd}).kill(unix.SIGKILL)
		}
	}
	return len(pids)
}

func cgroupProcesses(dir string) []int {
	body, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	var pids []int
	for _, field := range strings.Fields(string(body)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return slices.Compact(pids)
}
