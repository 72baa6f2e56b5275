package doctor

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"log/slog"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// version is the numbers of a release.
type version [3]int

func (v version) before(o version) bool {
	for i := range v {
		if v[i] != o[i] {
			return v[i] < o[i]
		}
	}
	return false
}

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

var versionShape = regexp.MustCompile(`(\d+)\.(\d+)(?:\.(\d+))?`)

// parseVersion reads the first version in a text. A release candidate counts as its release.
func parseVersion(text string) (v version, ok bool) {
	m := versionShape.FindStringSubmatch(text)
	if m == nil {
		return v, false
	}
	for i := range v {
		v[i], _ = strconv.Atoi(m[i+1]) // digits, or nothing: 0
	}
	return v, true
}

// Floors: the first releases without a known way from a hostile image to the host. Spillway prepares root file systems
// itself and so closes the ways that lead through symbolic links; a runtime below its floor still lacks a second wall.
var (
	crunFloor  = version{1, 31, 0} // redirection of /proc/self/fd; bind mounts at restore
	runcFloors = []version{{1, 4, 4}, {1, 5, 3}}
)

// runscFloor is the date of the source that this project builds and tests.
const runscFloor = "20260905"

// belowFloor says what an installed runtime misses; "" when nothing is known against it.
func belowFloor(r Runtime) string {
	if r.Name == "runsc" {
		switch {
		case r.Date == "":
			return "does not say when it was made; at least " + runscFloor + " is wanted"
		case r.Date < runscFloor:
			return "is of " + r.Date + ", before " + runscFloor
		}
		return ""
	}
	v, ok := parseVersion(r.Version)
	switch {
	case r.Name != "crun" && r.Name != "runc":
		return ""
	case !ok:
		return "does not tell its version"
	case r.Name == "crun" && v.before(crunFloor):
		return "below 1.31"
	case r.Name == "runc" && (v.before(runcFloors[0]) || v[1] == 5 && v.before(runcFloors[1])):
		return "below 1.4.4 (or 1.5.3)"
	}
	return ""
}

func evaluateRuntimes(list []Runtime) []Finding {
	var out []Finding
	seen := map[string]bool{}
	for _, r := range list {
		seen[r.Name] = true
		what := fmt.Sprintf("%s %s", r.Path, strings.TrimSpace(r.Version+" "+r.Date))
		why := belowFloor(r)
		switch {
		case why == "":
			out = append(out, Finding{r.Name, OK, what, ""})
		case r.Name == "runsc":
			out = append(out, Finding{r.Name, Warning, what + " " + why, "Build a current one with 'make runsc'; it is used before the one on the path."})
		default:
			out = append(out, Finding{r.Name, Warning, what + ": " + why + ", the security floor", "Known escapes through hostile images. Install a newer one, or leave --runtime at 'parked', which does not use it."})
		}
	}
	if !seen["runsc"] {
		out = append(out, Finding{"runsc", Note, "not installed: groups with isolation gvisor are refused", "Build it with 'make runsc' and put bin/runsc beside the spillway binary, into DATA-DIR/bin or on the path."})
	}
	return out
}

// versionPatience is how long a runtime may take to tell its version.
const versionPatience = 5 * time.Second

var dateShape = regexp.MustCompile(`20\d{6}`)

// FindRuntimes asks the runtimes among paths (a program on the path, or a file) for their versions; those that are not
// there are left out.
func FindRuntimes(ctx context.Context, paths ...string) []Runtime {
	var list []Runtime
	seen := map[string]bool{}
	for _, p := range paths {
		path, err := exec.LookPath(p)
		if err != nil || seen[path] {
			continue
		}
		seen[path] = true
		list = append(list, askRuntime(ctx, path))
	}
	return list
}

func askRuntime(ctx context.Context, path string) Runtime {
	r := Runtime{Name: filepath.Base(path), Path: path}
	ctx, cancel := context.WithTimeout(ctx, versionPatience)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return r
	}
	first, _, _ := strings.Cut(string(out), "\n")
	r.Version = strings.TrimSpace(first[strings.LastIndexByte(first, ' ')+1:])
	if r.Name != "runsc" {
		return r
	}
	// A runsc built from its Go module carries the date in the module's version, a released one in its own.
	r.Date = dateShape.FindString(r.Version)
	if info, err := buildinfo.ReadFile(path); err == nil && r.Date == "" {
		for _, m := range append(info.Deps, &info.Main) {
			if m.Path == "gvisor.dev/gvisor" {
				r.Version, r.Date = m.Version, dateShape.FindString(m.Version)
			}
		}
	}
	return r
}

// LogFloors tells the log which installed runtimes miss their security floor.
func LogFloors(ctx context.Context, log *slog.Logger, runtimes []Runtime) {
	for _, r := range runtimes {
		if why := belowFloor(r); why != "" {
			log.WarnContext(ctx, "runtime misses the security floor", "runtime", r.Path, "version", r.Version, "reason", why)
		}
	}
}
