package keeper_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/sandbox"
)

// startFenced runs a container that sleeps under a lease.
func (r *rig) startFenced(id string, lease time.Duration) error {
	r.t.Helper()
	slot := "s-" + id
	r.park(slot)
	logs := filepath.Join(r.dir, "logs", id)
	if err := os.MkdirAll(logs, 0o700); err != nil {
		r.t.Fatal(err)
	}
	_, err := r.k.Start(context.Background(), keeper.Start{ID: id, Slot: slot, Cgroups: r.tree.Dirs(slot + "/c"), V2: r.tree.Mode() == cgroup.V2,
		LogDir: logs, LogFile: 1 << 20, LogMax: 2, Lease: lease,
		Spec: &sandbox.Spec{ID: id, Lower: []string{r.image}, Upper: filepath.Join(r.dir, "rw-"+id), Hostname: "test",
			Process: sandbox.Process{Args: []string{"sh", "-c", "trap '' TERM; sleep 1000"}, NoNewPrivs: true}}})
	return err
}

func (r *rig) mustStartFenced(id string, lease time.Duration) {
	r.t.Helper()
	if err := r.startFenced(id, lease); err != nil {
		r.t.Fatal(err)
	}
}

// lostLease waits for a container's end, and says when the keeper has seen it, by the clock of leases.
func (r *rig) lostLease(id string) (at time.Duration) {
	r.t.Helper()
	c := r.exit(id)
	if !c.LeaseLost {
		r.t.Errorf("container %s ended as %+v, want for want of a lease", id, c)
	}
	return keeper.Boottime() - time.Since(c.Finished)
}

func (r *rig) runs(id string) bool {
	r.t.Helper()
	_, containers, err := r.k.List(context.Background())
	if err != nil {
		r.t.Fatal(err)
	}
	for _, c := range containers {
		if c.ID == id {
			return !c.Exited
		}
	}
	return false
}

func TestKeeperKillsAtTheEndOfALease(t *testing.T) {
	r := newRig(t)
	until := keeper.Boottime() + 700*time.Millisecond
	r.mustStartFenced("fenced", until)
	r.park("s")
	if _, err := r.start("plain", "s", sandbox.Process{Args: []string{"sleep", "1000"}}); err != nil {
		t.Fatal(err)
	}
	until += 300 * time.Millisecond
	if err := r.k.Lease(t.Context(), until); err != nil {
		t.Fatal(err)
	}
	r.k.Close() // nobody is needed for it
	time.Sleep(until - keeper.Boottime() - 100*time.Millisecond)
	r.dial()
	if !r.runs("fenced") {
		t.Fatal("the container has ended before its lease, which was renewed")
	}
	if at := r.lostLease("fenced"); at < until || at > until+500*time.Millisecond {
		t.Errorf("it ended %s after its lease", at-until)
	}
	if !r.runs("plain") {
		t.Error("a container that is not fenced has ended, too")
	}
	err := r.startFenced("late", until)
	if e, ok := err.(*keeper.Error); !ok || !e.LeaseLost {
		t.Errorf("a start without a lease = %v", err)
	}
	r.mustStartFenced("next", keeper.Boottime()+time.Minute)
}

func TestDeathOfTheKeeperExtendsNoLease(t *testing.T) {
	r := newRig(t)
	r.mustStartFenced("long", keeper.Boottime()+1500*time.Millisecond)
	again := func(away time.Duration) {
		t.Helper()
		if err := r.proc.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = r.proc.Wait()
		time.Sleep(away)
		r.spawn()
	}
	again(0)
	if !r.runs("long") {
		t.Fatal("the container did not outlive its keeper, though the lease goes on")
	}
	r.lostLease("long")
	r.mustStartFenced("short", keeper.Boottime()+400*time.Millisecond)
	again(500 * time.Millisecond)
	_, containers, err := r.k.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range containers {
		if c.ID == "short" && !c.Exited {
			r.lostLease("short")
		}
	}
	if r.runs("short") {
		t.Error("a container whose lease has ended meanwhile runs on under the next keeper")
	}
}

// TestStoppedKeeper stops the keeper over the end of a lease, and renews the lease before it goes on: what ran in
// between is killed all the same.
func TestStoppedKeeper(t *testing.T) {
	r := newRig(t)
	r.mustStartFenced("c", keeper.Boottime()+300*time.Millisecond)
	if err := r.proc.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	renewed := make(chan error, 1)
	go func() { renewed <- r.k.Lease(context.Background(), keeper.Boottime()+time.Minute) }()
	time.Sleep(100 * time.Millisecond)
	if err := r.proc.Process.Signal(unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-renewed; err != nil {
		t.Fatal(err)
	}
	r.lostLease("c")
}
