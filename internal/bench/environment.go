package bench

import (
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/cgroup"
)

// environment describes the machine that a figure was measured on.
func environment() map[string]string {
	env := map[string]string{"cores": strconv.Itoa(runtime.NumCPU()), "cgroup": string(cgroup.Detect()), "go": runtime.Version()}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		env["kernel"] = unix.ByteSliceToString(uts.Release[:])
	}
	if body, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(body)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				env["cpu"] = strings.TrimSpace(value)
				break
			}
		}
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		env["memoryMiB"] = strconv.FormatUint(info.Totalram*uint64(info.Unit)>>20, 10)
	}
	for _, tool := range []string{"crun", "runc", "dockerd", "podman", "containerd", "runsc"} {
		if path, err := exec.LookPath(tool); err == nil {
			if out, err := exec.Command(path, "--version").Output(); err == nil {
				first, _, _ := strings.Cut(string(out), "\n")
				env[tool] = first
			}
		}
	}
	return env
}

// busyTicks is the processor time that the machine has spent on anything, in clock ticks (a hundredth of a second).
func busyTicks() float64 {
	body, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	fields := strings.Fields(strings.SplitN(string(body), "\n", 2)[0])
	var busy float64
	for i, f := range fields {
		const idle, ioWait, steal = 4, 5, 8
		if i == 0 || i == idle || i == ioWait || i >= steal {
			continue
		}
		n, _ := strconv.ParseFloat(f, 64)
		busy += n
	}
	return busy
}

// tickMs is a clock tick in milliseconds (USER_HZ is 100 on every Linux architecture that Go runs on).
const tickMs = 10
