package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/sim"
	"spillway.dev/spillway/internal/store/mem"
)

// fleet is a controller that gives hosts up after a short silence.
func fleet(t *testing.T) *Controller {
	t.Helper()
	return fleetBy(t, time.Now)
}

func fleetBy(t *testing.T, clock func() time.Time) *Controller {
	t.Helper()
	c, err := New(t.Context(), Config{Store: mem.New(), Location: "local", Log: slog.New(slog.DiscardHandler), LostAfter: 200 * time.Millisecond, Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	withResourceGroup(t, c)
	return c
}

// join takes a host into the fleet and connects it.
func join(t *testing.T, c *Controller, name string) *sim.Host {
	t.Helper()
	_, secret, err := c.CreateToken(t.Context(), JoinToken{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Join(t.Context(), joining(secret, name)); err != nil {
		t.Fatal(err)
	}
	h := connect(t, c, name)
	if err := c.Remember(t.Context(), h.Describe()); err != nil {
		t.Fatal(err)
	}
	return h
}

func joining(token, name string) Joining {
	return Joining{Token: token, Name: name, Sign: func(string) ([]byte, string, error) { return []byte("certificate"), "1", nil }}
}

// putAlways makes a group that is started again whatever happens.
func putAlways(t *testing.T, c *Controller, name string) {
	t.Helper()
	req := request("run=1h")
	req.Spec.RestartPolicy = group.RestartAlways
	if _, err := c.Put(t.Context(), ref(name), req); err != nil {
		t.Fatal(err)
	}
}

func mustGet(t *testing.T, c *Controller, name string) arm.View {
	t.Helper()
	v, err := c.Get(ref(name))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// awaitView waits until a group is as wanted.
func awaitView(t *testing.T, c *Controller, name, what string, ok func(arm.View) bool) {
	t.Helper()
	eventually(t, what+" of "+name, func() bool { return ok(mustGet(t, c, name)) })
}

func TestTokensAreGoodOnce(t *testing.T) {
	c := fleet(t)
	now := time.Now()
	c.cfg.Now = func() time.Time { return now }
	_, secret, err := c.CreateToken(t.Context(), JoinToken{}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	_, named, err := c.CreateToken(t.Context(), JoinToken{Host: "h9"}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what, token, name, code string) {
		t.Helper()
		_, err := c.Join(t.Context(), joining(token, name))
		if e, ok := errors.AsType[*fault.Error](err); !ok || e.Code != code {
			t.Errorf("%s: join = %v, want %s", what, err, code)
		}
	}
	refused("no token", "", "h1", "JoinTokenInvalid")
	refused("a wrong secret", secret[:20]+"0000", "h1", "JoinTokenInvalid")
	refused("a token of another host", named, "h1", "JoinTokenForeign")
	if _, err := c.Join(t.Context(), joining(secret, "h1")); err != nil {
		t.Fatal(err)
	}
	refused("a used token", secret, "h2", "JoinTokenInvalid")
	_, second, err := c.CreateToken(t.Context(), JoinToken{}, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	refused("a taken name", second, "h1", "HostNameTaken")
	now = now.Add(time.Hour)
	refused("an expired token", second, "h3", "JoinTokenInvalid")
	if _, _, err := c.CreateToken(t.Context(), JoinToken{}, MaxTokenLife+1); fault.KindOf(err) != fault.Invalid {
		t.Errorf("a token for ever: %v, want a refusal", err)
	}
}

func TestHostReportsItsOwnGroupsOnly(t *testing.T) {
	c := fleet(t)
	join(t, c, "h1")
	v := put(t, c, "a", "run=1h")
	await(t, c, "a", group.Running)
	forged := *mustGet(t, c, "a").Status
	forged.State, forged.Gone = group.Failed, true
	c.Report("h2", forged)
	if got := mustGet(t, c, "a").Status.State; got != group.Running || v.Group.Host != "h1" {
		t.Errorf("a foreign host's report made the group of %s %s", v.Group.Host, got)
	}
}

func TestLostHostsGroupsStartElsewhere(t *testing.T) {
	c := fleet(t)
	one := join(t, c, "h1")
	putAlways(t, c, "web")
	job := request("run=1h")
	job.Spec.RestartPolicy = group.RestartNever
	if _, err := c.Put(t.Context(), ref("job"), job); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"web", "job"} {
		await(t, c, name, group.Running)
	}
	if _, err := c.RemoveHost(t.Context(), "h1"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("removal of a host with groups: %v, want a conflict", err)
	}
	two := join(t, c, "h2")
	link, _ := c.Host("h1")
	c.Disconnect(link, time.Now(), errors.New("test"))
	if h, err := c.DescribeHost("h1"); err != nil || h.State != host.NotReady {
		t.Errorf("state of a silent host = %q, %v, want NotReady", h.State, err)
	}
	awaitView(t, c, "web", "the other host", func(v arm.View) bool {
		return v.Group.Host == "h2" && v.Status != nil && v.Status.State == group.Running
	})
	awaitView(t, c, "job", "failure", func(v arm.View) bool { return v.Status != nil && v.Status.State == group.Failed })
	if v := mustGet(t, c, "web"); v.Group.Epoch != 2 || len(v.Group.Events) != 1 || !strings.Contains(v.Group.Events[0].Message, "h1") {
		t.Errorf("epoch %d and events %+v after the loss", v.Group.Epoch, v.Group.Events)
	}
	if v := mustGet(t, c, "job"); v.Group.Host != "h1" || v.Group.Desired != group.Stop || !strings.HasPrefix(v.Status.Reason, "HostLost") {
		t.Errorf("a group that never restarts: host %s, desired %s, reason %q", v.Group.Host, v.Group.Desired, v.Status.Reason)
	}
	if h, _ := c.DescribeHost("h1"); h.State != host.Lost {
		t.Errorf("state of a lost host = %q", h.State)
	}
	// It comes back, and stops what was started elsewhere.
	c.Connect(one)
	eventually(t, "the end of the first copy", func() bool {
		s, ok := one.Status(mustGet(t, c, "web").Group.UID)
		return !ok || s.State.Ended() || s.Gone
	})
	if h, _ := c.DescribeHost("h1"); h.State != host.Ready {
		t.Errorf("state of a host that is back = %q", h.State)
	}
	if s, ok := two.Status(mustGet(t, c, "web").Group.UID); !ok || s.State != group.Running {
		t.Errorf("the second copy = %+v, %t", s, ok)
	}
}

func TestLostHostCanBeForgotten(t *testing.T) {
	c := fleet(t)
	join(t, c, "h1")
	for _, name := range []string{"deleted", "stopped"} {
		putAlways(t, c, name)
		await(t, c, name, group.Running)
	}
	put(t, c, "ended", "run=1ms")
	await(t, c, "ended", group.Succeeded)
	link, _ := c.Host("h1")
	c.Disconnect(link, time.Now(), errors.New("test"))
	eventually(t, "the loss", func() bool { h, _ := c.DescribeHost("h1"); return h.State == host.Lost })
	if _, err := c.Delete(t.Context(), ref("deleted"), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Stop(t.Context(), ref("stopped")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of the deleted group", func() bool { _, err := c.Get(ref("deleted")); return fault.KindOf(err) == fault.NotFound })
	eventually(t, "that nothing is left to do", func() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.absent["h1"].empty })
	if _, err := c.Delete(t.Context(), ref("ended"), nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of a group that is deleted later", func() bool { _, err := c.Get(ref("ended")); return fault.KindOf(err) == fault.NotFound })
	if v := mustGet(t, c, "stopped"); v.Status.State != group.Stopped {
		t.Errorf("the group that was asked to stop is %s", v.Status.State)
	}
	if _, err := c.RemoveHost(t.Context(), "h1"); err != nil {
		t.Errorf("removal of a lost host without groups: %v", err)
	}
}

func TestGroupsOfALostHostWaitForRoom(t *testing.T) {
	c := fleet(t)
	join(t, c, "h1")
	putAlways(t, c, "web")
	await(t, c, "web", group.Running)
	link, _ := c.Host("h1")
	c.Disconnect(link, time.Now(), errors.New("test"))
	eventually(t, "the loss", func() bool { h, _ := c.DescribeHost("h1"); return h.State == host.Lost })
	join(t, c, "h2")
	awaitView(t, c, "web", "room", func(v arm.View) bool { return v.Group.Host == "h2" })
}

// TestGroupsOfALostHostGetRoomAtABoundedRate: those that had to wait overrun the host that comes no more than others do.
func TestGroupsOfALostHostGetRoomAtABoundedRate(t *testing.T) {
	var ahead atomic.Int64
	begin := time.Now()
	c := fleetBy(t, func() time.Time { return begin.Add(time.Duration(ahead.Load())) })
	join(t, c, "h1")
	const many = 3 * failoverBatch
	for i := range many {
		putAlways(t, c, fmt.Sprint("g", i))
	}
	link, _ := c.Host("h1")
	c.Disconnect(link, begin, errors.New("test"))
	eventually(t, "all wait", func() bool { ahead.Add(int64(failoverTick)); return queued(c) == many })
	c.mu.Lock()
	c.displaces(c.mayDisplace()) // as if others were just started
	c.mu.Unlock()
	join(t, c, "h2")
	moved := func() (n int) {
		c.mu.RLock()
		defer c.mu.RUnlock()
		return len(c.idx.byHost["h2"])
	}
	for want := 0; want <= many; want += failoverBatch {
		eventually(t, "those that may", func() bool { return moved() >= want })
		c.mu.Lock()
		placed, _ := c.next()
		c.mu.Unlock()
		if n := moved(); n != want || len(placed) > 0 {
			t.Fatalf("%d groups have moved and %d are about to, want %d", n, len(placed), want)
		}
		ahead.Add(int64(failoverTick))
	}
}

func TestHostIsForgotten(t *testing.T) {
	c := fleet(t)
	join(t, c, "h1")
	link, _ := c.Host("h1")
	c.mu.RLock()
	uid := c.idx.hosts["h1"].UID
	c.mu.RUnlock()
	if err := c.Admit("h1", uid); err != nil {
		t.Errorf("Admit of a host that has joined = %v", err)
	}
	c.Disconnect(link, time.Now(), errors.New("test"))
	if _, err := c.RemoveHost(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	if err := c.Admit("h1", uid); err == nil {
		t.Error("a host that was removed is let in")
	}
	if _, err := c.DescribeHost("h1"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("DescribeHost = %v, want not found", err)
	}
	join(t, c, "h1") // its name is free again
	if err := c.Admit("h1", uid); err == nil {
		t.Error("the certificate of the former host of this name is let in")
	}
}
