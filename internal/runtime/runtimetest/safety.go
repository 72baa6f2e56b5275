package runtimetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/sandbox"
)

func readOnly(r *rig, t *testing.T) {
	run := r.spec(r.slot(t), "touch /x 2>/dev/null || echo refused; touch /dev/shm/y && echo fine")
	run.ReadOnlyRoot = true
	if out, _ := r.output(t, run); out != "refused\nfine" {
		t.Errorf("output %q, want the root read-only and /dev/shm not", out)
	}
}

func privileges(r *rig, t *testing.T) {
	script := "grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status; mount -t tmpfs none /tmp 2>/dev/null || echo no-mount; mknod /tmp/sda b 8 0 2>/dev/null || echo no-device"
	run := r.spec(r.slot(t), script)
	run.Process.Caps = sandbox.Caps([]string{"NET_BIND_SERVICE"}, []string{"ALL"})
	out, _ := r.output(t, run)
	wants := []string{"no-mount", "no-device", "0000000000000400"}
	if !r.Guest {
		wants = append(wants, "NoNewPrivs:\t1", "Seccomp:\t2")
	}
	for _, want := range wants {
		if !strings.Contains(out, want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
	run = r.spec(r.slot(t), "grep CapEff /proc/self/status")
	run.Process.User = "1000"
	if out, _ := r.output(t, run); !strings.HasSuffix(out, "0000000000000000") {
		t.Errorf("an ordinary user has capabilities: %q", out)
	}
}

func masked(r *rig, t *testing.T) {
	run := r.spec(r.slot(t), "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | head -c 10 | wc -c; (echo 1 >/proc/sys/kernel/panic) 2>/dev/null || echo refused; (echo b >/proc/sysrq-trigger) 2>/dev/null || echo refused; ls /sys/firmware 2>/dev/null | wc -l")
	if out, _ := r.output(t, run); out != "0\nrefused\nrefused\n0" {
		t.Errorf("output %q, want 0, refused, refused, 0", out)
	}
}

// hostile uses a root whose every place that the platform mounts on leads elsewhere.
func hostile(r *rig, t *testing.T) {
	trap := filepath.Join(r.dir, "trap-"+itoa(int(r.next.Add(1))))
	layer := trap + "-layer"
	for _, dir := range []string{trap, layer + "/mnt"} {
		if err := os.MkdirAll(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"proc": trap, "dev": "../../../../../.." + trap, "sys": trap, "etc": trap, "mnt/a": trap, "mnt/b": "/proc/1/root" + trap, "mnt/c": "../../../../../../../.." + trap + "/file"} {
		if err := os.Symlink(target, filepath.Join(layer, name)); err != nil {
			t.Fatal(err)
		}
	}
	source := filepath.Join(r.dir, "source-"+filepath.Base(trap))
	if err := os.MkdirAll(source, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(source, "file")
	if err := os.WriteFile(file, []byte("ours"), 0o644); err != nil {
		t.Fatal(err)
	}
	run := r.spec(r.slot(t), "touch /mnt/a/deep/w; test -e /proc/self/status && test -c /dev/null && echo real; cat /etc/hosts")
	run.Layers = []string{layer, r.image}
	run.Mounts = []sandbox.Mount{{Source: file, Target: "/etc/hosts", File: true}, {Source: source, Target: "/mnt/a/deep"}, {Source: file, Target: "/mnt/c", File: true}}
	run.Process.Dir = "/mnt/a/work"
	if _, err := r.start(t, run); err == nil {
		r.end(t, run.ID)
		if out := r.log(run); !strings.Contains(out, "real") {
			t.Errorf("output %q, want the platform's own /proc and /dev", out)
		}
	}
	entries, err := os.ReadDir(trap)
	if err != nil || len(entries) != 0 {
		t.Errorf("%d entries were made on the host: %v %v", len(entries), entries, err)
	}
}

func mounts(r *rig, t *testing.T) {
	dir := filepath.Join(r.dir, "volume-"+itoa(int(r.next.Add(1))))
	if err := os.MkdirAll(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "file"), []byte("from the host"), 0o644); err != nil {
		t.Fatal(err)
	}
	run := r.spec(r.slot(t), "cat /in/file /one; echo; echo back >/in/new; touch /locked/x 2>/dev/null || echo refused; grep ' /in ' /proc/mounts")
	run.Mounts = []sandbox.Mount{{Source: dir, Target: "/in"}, {Source: dir, Target: "/locked", ReadOnly: true}, {Source: filepath.Join(dir, "file"), Target: "/one", File: true}}
	out, _ := r.output(t, run)
	if !strings.HasPrefix(out, "from the hostfrom the host\nrefused\n") {
		t.Errorf("output %q, want both files and the read-only mount refused", out)
	}
	if !r.Guest && (!strings.Contains(out, "nosuid") || !strings.Contains(out, "nodev")) {
		t.Errorf("a volume is mounted with programs' and devices' rights: %q", out)
	}
	if body, err := os.ReadFile(filepath.Join(dir, "new")); err != nil || string(body) != "back\n" {
		t.Errorf("the volume has %q, %v; want what the container wrote", body, err)
	}
}

func subPaths(r *rig, t *testing.T) {
	dir := filepath.Join(r.dir, "volume-"+itoa(int(r.next.Add(1))))
	if err := os.MkdirAll(filepath.Join(dir, "in"), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "in", "file"), []byte("inner"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"abs": "/etc", "up": "../..", "proc": "/proc/self/root"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	slot := r.slot(t)
	run := r.spec(slot, "cat /sub/file; touch /fresh/x && echo made")
	run.Mounts = []sandbox.Mount{{Source: dir, SubPath: "in", Target: "/sub"}, {Source: dir, SubPath: "not/there/yet", Target: "/fresh"}}
	if out, _ := r.output(t, run); out != "innermade" {
		t.Errorf("output %q, want inner and made", out)
	}
	for _, bad := range []string{"abs", "up", "proc", "abs/passwd", "../x"} {
		run := r.spec(slot, "ls /sub")
		run.Mounts = []sandbox.Mount{{Source: dir, SubPath: bad, Target: "/sub"}}
		if _, err := r.start(t, run); err == nil {
			t.Errorf("the sub-path %q was mounted", bad)
		}
	}
}

func memory(r *rig, t *testing.T) {
	run := r.spec(r.slot(t), `x=0123456789abcdef; while :; do x="$x$x"; done`)
	run.Limits.Memory = 64 << 20
	if run.Guest != nil {
		run.Guest.Limits.Memory = 64 << 20
	}
	r.mustStart(t, run)
	// A guest is killed as a whole: nobody is left then who knows the code of one of several.
	if c := r.end(t, run.ID); c.ExitCode != nil && *c.ExitCode != 137 || c.ExitCode == nil && run.Guest == nil {
		t.Errorf("end = %+v, want 137", c)
	}
	if kills := r.tree.OOMKills(run.Cgroup); kills == 0 {
		t.Error("the cgroup counts no kill")
	}
}

func tasks(r *rig, t *testing.T) {
	if r.Guest {
		t.Skip("a guest's tasks are not the host's")
	}
	run := r.spec(r.slot(t), "i=0; while [ $i -lt 60 ]; do sleep 5 & i=$((i+1)); done 2>/dev/null; exit 0")
	run.Limits.Pids = 16
	if _, code := r.output(t, run); code == 0 {
		t.Error("60 tasks fit into a limit of 16")
	}
}

func rotation(r *rig, t *testing.T) {
	run := r.spec(r.slot(t), "yes 0123456789012345678901234567890123456789012345678901234567890123 | head -n 700000; echo end")
	r.mustStart(t, run)
	r.end(t, run.ID)
	var total int64
	files, _ := filepath.Glob(filepath.Join(run.LogDir, "log*"))
	for _, path := range files {
		if info, err := os.Stat(path); err == nil {
			total += info.Size()
		}
	}
	if len(files) < 2 || total > 32<<20 {
		t.Errorf("%d files of %d bytes together, want several and at most 32 MB", len(files), total)
	}
	if !strings.HasSuffix(r.log(run), "end") {
		t.Error("the newest line is not there")
	}
}

// clean proves that nothing is left of a run, and that cleaning twice is fine.
func clean(r *rig, t *testing.T) {
	run := r.spec(r.slot(t), "exit 0")
	r.mustStart(t, run)
	r.end(t, run.ID)
	for range 2 {
		if err := r.rt.Clean(t.Context(), run.ID, run.Dir); err != nil {
			t.Fatalf("clean: %v", err)
		}
	}
	if _, err := os.Stat(run.Dir); err == nil {
		t.Error("the run's directory is still there")
	}
	_, containers, err := r.k.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers {
		if c.ID == run.ID {
			t.Error("the keeper still knows the run")
		}
	}
	run = r.spec(r.slot(t), sleeper)
	r.mustStart(t, run)
	if err := r.rt.Clean(t.Context(), run.ID, run.Dir); err == nil {
		t.Error("a container that runs was cleaned up")
	}
	time.Sleep(10 * time.Millisecond)
	if _, code := r.exec(t, run.ID, "exit 0", nil); code != 0 {
		t.Error("the attempt harmed it")
	}
}
