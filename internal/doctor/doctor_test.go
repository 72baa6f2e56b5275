package doctor

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// healthy is a machine with nothing to complain about.
func healthy() *Facts {
	f := &Facts{Kernel: "6.18.4-amd64", Capabilities: 1<<(unix.CAP_LAST_CAP+1) - 1, Features: map[string]string{}, Forwarding: true,
		Cgroup: Cgroup{V2: true}, Listen: "127.0.0.1:8443", Disk: Disk{Dir: "/data", Free: 50 << 30, Total: 100 << 30},
		OpenFiles: 1 << 20, SystemFiles: 1 << 30, PidMax: 4194304,
		Runtimes: []Runtime{{"crun", "/usr/bin/crun", "1.31", ""}, {"runc", "/usr/bin/runc", "1.5.3", ""}, {"runsc", "/usr/bin/runsc", "release", "20260905"}},
		Data:     DataDir{Dir: "/data", Readable: true}}
	for _, n := range needs {
		f.Features[n.feature] = ""
	}
	return f
}

type evaluation struct {
	change func(*Facts)
	check  string
	want   Severity
	text   string // in the finding or its fix
}

// evaluations are machines with one flaw each.
var evaluations = map[string]evaluation{
	"healthy":     {func(*Facts) {}, "", OK, ""},
	"not root":    {func(f *Facts) { f.UID = 1000 }, "user", Error, "as root"},
	"old kernel":  {func(f *Facts) { f.Kernel = "5.10.0-33-amd64" }, "kernel", Error, "5.14"},
	"odd kernel":  {func(f *Facts) { f.Kernel = "plan9" }, "kernel", Warning, "5.14"},
	"before 6.8":  {func(f *Facts) { f.Kernel = "6.7.9" }, "overlay layers", Note, "6.8"},
	"before 6.15": {func(f *Facts) { f.Kernel = "6.12.48+deb13" }, "exit codes", Note, "unknown"},
	"no openat2":  {func(f *Facts) { f.Features[featureOpenat2] = "function not implemented" }, featureOpenat2, Error, "hostile images"},
	"no veth":     {func(f *Facts) { f.Features[featureVeth] = "operation not supported" }, featureVeth, Error, "modprobe veth"},
	"v1":          {func(f *Facts) { f.Cgroup = Cgroup{} }, "cgroups", Note, "v1"},
	"hybrid":      {func(f *Facts) { f.Cgroup = Cgroup{V2Controllers: []string{"hugetlb"}} }, "hybrid cgroups", Note, "mount -t cgroup -o hugetlb"},
	"hybrid, old crun": {func(f *Facts) {
		f.Cgroup.V2, f.Cgroup.V2Controllers, f.Runtimes[0].Version = false, []string{"hugetlb"}, "1.8.1"
	}, "hybrid cgroups", Warning, "mount -t cgroup -o hugetlb"},
	"no memory on v2": {func(f *Facts) { f.Cgroup.Missing = []string{"memory"} }, "cgroups", Error, "subtree_control"},
	"no memory on v1": {func(f *Facts) { f.Cgroup = Cgroup{Missing: []string{"memory"}} }, "cgroups", Error, "v1 hierarchies"},
	"no sys_resource": {func(f *Facts) { f.Capabilities &^= 1 << unix.CAP_SYS_RESOURCE }, "capabilities", Warning, "CAP_SYS_RESOURCE"},
	"no net_admin":    {func(f *Facts) { f.Capabilities &^= 1 << unix.CAP_NET_ADMIN }, "capabilities", Error, "CAP_NET_ADMIN"},
	"no forwarding":   {func(f *Facts) { f.Forwarding = false }, "forwarding", Note, "ip_forward"},
	"forward drops":   {func(f *Facts) { f.ForwardDrop = "iptables FORWARD" }, "forwarding", Warning, "-i sw+ -j ACCEPT"},
	"port taken":      {func(f *Facts) { f.ListenError = "it is in use" }, "API port", Error, "--listen"},
	"port taken by us": {func(f *Facts) {
		f.ListenError, f.Data = "it is in use", DataDir{PID: 7, Keeper: true, Exists: true, Readable: true}
	}, "platform", OK, "process 7"},
	"dns taken":           {func(f *Facts) { f.DNSBusy = true }, "DNS port", Error, "bind-interfaces"},
	"disk tight":          {func(f *Facts) { f.Disk.Free = 5 << 30 }, "disk", Warning, "5.0 GiB of 100.0 GiB"},
	"disk full":           {func(f *Facts) { f.Disk.Free = 1 << 20 }, "disk", Error, "refused"},
	"small disk":          {func(f *Facts) { f.Disk.Total, f.Disk.Free = 4<<30, 3<<30 }, "disk", OK, "free"},
	"no inodes":           {func(f *Facts) { f.Disk.Inodes, f.Disk.FreeInodes = 1000, 3 }, "disk", Error, "3 of 1000 inodes"},
	"no disk":             {func(f *Facts) { f.Disk.Total = 0 }, "disk", Warning, "--data-dir"},
	"few files":           {func(f *Facts) { f.OpenFiles = 1024 }, "open files", Warning, "ulimit"},
	"few pids":            {func(f *Facts) { f.PidMax = 32768 }, "process ids", Warning, "pid_max"},
	"old crun":            {func(f *Facts) { f.Runtimes[0].Version = "1.8.1" }, "crun", Warning, "below 1.31"},
	"old runc":            {func(f *Facts) { f.Runtimes[1].Version = "1.1.5+ds1" }, "runc", Warning, "1.4.4"},
	"runc 1.4.4":          {func(f *Facts) { f.Runtimes[1].Version = "1.4.4" }, "runc", OK, ""},
	"runc 1.5.2":          {func(f *Facts) { f.Runtimes[1].Version = "1.5.2" }, "runc", Warning, "1.5.3"},
	"runc 1.6.0":          {func(f *Facts) { f.Runtimes[1].Version = "1.6.0" }, "runc", OK, ""},
	"silent runc":         {func(f *Facts) { f.Runtimes[1].Version = "" }, "runc", Warning, "does not tell"},
	"old runsc":           {func(f *Facts) { f.Runtimes[2].Date = "20221219" }, "runsc", Warning, "make runsc"},
	"no runsc":            {func(f *Facts) { f.Runtimes = f.Runtimes[:2] }, "runsc", Note, "make runsc"},
	"unknown runtime":     {func(f *Facts) { f.Runtimes[0] = Runtime{"youki", "/bin/youki", "0.5", ""} }, "youki", OK, ""},
	"unreadable data":     {func(f *Facts) { f.Data.Readable = false }, "platform", Note, "as root"},
	"stopped":             {func(f *Facts) { f.Data.Exists = true }, "platform", Note, "Start it"},
	"stopped, containers": {func(f *Facts) { f.Data.Exists, f.Data.Keeper, f.Data.Containers = true, true, 3 }, "platform", Note, "holds 3 containers"},
	"no keeper":           {func(f *Facts) { f.Data.Exists, f.Data.PID = true, 9 }, "platform", Warning, "keeper.log"},
}

func TestEvaluate(t *testing.T) {
	for name, c := range evaluations {
		t.Run(name, func(t *testing.T) {
			f := healthy()
			c.change(f)
			list := Evaluate(f)
			if c.check == "" {
				if w := Worst(list); w != OK {
					t.Fatalf("Worst(%+v) = %s, want ok", list, w)
				}
				return
			}
			i := slices.IndexFunc(list, func(x Finding) bool { return x.Check == c.check && x.Severity == c.want })
			if i < 0 || !strings.Contains(list[i].Finding+list[i].Fix, c.text) {
				t.Fatalf("findings = %+v, want %s of %q with %q", list, c.want, c.check, c.text)
			}
			if Worst(list) != c.want {
				t.Errorf("Worst(%+v) = %s, want %s", list, Worst(list), c.want)
			}
			for _, x := range list {
				if x.Severity != OK && x.Fix == "" {
					t.Errorf("%+v says not what to do", x)
				}
			}
		})
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]string{"1.8.1": "1.8.1", "1.1.5+ds1": "1.1.5", "v1.31": "1.31.0", "1.4.0-rc.3": "1.4.0"} {
		if got, ok := parseVersion(text); !ok || got.String() != want {
			t.Errorf("parseVersion(%s) = %s, %v, want %s", text, got, ok, want)
		}
	}
	if v, ok := parseVersion("none"); ok {
		t.Errorf("parseVersion(none) = %s, want nothing", v)
	}
}

func TestFindRuntimesAsksForVersions(t *testing.T) {
	dir := t.TempDir()
	for name, says := range map[string]string{"crun": "crun version 1.8.1\ncommit: f8a096be", "runc": "runc version 1.5.3\nspec: 1.2.1", "runsc": "runsc version release-20221219.0\nspec: 1.1.0"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\ncat <<'E'\n"+says+"\nE\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	list := FindRuntimes(context.Background(), dir+"/crun", dir+"/runc", dir+"/runsc", dir+"/crun", dir+"/absent")
	want := []Runtime{{"crun", dir + "/crun", "1.8.1", ""}, {"runc", dir + "/runc", "1.5.3", ""}, {"runsc", dir + "/runsc", "release-20221219.0", "20221219"}}
	if !slices.Equal(list, want) {
		t.Fatalf("FindRuntimes() = %+v, want %+v", list, want)
	}
	var out bytes.Buffer
	LogFloors(context.Background(), slog.New(slog.NewTextHandler(&out, nil)), list)
	for text, want := range map[string]bool{"below 1.31": true, "before 20260905": true, "/runc ": false} {
		if got := strings.Contains(out.String(), text); got != want {
			t.Errorf("log has %q: %v, want %v:\n%s", text, got, want, out.String())
		}
	}
}

// TestProbe looks at the machine that the test runs on: whatever it is, the probe answers and leaves nothing.
func TestProbe(t *testing.T) {
	f := Probe(context.Background(), Options{Listen: "127.0.0.1:0", Data: DataDir{Dir: filepath.Join(t.TempDir(), "not", "there"), Readable: true}})
	if f.Kernel == "" || f.Disk.Total == 0 || f.OpenFiles == 0 || f.PidMax == 0 || f.ListenError != "" {
		t.Errorf("Probe() = %+v", f)
	}
	if why, tried := f.Features[featureOpenat2]; !tried || why != "" {
		t.Errorf("openat2: %q, tried %v", why, tried)
	}
	if len(Evaluate(f)) == 0 {
		t.Error("nothing found")
	}
}
