package controller

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/sim"
	"spillway.dev/spillway/internal/store/mem"
)

// small adds a host with some GB of memory.
func small(t *testing.T, c *Controller, name string, gb int64) *sim.Host {
	t.Helper()
	h := sim.NewHost(name, nil, c.From(name))
	t.Cleanup(h.Close)
	h.Change(func(d *host.Host) { d.Capacity.Memory = gb << 30 })
	c.Connect(h)
	return h
}

// sized is a group of some GB that runs until it is stopped.
func sized(gb int64) *arm.Request {
	req := request()
	req.Spec.RestartPolicy = group.RestartAlways
	req.Spec.Containers[0].Requests.Memory = gb << 30
	return req
}

func putSized(t *testing.T, c *Controller, name string, gb int64) arm.View {
	t.Helper()
	res, err := c.Put(t.Context(), ref(name), sized(gb))
	if err != nil {
		t.Fatalf("Put(%s) = %v", name, err)
	}
	return res.View
}

// soon is await within the second that the platform promises.
func soon(t *testing.T, c *Controller, name string) arm.View {
	t.Helper()
	began := time.Now()
	v := await(t, c, name, group.Running)
	if took := time.Since(began); took > time.Second {
		t.Errorf("%s ran after %s", name, took)
	}
	return v
}

func waitsFor(t *testing.T, v arm.View, reason string) {
	t.Helper()
	if v.Group.Host != "" || v.State() != group.Pending || v.Provisioning(time.Now()) != group.ProvisioningPending ||
		v.Status == nil || v.Status.Reason != "FailedPlacement: "+reason {
		t.Fatalf("the group is %s on %q: %+v", v.State(), v.Group.Host, v.Status)
	}
	if e := v.Group.Events[len(v.Group.Events)-1]; e.Name != eventNoRoom || e.Type != group.Warning || e.Message != reason {
		t.Errorf("its event is %+v", e)
	}
}

// TestRoomOfEveryKind lets a group wait and makes room for it in every way there is.
func TestRoomOfEveryKind(t *testing.T) {
	for _, test := range []struct {
		name, reason string
		prepare      func(c *Controller, h *sim.Host)
		act          func(t *testing.T, c *Controller, h *sim.Host) error
	}{
		{"a host comes", "h1: 0 of 4 GB memory are free", nil, func(t *testing.T, c *Controller, _ *sim.Host) error { small(t, c, "h2", 4); return nil }},
		{"a group is deleted", "h1: 0 of 4 GB memory are free", nil, func(t *testing.T, c *Controller, _ *sim.Host) error {
			_, err := c.Delete(t.Context(), ref("full"), nil)
			return err
		}},
		{"a group is stopped", "h1: 0 of 4 GB memory are free", nil, func(t *testing.T, c *Controller, _ *sim.Host) error {
			_, err := c.Stop(t.Context(), ref("full"))
			return err
		}},
		{"a group shrinks", "h1: 0 of 4 GB memory are free", nil, func(t *testing.T, c *Controller, _ *sim.Host) error {
			p, err := arm.DecodePatch([]byte(`{"properties":{"containers":[{"name":"main","properties":{"resources":{"requests":{"cpu":0.1,"memoryInGB":2}}}}]}}`), arm.SupersetVersion(), "full")
			if err != nil {
				return err
			}
			_, err = c.Patch(t.Context(), ref("full"), p)
			return err
		}},
		{"a host is uncordoned", "h1: it is cordoned", func(c *Controller, _ *sim.Host) {
			_, _ = c.Delete(t.Context(), ref("full"), nil)
			_, _ = c.Cordon(t.Context(), "h1", true)
		}, func(t *testing.T, c *Controller, _ *sim.Host) error {
			_, err := c.Cordon(t.Context(), "h1", false)
			return err
		}},
		{"the machine gets larger", "h1: 0 of 4 GB memory are free", nil, func(_ *testing.T, _ *Controller, h *sim.Host) error {
			h.Change(func(d *host.Host) { d.Capacity.Memory = 8 << 30 })
			return nil
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, _ := start(t, mem.New())
			withResourceGroup(t, c)
			h := small(t, c, "h1", 4)
			putSized(t, c, "full", 4)
			await(t, c, "full", group.Running)
			if test.prepare != nil {
				test.prepare(c, h)
			}
			waitsFor(t, putSized(t, c, "late", 2), test.reason)
			if err := test.act(t, c, h); err != nil {
				t.Fatal(err)
			}
			if v := soon(t, c, "late"); v.Group.Epoch != 1 || v.Status.Reason != "" {
				t.Errorf("it runs as %+v, %+v", v.Group, v.Status)
			}
		})
	}
}

func TestDiskThatIsCleared(t *testing.T) {
	c, _ := start(t, mem.New())
	withResourceGroup(t, c)
	h := small(t, c, "h1", 4)
	h2 := small(t, c, "h2", 1)
	h.Change(func(d *host.Host) { d.DiskFull = true })
	waitsFor(t, putSized(t, c, "a", 2), "2 hosts: 1 lacks memory, 1 has a full disk")
	h2.Change(func(d *host.Host) { d.DiskFull = true })
	if _, err := c.Put(t.Context(), ref("b"), sized(1)); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "Free disk space") {
		t.Errorf("Put on full disks = %v", err)
	}
	h.Change(func(d *host.Host) { d.DiskFull = false })
	soon(t, c, "a")
}

// TestWhatCanNeverFitIsRefused: on one machine that nobody has joined no room can appear for it.
func TestWhatCanNeverFitIsRefused(t *testing.T) {
	c := fleet(t)
	waitsFor(t, putSized(t, c, "early", 5), "no host is connected")
	small(t, c, "h1", 4)
	refused := func(what string, req *arm.Request) {
		t.Helper()
		_, err := c.Put(t.Context(), ref("large"), req)
		if e, ok := errors.AsType[*fault.Error](err); !ok || e.Code != "ServiceUnavailable" || e.Kind != fault.Conflict {
			t.Errorf("%s: Put = %v", what, err)
		}
	}
	refused("more memory than there is", sized(5))
	strong := sized(1)
	strong.Spec.Isolation = group.IsolationGVisor
	refused("another isolation", strong)
	join(t, c, "h2")
	putSized(t, c, "large", 65)
	waitsFor(t, mustGet(t, c, "large"), "2 hosts: 2 lack memory")
	soon(t, c, "early")
}

// TestWaitingGroupsCanBeChanged deletes, stops, starts, shrinks and tags groups that wait.
func TestWaitingGroupsCanBeChanged(t *testing.T) {
	s := &counting{Store: mem.New()}
	c, _ := start(t, s)
	withResourceGroup(t, c)
	small(t, c, "h1", 4)
	putSized(t, c, "full", 3)
	for _, name := range []string{"deleted", "stopped", "shrunk"} {
		putSized(t, c, name, 4)
	}
	before := s.commits
	if res, err := c.Put(t.Context(), ref("shrunk"), sized(4)); err != nil || res.Changed || s.commits != before {
		t.Errorf("the same PUT again = %+v, %v, %d commits", res, err, s.commits-before)
	}
	if _, err := c.Delete(t.Context(), ref("deleted"), nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deleted group is gone", func() bool { return c.lookup(ref("deleted")) == nil })
	if res, err := c.Stop(t.Context(), ref("stopped")); err != nil || res.View.State() != group.Stopped {
		t.Errorf("Stop = %s, %v", res.View.State(), err)
	}
	if res, err := c.Put(t.Context(), ref("shrunk"), sized(1)); err != nil || res.View.Group.Host != "h1" {
		t.Errorf("Put of what fits = %+v, %v", res.View.Group, err)
	}
	soon(t, c, "shrunk")
	if res, err := c.Start(t.Context(), ref("stopped")); err != nil || res.View.State() != group.Pending || res.View.Group.Epoch != 2 {
		t.Errorf("Start = %+v, %v", res.View.Group, err)
	}
	waitsFor(t, mustGet(t, c, "stopped"), "h1: 0 of 4 GB memory are free")
	for _, name := range []string{"full", "shrunk"} {
		if _, err := c.Delete(t.Context(), ref(name), nil); err != nil {
			t.Fatal(err)
		}
	}
	soon(t, c, "stopped")
}

// TestWaitingSurvivesARestart ends the platform while groups wait: they go on in the order of their creation.
func TestWaitingSurvivesARestart(t *testing.T) {
	s := mem.New()
	c, stop := start(t, s)
	withResourceGroup(t, c)
	h := small(t, c, "h1", 2)
	putSized(t, c, "full", 2)
	names := []string{"z", "y", "x", "stopped", "deleted"}
	for _, name := range names {
		putSized(t, c, name, 2)
	}
	if _, err := c.Stop(t.Context(), ref("stopped")); err != nil {
		t.Fatal(err)
	}
	stop()
	h.Close()

	c, _ = start(t, s)
	if v := mustGet(t, c, "z"); v.State() != group.Pending || !strings.HasPrefix(v.Status.Reason, eventNoRoom+": ") {
		t.Errorf("the waiting group is %+v", v.Status)
	}
	if v := mustGet(t, c, "stopped"); v.State() != group.Stopped {
		t.Errorf("the stopped group is %s", v.State())
	}
	waitsFor(t, putSized(t, c, "new", 2), "no host is connected") // hosts have not come back yet
	if _, err := c.Delete(t.Context(), ref("deleted"), nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deleted group is gone", func() bool { return c.lookup(ref("deleted")) == nil })
	small(t, c, "h1", 2)
	for i, name := range []string{"full", "z", "y", "x", "new"} {
		soon(t, c, name)
		if waiting := queued(c); waiting != 4-i {
			t.Errorf("%d wait while %s runs", waiting, name)
		}
		if _, err := c.Delete(t.Context(), ref(name), nil); err != nil {
			t.Fatal(err)
		}
	}
}

func queued(c *Controller) int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.idx.queue.Len()
}

// TestNobodyStarves has small groups come and go in front of a large one.
func TestNobodyStarves(t *testing.T) {
	c, _ := start(t, mem.New())
	withResourceGroup(t, c)
	small(t, c, "h1", 2)
	small(t, c, "h2", 2)
	var running []string
	for n := 0; n < 3; n++ {
		name := fmt.Sprintf("small%d", n)
		putSized(t, c, name, 1)
		running = append(running, name)
	}
	putSized(t, c, "large", 2)
	for n := 3; mustGet(t, c, "large").Group.Host == ""; n++ {
		if n > 1000 { // the wait loop, which keeps a host for it, looks every 5 ms at most: a hundred pass it in that time
			t.Fatal("the large group still waits after 1000 others were given room")
		}
		name := fmt.Sprintf("small%d", n)
		putSized(t, c, name, 1)
		running = append(running, name)
		if _, err := c.Delete(t.Context(), ref(running[0]), nil); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the end of "+running[0], func() bool { return c.lookup(ref(running[0])) == nil })
		running = running[1:]
	}
	soon(t, c, "large")
}

// TestWaitingCostsNoWrites changes the reason all the time: the store hears of it with the next write only.
func TestWaitingCostsNoWrites(t *testing.T) {
	s := &counting{Store: mem.New()}
	c, _ := start(t, s)
	withResourceGroup(t, c)
	small(t, c, "h1", 2)
	putSized(t, c, "full", 2)
	await(t, c, "full", group.Running)
	putSized(t, c, "late", 2)
	s.mu.Lock()
	before := s.commits
	s.mu.Unlock()
	for i := range 3 {
		if _, err := c.Cordon(t.Context(), "h1", i%2 == 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(tellEvery / 4)
	}
	eventually(t, "the newest reason is told", func() bool { return mustGet(t, c, "late").Status.Reason == "FailedPlacement: h1: it is cordoned" })
	s.mu.Lock()
	if got := s.commits - before; got != 3 {
		t.Errorf("%d commits, want the three of the host's record", got)
	}
	s.mu.Unlock()
	v := mustGet(t, c, "late")
	if n := slices.IndexFunc(v.Group.Events, func(e group.Event) bool { return e.Name == eventNoRoom }); n != 0 || len(v.Group.Events) != 1 || v.Group.Events[0].Count < 2 {
		t.Errorf("the events are %+v", v.Group.Events)
	}
}

// TestManyWait lets thousands of groups wait: a change costs them little, and a large host takes them all at once, with
// few commits.
func TestManyWait(t *testing.T) {
	const many = 2000
	s := &counting{Store: mem.New()}
	c, _ := start(t, s)
	withResourceGroup(t, c)
	small(t, c, "h1", 2)
	putSized(t, c, "full", 2)
	for i := range many {
		putSized(t, c, fmt.Sprint("g", i), 2)
	}
	await(t, c, "full", group.Running)
	eventually(t, "all have been tried", func() bool { c.mu.Lock(); defer c.mu.Unlock(); _, more := c.idx.queue.Retry(1, 1); return !more })
	s.mu.Lock()
	before := s.commits
	s.mu.Unlock()
	began := time.Now()
	h := sim.NewHost("h2", nil, c.From("h2"))
	t.Cleanup(h.Close)
	h.Change(func(d *host.Host) { d.Capacity = group.Resources{MilliCPU: 1 << 30, Memory: 1 << 50} })
	c.Connect(h)
	eventually(t, "all have room", func() bool { return queued(c) == 0 })
	t.Logf("%d groups were placed in %s", many, time.Since(began))
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := s.commits - before; got > many/placeBatch+10 {
		t.Errorf("%d commits placed %d groups", got, many)
	}
}

// TestTakeoverRefusesNothing: while hosts have not come back to a new leader, new groups wait.
func TestTakeoverRefusesNothing(t *testing.T) {
	s := mem.New()
	c, stop := start(t, s)
	withResourceGroup(t, c)
	h := join(t, c, "h1")
	putSized(t, c, "a", 60)
	await(t, c, "a", group.Running)
	waitsFor(t, putSized(t, c, "late", 60), "h1: 4 of 64 GB memory are free")
	stop()
	h.Close()

	c, _ = start(t, s)
	waitsFor(t, putSized(t, c, "new", 1), "h1: it is not ready")
	connect(t, c, "h1")
	soon(t, c, "a")
	soon(t, c, "new")
	if v := mustGet(t, c, "late"); v.Group.Host != "" {
		t.Errorf("the large group has room on %s", v.Group.Host)
	}
	if _, err := c.Delete(t.Context(), ref("a"), nil); err != nil {
		t.Fatal(err)
	}
	soon(t, c, "late")
}
