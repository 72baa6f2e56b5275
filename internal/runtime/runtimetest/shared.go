package runtimetest

import (
	"context"
	"os"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/runtime"
	"spillway.dev/spillway/internal/sandbox"
)

// loopbackUp brings up the loopback device of a network namespace, as whoever attaches a slot's network does. The thread
// does not come back from there.
func loopbackUp(netns string) error {
	failed := make(chan error, 1)
	go func() {
		goruntime.LockOSThread()
		failed <- func() error {
			ns, err := os.Open(netns)
			if err != nil {
				return err
			}
			defer ns.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(s)
			lo, err := unix.NewIfreq("lo")
			if err != nil {
				return err
			}
			lo.SetUint16(unix.IFF_UP)
			return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo)
		}()
	}()
	return <-failed
}

// pair starts two containers side by side in a slot of their own.
func (r *rig) pair(t *testing.T, change func(a, b *runtime.Run)) (a, b *runtime.Run) {
	t.Helper()
	slot := r.slot(t)
	a, b = r.spec(slot, sleeper), r.spec(slot, sleeper)
	b.Cgroup = slot + "/1"
	if err := r.tree.Make(b.Cgroup); err != nil {
		t.Fatal(err)
	}
	r.join(a, b)
	if change != nil {
		change(a, b)
	}
	r.mustStart(t, a)
	r.mustStart(t, b)
	return a, b
}

func shared(r *rig, t *testing.T) {
	a, b := r.pair(t, nil)
	for _, ns := range []string{"net", "ipc", "uts"} {
		one, _ := r.exec(t, a.ID, "readlink /proc/self/ns/"+ns, nil)
		two, _ := r.exec(t, b.ID, "readlink /proc/self/ns/"+ns, nil)
		if one != two || one == "" {
			t.Errorf("%s namespaces %q and %q, want the same", ns, one, two)
		}
	}
	one, _ := r.exec(t, a.ID, "readlink /proc/self/ns/pid", nil)
	if two, _ := r.exec(t, b.ID, "readlink /proc/self/ns/pid", nil); one == two {
		t.Errorf("both containers have the process namespace %s", one)
	}
}

// sideBySide proves that containers of a slot meet over loopback and volumes, and that one's end is not the other's.
func sideBySide(r *rig, t *testing.T) {
	dir := t.TempDir()
	a, b := r.pair(t, func(a, b *runtime.Run) {
		a.Process.Args[2] = "echo from-a >/v/file; (while :; do echo served | nc -l -p 4711; done) & " + sleeper
		for _, run := range []*runtime.Run{a, b} {
			run.Mounts = []sandbox.Mount{{Source: dir, Target: "/v"}}
		}
	})
	heard := func(want string, script string) {
		t.Helper()
		var out string
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
			if out, _ = r.exec(t, b.ID, script, nil); strings.Contains(out, want) {
				return
			}
		}
		t.Errorf("%s = %q, want %q", script, out, want)
	}
	heard("from-a", "cat /v/file")
	heard("served", "nc -w 1 127.0.0.1 4711 </dev/null")
	if out, _ := r.exec(t, b.ID, "ls /bin/sh /v; touch /only-b; ps", nil); strings.Contains(out, "nc -l") {
		t.Errorf("one container sees the other's processes:\n%s", out)
	}
	if _, code := r.exec(t, a.ID, "test -e /only-b", nil); code == 0 {
		t.Error("both containers have the same root")
	}
	for round, sig := range []struct{ number, code int }{{15, 0}, {9, 137}} {
		if err := r.k.Signal(t.Context(), a.ID, sig.number); err != nil {
			t.Fatal(err)
		}
		if c := r.end(t, a.ID); c.ExitCode == nil || *c.ExitCode != sig.code {
			t.Errorf("end after signal %d = %+v, want exit code %d", sig.number, c, sig.code)
		}
		if err := r.k.Signal(t.Context(), a.ID, 15); err != nil {
			t.Errorf("a signal to one that has ended: %v", err)
		}
		next := r.spec(a.Slot, a.Process.Args[2])
		next.Guest, next.Mounts, next.Cgroup = a.Guest, a.Mounts, a.Cgroup
		r.mustStart(t, next)
		a = next
		heard("only-b", "ls /")
		if round == 0 {
			heard("served", "nc -w 1 127.0.0.1 4711 </dev/null")
		}
	}
}

// sharedProcesses proves that the containers of a guest see each other's processes when they are told to, and end one
// by one all the same.
func sharedProcesses(r *rig, t *testing.T) {
	a, b := r.pair(t, func(a, b *runtime.Run) {
		a.Guest.ShareProcesses, b.Guest.ShareProcesses = true, true
		a.Process.Args[2] = "(sleep 4242 &); " + sleeper
	})
	if out, _ := r.exec(t, b.ID, "ps", nil); !strings.Contains(out, "sleep 4242") || !strings.Contains(out, "/pause") {
		t.Errorf("one container does not see the other's processes:\n%s", out)
	}
	one, _ := r.exec(t, a.ID, "readlink /proc/self/ns/pid", nil)
	if two, _ := r.exec(t, b.ID, "readlink /proc/self/ns/pid", nil); one != two {
		t.Errorf("process namespaces %q and %q, want the same", one, two)
	}
	if err := r.k.Signal(t.Context(), a.ID, 15); err != nil {
		t.Fatal(err)
	}
	if c := r.end(t, a.ID); c.ExitCode == nil || *c.ExitCode != 0 {
		t.Errorf("end = %+v, want exit code 0", c)
	}
	if err := r.rt.Clean(t.Context(), a.ID, a.Dir); err != nil {
		t.Fatal(err)
	}
	if out, _ := r.exec(t, b.ID, "ps", nil); strings.Contains(out, "4242") || strings.Contains(out, "Z") {
		t.Errorf("of the container that has ended and was cleaned up this is left:\n%s", out)
	}
}

// endOfGuest kills a guest: its containers end with it, their exit codes are nobody's to know, and the next start makes
// another guest, with its network given back first.
func endOfGuest(r *rig, t *testing.T) {
	renewed := 0
	a, b := r.pair(t, func(a, b *runtime.Run) {
		a.Guest.Renew = func(context.Context) error { renewed++; return nil }
		b.Guest.Renew = a.Guest.Renew
	})
	if renewed != 1 {
		t.Errorf("%d guests were made for two containers, want 1", renewed)
	}
	pid := func() int {
		_, containers, err := r.k.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range containers {
			if c.ID == keeper.GuestID(a.Slot) {
				t.Error("the guest is told of as a container")
			}
			if c.Slot == a.Slot && !c.Exited {
				return c.Pid
			}
		}
		t.Fatal("no container runs")
		return 0
	}
	first := pid()
	if err := unix.Kill(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, run := range []*runtime.Run{a, b} {
		if c := r.end(t, run.ID); c.ExitCode != nil {
			t.Errorf("end = %+v, want an exit code that is unknown", c)
		}
		if err := r.rt.Clean(t.Context(), run.ID, run.Dir); err != nil {
			t.Errorf("clean: %v", err)
		}
	}
	next := r.spec(a.Slot, "exit 9")
	next.Guest, next.Cgroup = a.Guest, a.Cgroup
	if _, code := r.output(t, next); code != 9 {
		t.Errorf("exit code %d in the next guest, want 9", code)
	}
	if renewed != 2 {
		t.Errorf("the network was renewed %d times, want 2", renewed)
	}
	if err := r.rt.Clean(t.Context(), next.ID, next.Dir); err != nil {
		t.Errorf("clean: %v", err)
	}
	if err := r.k.Dismiss(t.Context(), a.Slot); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(r.dir, "state", "*"+keeper.GuestID(a.Slot)+"*")); len(left) > 0 {
		t.Errorf("after the guest's end %v is left", left)
	}
	if left, _ := filepath.Glob(filepath.Join(r.dir, "run", "containers", keeper.GuestID(a.Slot)+"*")); len(left) > 0 {
		t.Errorf("after the guest's end %v is left", left)
	}
}

// added proves that a container which is added to another one's guest, or to the slot's, meets it there, sees its
// processes when told to, and harms it neither by its start nor by its end.
func added(r *rig, t *testing.T) {
	slot := r.slot(t)
	target := r.spec(slot, "(while :; do echo served | nc -l -p 4712; done) & "+sleeper)
	r.mustStart(t, target)
	run := r.spec(slot, "ps; until nc -w 1 127.0.0.1 4712 </dev/null; do sleep 0.1; done; exit 3")
	run.ProcessesOf = target.ID
	if run.Guest == nil {
		run.Guest = &runtime.Guest{Of: target.ID}
	}
	out, code := r.output(t, run)
	if code != 3 || !strings.Contains(out, "served") || !strings.Contains(out, "sleep 1000") {
		t.Errorf("exit code %d, want 3; output, wanted the target's processes and what it serves:\n%s", code, out)
	}
	if err := r.rt.Clean(t.Context(), run.ID, run.Dir); err != nil {
		t.Error(err)
	}
	if out, _ := r.exec(t, target.ID, "echo alive", nil); out != "alive" {
		t.Errorf("exec in the target afterwards = %q", out)
	}
	run = r.spec(slot, sleeper)
	run.Guest = &runtime.Guest{Of: "nobody"}
	if _, err := r.start(t, run); err == nil {
		t.Error("a container joined a guest that does not exist")
	}
}
