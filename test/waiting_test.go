package test

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
)

// TestWaiting has a group wait for room on a real machine: it is told why, outlives the platform's death, and runs within
// a second of the room appearing. A Spot group makes that room by itself.
func TestWaiting(t *testing.T) {
	t.Parallel()
	p := startPlatform(t, options{})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	hosts, err := p.client.Hosts(t.Context())
	if err != nil || len(hosts) != 1 {
		t.Fatalf("hosts = %v, %v", hosts, err)
	}
	gigabytes := float64(hosts[0].Capacity.Memory >> 30)
	part := func(share float64) M {
		return M{"resources": M{"requests": M{"cpu": 0.05, "memoryInGB": float64(int(gigabytes*share*10)) / 10}}}
	}
	full := p.create("full", []M{container("c", sleeper, part(0.75))})
	p.running(full)
	late := p.create("late", []M{container("c", sleeper, part(0.5))}, M{"restartPolicy": "Always"})
	waits := func(n string) {
		t.Helper()
		g := p.get(n)
		if g.State() != "Pending" || g.Properties.Host != "" || !strings.Contains(g.Properties.InstanceView.Reason, "GB memory are free") {
			t.Fatalf("the group is %s on %q: %q", g.State(), g.Properties.Host, g.Properties.InstanceView.Reason)
		}
	}
	waits(late)
	if err := p.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.up(); err != nil {
		t.Fatal(err)
	}
	p.await(late, "the reason after a restart", func(g *client.Group) bool {
		return strings.Contains(g.Properties.InstanceView.Reason, "GB memory are free")
	})
	waits(late)
	soon := func(n string, since time.Time) {
		t.Helper()
		p.running(n)
		took := time.Since(since)
		t.Logf("%s ran %s after the room was there", n, took.Round(time.Millisecond))
		if took > time.Second {
			t.Errorf("%s ran %s after the room was there", n, took)
		}
	}
	p.remove(full)
	soon(late, time.Now())
	p.remove(late)

	spot := p.create("spot", []M{container("c", sleeper, part(0.75))}, M{"restartPolicy": "Always", "priority": "Spot"})
	p.running(spot)
	regular := p.create("regular", []M{container("c", sleeper, part(0.5))})
	p.running(regular)
	g := p.await(spot, "a wait", func(g *client.Group) bool { return g.State() == "Pending" && g.Properties.Host == "" })
	evicted := false
	for _, e := range g.Properties.InstanceView.Events {
		evicted = evicted || e.Name == "SpotEvicted" && e.Type == "Warning" && strings.Contains(e.Message, regular)
	}
	if !evicted {
		t.Errorf("the events of the Spot group are %+v", g.Properties.InstanceView.Events)
	}
	if text := p.refused(name("giant"), group([]M{container("c", sleeper, part(1.5))})); !strings.Contains(text, "not available") {
		t.Errorf("the refusal of what this machine can never take is %q", text)
	}
	p.remove(regular)
	soon(spot, time.Now())
}

// TestKillsDuringEviction kills the server while a Spot group gives way to a regular one: the regular one runs once, and
// the Spot group comes back when it has gone.
func TestKillsDuringEviction(t *testing.T) {
	t.Parallel()
	s := newSweep(t)
	hosts, err := s.client.Hosts(t.Context())
	if err != nil || len(hosts) != 1 {
		t.Fatalf("hosts = %v, %v", hosts, err)
	}
	most := int(hosts[0].Capacity.Memory >> 30 * 6 / 10)
	large := func(n string, parts ...M) M {
		body := s.body(n, sleeper)
		properties := body["properties"].(M)
		for _, part := range parts {
			for k, v := range part {
				properties[k] = v
			}
		}
		properties["containers"].([]M)[0]["properties"].(M)["resources"] = M{"requests": M{"cpu": 0.05, "memoryInGB": most}}
		return body
	}
	for _, point := range evictionPoints {
		spot, regular := name("spot"), name("regular")
		s.put(spot, large(spot, M{"restartPolicy": "Always", "priority": "Spot"}))
		s.once(point, spot)
		s.strike(point, func(ctx context.Context) error {
			_, err := s.client.PutGroup(ctx, "", regular, large(regular))
			return err
		})
		s.once(point, regular)
		s.await(spot, "a wait", func(g *client.Group) bool { return g.Properties.Host == "" && g.Properties.Desired == "Run" })
		s.remove(regular)
		s.running(spot)
		for _, c := range []string{"a", "b"} {
			waitFor(t, "the second run of "+spot+" after a kill at "+point, func() bool { return s.executions(spot, c) == 2 })
		}
		s.drop(point, spot)
	}
}
