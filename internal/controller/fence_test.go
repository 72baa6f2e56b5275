package controller

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/store/mem"
)

func TestOutlived(t *testing.T) {
	const length = 6 * time.Second
	began := time.Unix(1000, 0)
	for _, test := range []struct {
		what  string
		a     *absence
		after time.Duration
		want  bool
	}{
		{"a host that is there", nil, time.Hour, false},
		{"a host that is not lost yet", &absence{since: began}, time.Hour, false},
		{"the end of the lease by our clock", &absence{since: began, lost: true}, length, false},
		{"the end of the lease by a slow clock", &absence{since: began, lost: true}, length + length/clockShare, false},
		{"a moment before all is killed", &absence{since: began, lost: true}, leaseOver(length) - 1, false},
		{"when all is killed", &absence{since: began, lost: true}, leaseOver(length), true},
		{"a host that a former leader has heard of", &absence{since: began.Add(reconnectTime), lost: true}, leaseOver(length), false},
		{"the same, when this leader has waited", &absence{since: began.Add(reconnectTime), lost: true}, reconnectTime + leaseOver(length), true},
	} {
		if got := test.a.outlived(began.Add(test.after), length); got != test.want {
			t.Errorf("%s: outlived = %t, want %t", test.what, got, test.want)
		}
	}
}

// clocked is a controller over a store with a clock of the test's. It ends with the returned function.
func clocked(t *testing.T, st store.Store, clock *atomic.Int64) (*Controller, func()) {
	t.Helper()
	c, err := New(t.Context(), Config{Store: st, Location: "local", Log: slog.New(slog.DiscardHandler), LostAfter: time.Second,
		Now: func() time.Time { return time.Unix(0, clock.Load()) }})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop := func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	}
	return c, stop
}

func putFenced(t *testing.T, c *Controller, name string, policy group.RestartPolicy) {
	t.Helper()
	req := request("run=1h")
	req.Spec.RestartPolicy, req.Spec.Failover = policy, group.FailoverFenced
	if _, err := c.Put(t.Context(), ref(name), req); err != nil {
		t.Fatal(err)
	}
	await(t, c, name, group.Running)
}

// stays looks for a while that a group is where it was.
func stays(t *testing.T, c *Controller, name, on string) {
	t.Helper()
	for range 10 {
		if v := mustGet(t, c, name); v.Group.Host != on || v.Group.Desired != group.Run {
			t.Fatalf("group %s is on %s, desired %s", name, v.Group.Host, v.Group.Desired)
		}
		time.Sleep(failoverTick / 2)
	}
}

func TestFencedGroupsWaitForTheEndOfTheLease(t *testing.T) {
	var clock atomic.Int64
	clock.Store(time.Now().UnixNano())
	step := func(d time.Duration) { clock.Add(int64(d)) }
	c, stop := clocked(t, mem.New(), &clock)
	defer stop()
	withResourceGroup(t, c)
	join(t, c, "h1")
	for _, name := range []string{"fenced", "deleted"} {
		putFenced(t, c, name, group.RestartAlways)
	}
	putFenced(t, c, "job", group.RestartNever)
	putAlways(t, c, "plain")
	await(t, c, "plain", group.Running)
	join(t, c, "h2")
	if _, err := c.Drain(t.Context(), "h1"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("drain of a host with fenced groups: %v, want a conflict", err)
	}
	awaitView(t, c, "plain", "the drain", func(v arm.View) bool { return v.Group.Host == "h2" })
	stays(t, c, "fenced", "h1")
	link, _ := c.Host("h1")
	c.Disconnect(link, c.cfg.Now(), errors.New("test"))
	step(time.Second)
	eventually(t, "the loss", func() bool { h, _ := c.DescribeHost("h1"); return h.State == host.Lost })
	if _, err := c.Delete(t.Context(), ref("deleted"), nil); err != nil {
		t.Fatal(err)
	}
	step(leaseOver(time.Second) - time.Second - time.Millisecond)
	stays(t, c, "fenced", "h1")
	stays(t, c, "job", "h1")
	if _, err := c.Get(ref("deleted")); err != nil {
		t.Errorf("a deleted fenced group on a host that may run it: %v, want that it is still there", err)
	}
	step(time.Millisecond)
	awaitView(t, c, "fenced", "the other host", func(v arm.View) bool { return v.Group.Host == "h2" && v.Group.Epoch == 2 })
	awaitView(t, c, "job", "failure", func(v arm.View) bool { return v.Status != nil && v.Status.State == group.Failed })
	eventually(t, "the end of the deleted group", func() bool { _, err := c.Get(ref("deleted")); return fault.KindOf(err) == fault.NotFound })
}

// TestFencedGroupOfAHostThatComesBack is about a host that comes back when its group was already chosen to be moved.
func TestFencedGroupOfAHostThatComesBack(t *testing.T) {
	c := fleet(t)
	one := join(t, c, "h1")
	putFenced(t, c, "fenced", group.RestartAlways)
	join(t, c, "h2")
	if err := c.displace(t.Context(), mustGet(t, c, "fenced").Group); fault.KindOf(err) != fault.Conflict {
		t.Errorf("displace = %v, want a conflict", err)
	}
	stays(t, c, "fenced", "h1")
	if n := one.Count(); n != 1 {
		t.Errorf("the host runs %d groups, want 1", n)
	}
}

func TestNewLeaderCountsLeasesFromItsStart(t *testing.T) {
	var clock atomic.Int64
	clock.Store(time.Now().UnixNano())
	st := mem.New()
	c, stop := clocked(t, st, &clock)
	withResourceGroup(t, c)
	join(t, c, "h1")
	putFenced(t, c, "fenced", group.RestartAlways)
	join(t, c, "h2")
	stop()
	clock.Add(int64(time.Hour)) // nobody knows when the former leader has granted a lease last
	c, stop = clocked(t, st, &clock)
	defer stop()
	connect(t, c, "h2")
	clock.Add(int64(leaseOver(time.Second) + reconnectTime - time.Millisecond))
	eventually(t, "the loss", func() bool { h, _ := c.DescribeHost("h1"); return h.State == host.Lost })
	stays(t, c, "fenced", "h1")
	clock.Add(int64(time.Millisecond))
	awaitView(t, c, "fenced", "the other host", func(v arm.View) bool { return v.Group.Host == "h2" })
}

func TestFailoverStaysWhileAGroupRuns(t *testing.T) {
	c := fleet(t)
	join(t, c, "h1")
	putAlways(t, c, "web")
	await(t, c, "web", group.Running)
	req := request("run=1h")
	req.Spec.RestartPolicy, req.Spec.Failover = group.RestartAlways, group.FailoverFenced
	if _, err := c.Put(t.Context(), ref("web"), req); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a running group becomes a fenced one: %v, want a refusal", err)
	}
}
