package controller

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/place"
	"spillway.dev/spillway/internal/sim"
	"spillway.dev/spillway/internal/store/mem"
)

// apart is a group that will have no other of its app on its host.
func apart(app string) *arm.Request {
	req := request()
	match := []group.Expression{{Key: "app", Operator: group.In, Values: []string{app}}}
	req.Spec.Labels = map[string]string{"app": app}
	req.Spec.Placement = &group.Placement{AntiAffinity: []group.Affinity{{Match: match, Topology: group.TopologyHost}}}
	return req
}

func TestExplainCreatesNothing(t *testing.T) {
	c, _ := start(t, mem.New())
	withResourceGroup(t, c)
	connect(t, c, "h1")
	connect(t, c, "h2")
	res, err := c.Put(t.Context(), ref("a"), apart("web"))
	if err != nil {
		t.Fatal(err)
	}
	at, other := res.View.Group.Host, map[string]string{"h1": "h2", "h2": "h1"}[res.View.Group.Host]
	x, err := c.Explain(ref("b"), apart("web"))
	if err != nil || x.Host != other || len(x.Hosts) != 2 {
		t.Fatalf("Explain = %+v, %v, want %s", x, err, other)
	}
	for _, v := range x.Hosts {
		if v.Fits != (v.Host == other) || v.Host == at && !strings.Contains(v.Reason, "must not be beside this one") {
			t.Errorf("Explain says %+v", v)
		}
	}
	if x, err := c.Explain(ref("a"), apart("web")); err != nil || !x.Hosts[0].Fits || !x.Hosts[1].Fits {
		t.Errorf("a group is its own neighbour: %+v, %v", x, err)
	}
	if used := len(c.List(Filter{})); used != 1 {
		t.Errorf("there are %d groups", used)
	}
	if _, err := c.Explain(group.Ref{Subscription: "sub", ResourceGroup: "none", Name: "b"}, apart("web")); fault.KindOf(err) != fault.NotFound {
		t.Errorf("Explain in no resource group = %v", err)
	}
}

func TestRulesSurviveARestart(t *testing.T) {
	s := mem.New()
	c, stop := start(t, s)
	withResourceGroup(t, c)
	connect(t, c, "h1")
	if _, err := c.Put(t.Context(), ref("a"), apart("web")); err != nil {
		t.Fatal(err)
	}
	stop()
	c, _ = start(t, s)
	connect(t, c, "h1")
	res, err := c.Put(t.Context(), ref("b"), apart("web"))
	if err != nil || res.View.Group.Host != "" || !strings.Contains(res.View.Status.Reason, "h1: it has groups near") {
		t.Errorf("Put beside a running group = %+v, %v", res.View.Status, err)
	}
	if _, err := c.Put(t.Context(), ref("c"), apart("db")); err != nil {
		t.Errorf("Put of another app = %v", err)
	}
}

func TestGroupsGrowOnlyWithinTheirHost(t *testing.T) {
	c, _ := start(t, mem.New())
	withResourceGroup(t, c)
	h := connect(t, c, "h1")
	h.Change(func(d *host.Host) { d.Capacity.Memory = 4 << 30 })
	put(t, c, "a")
	put(t, c, "b")
	await(t, c, "a", group.Running)
	resize := func(gb string) error {
		p, err := arm.DecodePatch([]byte(`{"properties":{"containers":[{"name":"main","properties":{"resources":{"requests":{"cpu":0.1,"memoryInGB":`+gb+`}}}}]}}`), arm.SupersetVersion(), "a")
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Patch(t.Context(), ref("a"), p)
		return err
	}
	if err := resize("4"); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "h1: 2 of 4 GB memory are free") {
		t.Errorf("Patch beyond the host = %v", err)
	}
	if err := resize("3"); err != nil {
		t.Errorf("Patch = %v", err)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	if used := c.idx.fleet.Used("h1"); used.Memory != 4<<30 || len(c.idx.reserved) != 0 {
		t.Errorf("the host holds %+v, %d reservations", used, len(c.idx.reserved))
	}
}

// TestReservationsOutliveReports has many start one ended group while its host reports: it holds its room once.
func TestReservationsOutliveReports(t *testing.T) {
	c, _ := start(t, mem.New())
	withResourceGroup(t, c)
	connect(t, c, "h1")
	connect(t, c, "h2")
	put(t, c, "a", "run=1ms")
	for range 5 {
		v := await(t, c, "a", group.Succeeded)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				c.Report(v.Group.Host, *v.Status)
				if _, err := c.Start(context.WithoutCancel(t.Context()), ref("a")); err != nil && fault.KindOf(err) != fault.Conflict {
					t.Errorf("Start = %v", err)
				}
			})
		}
		wg.Wait()
	}
	await(t, c, "a", group.Succeeded)
	c.mu.RLock()
	defer c.mu.RUnlock()
	if one, two := c.idx.fleet.Used("h1"), c.idx.fleet.Used("h2"); one != (group.Resources{}) || two != (group.Resources{}) || len(c.idx.reserved) != 0 {
		t.Errorf("an ended group holds %+v and %+v, %d reservations", one, two, len(c.idx.reserved))
	}
}

func TestPoolsArePackedOrEven(t *testing.T) {
	c, err := New(t.Context(), Config{Store: mem.New(), Location: "local", Log: slog.New(slog.DiscardHandler), Pools: map[string]place.Policy{"packed": {MemoryOvercommit: 1, Pack: true}}})
	if err != nil {
		t.Fatal(err)
	}
	withResourceGroup(t, c)
	for _, pool := range []string{"packed", "even"} {
		for i := range 3 {
			h := sim.NewHost(fmt.Sprintf("%s%d", pool, i), nil, c.From(fmt.Sprintf("%s%d", pool, i)))
			t.Cleanup(h.Close)
			h.Change(func(d *host.Host) { d.Pool = pool })
			c.Connect(h)
		}
	}
	hosts := map[string]map[string]bool{"packed": {}, "even": {}}
	for pool, on := range hosts {
		for i := range 3 {
			req := request("run=1h")
			req.Spec.Placement = &group.Placement{Pools: []string{pool}}
			res, err := c.Put(t.Context(), ref(fmt.Sprintf("%s%d", pool, i)), req)
			if err != nil {
				t.Fatal(err)
			}
			on[res.View.Group.Host] = true
		}
	}
	if len(hosts["packed"]) != 1 || len(hosts["even"]) != 3 {
		t.Errorf("three groups are on %v of a packed pool and on %v of an even one, want one host and three", hosts["packed"], hosts["even"])
	}
}
