package controller

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/sim"
	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/store/mem"
)

// patience is how long anything may take in these tests.
const patience = 10 * time.Second

// start runs a controller on a store until the test (or stop) ends it.
func start(t *testing.T, s store.Store) (c *Controller, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c, err := New(ctx, Config{Store: s, Location: "local", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatalf("New = %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run = %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return c, stop
}

// connect adds a simulated host.
func connect(t *testing.T, c *Controller, name string) *sim.Host {
	t.Helper()
	h := sim.NewHost(name, nil, c.From(name))
	t.Cleanup(h.Close)
	c.Connect(h)
	return h
}

func withResourceGroup(t *testing.T, c *Controller) {
	t.Helper()
	if _, _, err := c.PutResourceGroup(t.Context(), ResourceGroup{Subscription: "sub", Name: "rg", Location: "local"}); err != nil {
		t.Fatal(err)
	}
}

func ref(name string) group.Ref {
	return group.Ref{Subscription: "sub", ResourceGroup: "rg", Name: name}
}

func request(command ...string) *arm.Request {
	return &arm.Request{Location: "local", Spec: group.Spec{RestartPolicy: group.RestartNever, SKU: "Standard", Containers: []group.Container{
		{Name: "main", Image: "busybox", Command: command, Requests: group.Resources{MilliCPU: 100, Memory: 1 << 30}},
	}}}
}

func put(t *testing.T, c *Controller, name string, command ...string) arm.View {
	t.Helper()
	res, err := c.Put(t.Context(), ref(name), request(command...))
	if err != nil {
		t.Fatalf("Put(%s) = %v", name, err)
	}
	return res.View
}

func await(t *testing.T, c *Controller, name string, state group.State) arm.View {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var last arm.View
	err := c.Await(ctx, ref(name), func(v arm.View, deleted bool) bool {
		last = v
		return !deleted && v.State() == state
	})
	if err != nil || last.Group == nil || last.State() != state {
		t.Fatalf("group %s did not become %s: %+v, %v", name, state, last.Status, err)
	}
	return last
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never happened that %s", what)
		}
	}
}

// counting counts the commits of a store.
type counting struct {
	store.Store
	mu      sync.Mutex
	commits int
}

func (s *counting) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	s.mu.Lock()
	s.commits++
	s.mu.Unlock()
	return s.Store.Commit(ctx, ops...)
}

func TestCreateIsOneCommit(t *testing.T) {
	s := &counting{Store: mem.New()}
	c, _ := start(t, s)
	connect(t, c, "h1")
	withResourceGroup(t, c)
	before := s.commits
	req := request()
	req.Spec.IP = &group.IPAddress{Public: true, DNSLabel: "my-label", Ports: []group.Port{{Number: 80, Protocol: "TCP"}}}
	if _, err := c.Put(t.Context(), ref("web"), req); err != nil {
		t.Fatal(err)
	}
	await(t, c, "web", group.Running)
	s.mu.Lock()
	defer s.mu.Unlock()
	if got := s.commits - before; got != 1 {
		t.Errorf("a create made %d commits, want 1", got)
	}
}

// TestRestartRemembers ends the controller and starts another on the same store.
func TestRestartRemembers(t *testing.T) {
	s := mem.New()
	c, stop := start(t, s)
	h := connect(t, c, "h1")
	withResourceGroup(t, c)
	put(t, c, "job", "run=1ms", "exit=4")
	put(t, c, "web")
	put(t, c, "doomed")
	await(t, c, "job", group.Failed)
	web := await(t, c, "web", group.Running)
	eventually(t, "the status of the ended group is stored", func() bool {
		page, err := s.List(t.Context(), store.Statuses, 0, "")
		return err == nil && len(page.Entries) == 1
	})
	doomed, err := c.Get(ref("doomed"))
	if err != nil {
		t.Fatal(err)
	}
	stop()
	h.Close()

	c, _ = start(t, s)
	v, err := c.Get(ref("job"))
	if err != nil || v.State() != group.Failed || *v.Status.Containers[0].Current.ExitCode != 4 {
		t.Fatalf("after a restart the ended group is %+v, %v", v.Status, err)
	}
	if u := c.Usage("sub"); u.Groups != 3 || u.MilliCPU != 200 {
		t.Errorf("usage = %+v, want 3 groups and 200 thousandths of a core", u)
	}
	h2 := connect(t, c, "h1")
	if again := await(t, c, "web", group.Running); again.Group.UID != web.Group.UID || again.Group.Epoch != 1 {
		t.Errorf("after a restart web is %+v", again.Group)
	}
	if _, err := c.Delete(t.Context(), doomed.Group.Ref, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deleted group is gone", func() bool { return c.lookup(ref("doomed")) == nil })
	eventually(t, "the host has forgotten it", func() bool { return h2.Count() == 2 })
}

// TestConnectCleansUp: what a host has and the store does not know is removed.
func TestConnectCleansUp(t *testing.T) {
	c, _ := start(t, mem.New())
	h := sim.NewHost("h1", nil, c.From("h1"))
	t.Cleanup(h.Close)
	h.Assign(&group.Group{UID: "stray", Generation: 1, Epoch: 1, Desired: group.Run, Spec: request().Spec})
	c.Connect(h)
	eventually(t, "the stray group is gone", func() bool { return h.Count() == 0 })
}

func TestManyWritersOneGroup(t *testing.T) {
	c, _ := start(t, mem.New())
	connect(t, c, "h1")
	withResourceGroup(t, c)
	var wg sync.WaitGroup
	var mu sync.Mutex
	created := 0
	for i := range 20 {
		wg.Go(func() {
			req := request()
			req.Tags = map[string]string{"n": fmt.Sprint(i)}
			res, err := c.Put(t.Context(), ref("web"), req)
			mu.Lock()
			defer mu.Unlock()
			if err != nil && fault.KindOf(err) != fault.Conflict {
				t.Errorf("Put = %v", err)
			}
			if err == nil && res.Created {
				created++
			}
		})
	}
	wg.Wait()
	if created != 1 {
		t.Errorf("%d writers created the group, want 1", created)
	}
	if v := await(t, c, "web", group.Running); v.Group.Epoch != 1 {
		t.Errorf("tags alone started epoch %d", v.Group.Epoch)
	}
}

// TestNeverOverfull lets more groups race for the host than fit.
func TestNeverOverfull(t *testing.T) {
	c, _ := start(t, mem.New())
	h := connect(t, c, "h1")
	h.Change(func(d *host.Host) { d.Capacity.Memory = 10 << 30 })
	withResourceGroup(t, c)
	var wg sync.WaitGroup
	var mu sync.Mutex
	placed := 0
	for i := range 40 {
		wg.Go(func() {
			res, err := c.Put(t.Context(), ref(fmt.Sprintf("g%d", i)), request())
			if err != nil {
				t.Errorf("Put = %v", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if res.View.Group.Host != "" {
				placed++
			}
		})
	}
	wg.Wait()
	if placed != 10 {
		t.Errorf("%d groups of 1 GB were placed on 10 GB", placed)
	}
	for _, v := range c.List(Filter{}) {
		if _, err := c.Delete(t.Context(), v.Group.Ref, nil); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "all are gone", func() bool { return len(c.List(Filter{})) == 0 })
	checkBooks(t, c)
}

func TestDrain(t *testing.T) {
	c, _ := start(t, mem.New())
	one := connect(t, c, "h1")
	withResourceGroup(t, c)
	put(t, c, "web")
	await(t, c, "web", group.Running)
	if _, err := c.Drain(t.Context(), "h1"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("Drain without another host = %v, want conflict", err)
	}
	await(t, c, "web", group.Running)
	two := connect(t, c, "h2")
	if _, err := c.Drain(t.Context(), "h1"); err != nil {
		t.Fatalf("Drain = %v", err)
	}
	eventually(t, "the group runs on the other host", func() bool {
		v, err := c.Get(ref("web"))
		return err == nil && v.Group.Host == "h2" && v.State() == group.Running && v.Status.Epoch == 2
	})
	eventually(t, "the drained host is empty", func() bool { return one.Count() == 0 && two.Count() == 1 })
	if v, err := c.Get(ref("web")); err != nil || v.State() != group.Running || v.Status.Gone {
		t.Errorf("after the drain: %+v, %v", v.Status, err)
	}
}

// TestSlowWatcherIsToldToStartOver fills the feed beyond what it keeps.
func TestSlowWatcherIsToldToStartOver(t *testing.T) {
	c, _ := start(t, mem.New())
	connect(t, c, "h1")
	withResourceGroup(t, c)
	w, _, err := c.Watch(Filter{}, "")
	if err != nil {
		t.Fatal(err)
	}
	begin := w.Revision()
	v := put(t, c, "web")
	v = await(t, c, "web", group.Running)
	for range feedSize {
		c.Report(v.Group.Host, *v.Status)
	}
	if _, err := w.Next(t.Context()); fault.KindOf(err) != fault.Gone {
		t.Errorf("Next of a slow watcher = %v, want gone", err)
	}
	if _, _, err := c.Watch(Filter{}, begin); fault.KindOf(err) != fault.Gone {
		t.Errorf("Watch from an old revision = %v, want gone", err)
	}
	fresh, views, err := c.Watch(Filter{}, "")
	if err != nil || len(views) != 1 {
		t.Fatalf("Watch = %d views, %v", len(views), err)
	}
	c.Report(v.Group.Host, *v.Status)
	if events, err := fresh.Next(t.Context()); err != nil || len(events) != 1 {
		t.Errorf("Next = %v, %v, want one event", events, err)
	}
}

// TestEventsAreCompleteAndInOrder compares what a watcher saw with what is there in the end.
func TestEventsAreCompleteAndInOrder(t *testing.T) {
	c, _ := start(t, mem.New())
	connect(t, c, "h1")
	withResourceGroup(t, c)
	w, _, err := c.Watch(Filter{Subscription: "SUB"}, "")
	if err != nil {
		t.Fatal(err)
	}
	const groups = 30
	var wg sync.WaitGroup
	for i := range groups {
		wg.Go(func() {
			name := fmt.Sprintf("g%d", i)
			if _, err := c.Put(t.Context(), ref(name), request("run=5ms")); err != nil {
				t.Error(err)
				return
			}
			if _, err := c.Delete(t.Context(), ref(name), nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	seen := map[string][]string{}
	last, deleted := int64(0), 0
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for deleted < groups {
		events, err := w.Next(ctx)
		if err != nil {
			t.Fatalf("%d of %d deletions seen: %v", deleted, groups, err)
		}
		for _, e := range events {
			if e.Seq <= last {
				t.Errorf("event %d came after %d", e.Seq, last)
			}
			last = e.Seq
			name := e.View.Group.Ref.Name
			seen[name] = append(seen[name], e.Type)
			if e.Type == Deleted {
				deleted++
			}
		}
	}
	for name, types := range seen {
		text := strings.Join(types, " ")
		if !strings.HasPrefix(text, Added) || !strings.HasSuffix(text, Deleted) || strings.Count(text, Added) != 1 || strings.Count(text, Deleted) != 1 {
			t.Errorf("%s: events %s", name, text)
		}
	}
}

// TestOtherWriters: a record that another server of the same store writes is taken over, and told to the host.
func TestOtherWriters(t *testing.T) {
	s := mem.New()
	c, _ := start(t, s)
	h := connect(t, c, "h1")
	withResourceGroup(t, c)
	g := &group.Group{Ref: ref("web"), UID: "u1", Generation: 1, Epoch: 1, Location: "local", Desired: group.Run, Host: "h1", Spec: request().Spec}
	value, err := encode(g)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), store.Op{Key: groupKey(g), Value: value, If: store.Absent}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the group is known", func() bool { return c.lookup(ref("web")) != nil })
	await(t, c, "web", group.Running)
	if h.Count() != 1 {
		t.Errorf("the host has %d groups, want 1", h.Count())
	}
}

func TestRulesOfStates(t *testing.T) {
	c, _ := start(t, mem.New())
	connect(t, c, "h1")
	withResourceGroup(t, c)
	put(t, c, "web")
	await(t, c, "web", group.Running)
	if _, err := c.Stop(t.Context(), ref("web")); err != nil {
		t.Fatal(err)
	}
	if v, err := c.Get(ref("web")); err != nil || v.State() != group.Stopped {
		t.Errorf("after Stop: %+v, %v", v.Status, err)
	}
	if u := c.Usage("sub"); u.MilliCPU != 0 {
		t.Errorf("a stopped group holds %d thousandths of a core", u.MilliCPU)
	}
	if res, err := c.Stop(t.Context(), ref("web")); err != nil || res.Changed {
		t.Errorf("second Stop = %+v, %v, want no change", res, err)
	}
	if res, err := c.Start(t.Context(), ref("web")); err != nil || !res.Changed || res.View.Group.Epoch != 2 {
		t.Errorf("Start = %+v, %v, want epoch 2", res.View.Group, err)
	}
	await(t, c, "web", group.Running)
	if res, err := c.Start(t.Context(), ref("web")); err != nil || res.Changed {
		t.Errorf("Start of a running group = %+v, %v, want no change", res, err)
	}
	for name, call := range map[string]func() error{
		"Get":     func() error { _, err := c.Get(ref("nope")); return err },
		"Stop":    func() error { _, err := c.Stop(t.Context(), ref("nope")); return err },
		"Restart": func() error { _, err := c.Restart(t.Context(), ref("nope")); return err },
		"Delete":  func() error { _, err := c.Delete(t.Context(), ref("nope"), nil); return err },
	} {
		if err := call(); fault.KindOf(err) != fault.NotFound {
			t.Errorf("%s of nothing = %v, want not found", name, err)
		}
	}
}
