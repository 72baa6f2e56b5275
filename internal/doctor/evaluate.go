package doctor

import (
	"fmt"
	"strconv"
	"strings"
)

// Bounds of what the checks accept.
const (
	minMajor, minMinor = 5, 14     // cgroup.kill, the newest thing that is needed
	tightBytes         = 10 << 30  // free disk below which unused images are collected, where a tenth is more
	fullBytes          = 1 << 30   // free disk below which new groups are refused, where a twentieth is more
	tightPart          = 10        // a tenth
	fullPart           = 20        // a twentieth
	minOpenFiles       = 65536     // per process: a few descriptors for each of thousands of containers
	minSystemFiles     = 1 << 20   // of the whole machine
	minPidMax          = 32768 * 4 // processes of a full machine
)

// Evaluate judges a machine, worst things not first but in the order in which they are best read: the kernel from below,
// then network, resources, runtimes and the platform itself.
func Evaluate(f *Facts) []Finding {
	list := []Finding{evaluateUser(f)}
	list = append(list, evaluateKernel(f)...)
	list = append(list, evaluateCgroup(f.Cgroup, f.Runtimes)...)
	list = append(list, evaluateCapabilities(f)...)
	list = append(list, evaluateNetwork(f)...)
	list = append(list, evaluateDisk(f.Disk))
	list = append(list, evaluateLimits(f)...)
	list = append(list, evaluateRuntimes(f.Runtimes)...)
	return append(list, evaluateData(f.Data))
}

func evaluateUser(f *Facts) Finding {
	if f.UID != 0 {
		return Finding{"user", Error, fmt.Sprintf("runs as user %d", f.UID), "The platform makes namespaces, cgroups and mounts: run it, and this, as root (sudo spillway doctor)."}
	}
	return Finding{"user", OK, "root", ""}
}

func evaluateKernel(f *Facts) []Finding {
	var list []Finding
	major, minor, ok := kernelVersion(f.Kernel)
	newer := func(a, b int) bool { return major > a || major == a && minor >= b }
	switch {
	case !ok:
		list = append(list, Finding{"kernel", Warning, fmt.Sprintf("release %q is unreadable", f.Kernel), fmt.Sprintf("Make sure that it is %d.%d or newer.", minMajor, minMinor)})
	case !newer(minMajor, minMinor):
		list = append(list, Finding{"kernel", Error, "Linux " + f.Kernel, fmt.Sprintf("Spillway needs Linux %d.%d or newer.", minMajor, minMinor)})
	default:
		list = append(list, Finding{"kernel", OK, "Linux " + f.Kernel, ""})
		if !newer(6, 8) {
			list = append(list, Finding{"overlay layers", Note, "before Linux 6.8 all layers of an image go into one mount option of a page", "Images of many layers may not start; Linux 6.8 has no such limit."})
		}
		if !newer(6, 15) {
			list = append(list, Finding{"exit codes", Note, "before Linux 6.15 the exit code of a container that ends while no keeper lives is lost", "It is reported as unknown then; Linux 6.15 keeps it."})
		}
	}
	var works []string
	for _, n := range needs {
		why, tried := f.Features[n.feature]
		switch {
		case !tried:
		case why != "":
			list = append(list, Finding{n.feature, Error, why, n.fix})
		default:
			works = append(works, n.feature)
		}
	}
	if len(works) > 0 {
		list = append(list, Finding{"kernel features", OK, strings.Join(works, ", "), ""})
	}
	return list
}

// kernelVersion reads "6.1.0-31-amd64".
func kernelVersion(release string) (major, minor int, ok bool) {
	a, rest, _ := strings.Cut(release, ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(rest)
	}
	major, errMajor := strconv.Atoi(a)
	minor, errMinor := strconv.Atoi(rest[:end])
	return major, minor, errMajor == nil && errMinor == nil
}

// crunTakesHybrid is the first crun known to run beside a v2 tree that has controllers of its own.
var crunTakesHybrid = version{1, 9, 0}

func evaluateCgroup(c Cgroup, runtimes []Runtime) []Finding {
	if len(c.Missing) > 0 {
		fix := "Mount the v1 hierarchies, or boot with the unified layout (systemd.unified_cgroup_hierarchy=1)."
		if c.V2 {
			fix = "Enable them: 'echo +cpu +memory +pids >/sys/fs/cgroup/cgroup.subtree_control', outside of any container."
		}
		return []Finding{{"cgroups", Error, "no controller for " + strings.Join(c.Missing, ", "), fix}}
	}
	if c.V2 {
		return []Finding{{"cgroups", OK, "v2", ""}}
	}
	list := []Finding{{"cgroups", Note, "v1; containers are moved into their cgroups instead of being born there", "The unified layout (v2) starts containers faster and is where the kernel goes."}}
	if len(c.V2Controllers) == 0 {
		return list
	}
	severity := Note
	for _, r := range runtimes {
		if v, ok := parseVersion(r.Version); r.Name == "crun" && ok && v.before(crunTakesHybrid) {
			severity = Warning
		}
	}
	names := strings.Join(c.V2Controllers, ", ")
	var fix []string
	for _, name := range c.V2Controllers {
		fix = append(fix, fmt.Sprintf("mkdir -p /sys/fs/cgroup/%[1]s && mount -t cgroup -o %[1]s cgroup /sys/fs/cgroup/%[1]s", name))
	}
	return append(list, Finding{"hybrid cgroups", severity, "the v2 tree beside the v1 hierarchies holds " + names + ", which crun 1.8 refuses",
		"Give them to v1: '" + strings.Join(fix, " && ") + "'. Parked sandboxes do not mind."})
}

func evaluateLimits(f *Facts) []Finding {
	var list []Finding
	check := func(what string, have, want uint64, fix string) {
		if have != 0 && have < want {
			list = append(list, Finding{what, Warning, fmt.Sprintf("%d, less than %d", have, want), fix})
		}
	}
	check("open files", f.OpenFiles, minOpenFiles, fmt.Sprintf("Raise the hard limit where the platform is started: 'ulimit -Hn %d', or LimitNOFILE= of its unit.", minOpenFiles))
	check("open files of the machine", f.SystemFiles, minSystemFiles, fmt.Sprintf("sysctl -w fs.file-max=%d", minSystemFiles))
	check("process ids", f.PidMax, minPidMax, "sysctl -w kernel.pid_max=4194304")
	if len(list) == 0 {
		list = append(list, Finding{"limits", OK, fmt.Sprintf("%d open files per process, %d process ids", f.OpenFiles, f.PidMax), ""})
	}
	return list
}

func evaluateDisk(d Disk) Finding {
	free := fmt.Sprintf("%s of %s free at %s", gibibytes(d.Free), gibibytes(d.Total), d.Dir)
	switch {
	case d.Total == 0:
		return Finding{"disk", Warning, "the file system of " + d.Dir + " could not be measured", "Name the data directory with --data-dir."}
	case d.Free < min(fullBytes, d.Total/fullPart):
		return Finding{"disk", Error, free, "New groups are refused on a full disk: free some, remove images with 'spillway image rm', or use another --data-dir."}
	case d.Inodes > 0 && d.FreeInodes < d.Inodes/fullPart:
		return Finding{"disk", Error, fmt.Sprintf("%d of %d inodes free at %s", d.FreeInodes, d.Inodes, d.Dir), "Images unpack into many small files: remove some, or use a file system with more inodes."}
	case d.Free < min(tightBytes, d.Total/tightPart):
		return Finding{"disk", Warning, free, "Unused images are being collected; free some space, or use another --data-dir."}
	}
	return Finding{"disk", OK, free, ""}
}

func gibibytes(n uint64) string { return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30)) }

func evaluateData(d DataDir) Finding {
	switch {
	case !d.Readable:
		return Finding{"platform", Note, d.Dir + " cannot be read by this user", "Run this as root."}
	case !d.Exists:
		return Finding{"platform", OK, "none was started in " + d.Dir + " yet", "Start one with 'spillway up --data-dir " + d.Dir + "'."}
	case d.PID != 0 && d.Keeper:
		return Finding{"platform", OK, fmt.Sprintf("runs (process %d); %d containers, %d parked sandboxes", d.PID, d.Containers, d.Parked), ""}
	case d.PID != 0:
		return Finding{"platform", Warning, fmt.Sprintf("runs (process %d), but no keeper answers", d.PID), "The platform starts a new keeper within moments; when it does not, read " + d.Dir + "/keeper.log."}
	case d.Keeper:
		return Finding{"platform", Note, fmt.Sprintf("stopped; its keeper holds %d containers, which go on", d.Containers), "Adopt them with 'spillway up --data-dir " + d.Dir + "', or end them with 'spillway down --purge --data-dir " + d.Dir + "'."}
	}
	return Finding{"platform", Note, "stopped; nothing of " + d.Dir + " runs", "Start it with 'spillway up --data-dir " + d.Dir + "'."}
}
