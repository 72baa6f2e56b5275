package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
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

var testRange = netip.MustParsePrefix("10.200.0.0/24") // 16 blocks of 16

// spanning is a controller of a fleet with a network over all hosts.
func spanning(t *testing.T, st store.Store) *Controller {
	t.Helper()
	c, err := New(t.Context(), Config{Store: st, Location: "local", Log: slog.New(slog.DiscardHandler), Network: testRange, LostAfter: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	withResourceGroup(t, c)
	return c
}

// joinAt takes a host into the fleet that others reach at an address.
func joinAt(t *testing.T, c *Controller, name, underlay string) *sim.Host {
	t.Helper()
	_, secret, err := c.CreateToken(t.Context(), JoinToken{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Join(t.Context(), joining(secret, name)); err != nil {
		t.Fatal(err)
	}
	h := sim.NewHost(name, nil, c.From(name))
	t.Cleanup(h.Close)
	h.Change(func(d *host.Host) { d.Underlay = netip.MustParseAddr(underlay) })
	c.Connect(h)
	if err := c.Remember(t.Context(), h.Describe()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a block for "+name, func() bool { return len(h.Overlay().Blocks) > 0 })
	return h
}

func peers(h *sim.Host) (out []string) {
	for _, p := range h.Overlay().Set {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return out
}

func TestHostsGetBlocksOfTheirOwn(t *testing.T) {
	st := mem.New()
	c := spanning(t, st)
	one, two := joinAt(t, c, "h1", "192.0.2.1"), joinAt(t, c, "h2", "192.0.2.2")
	eventually(t, "that the hosts know each other", func() bool {
		return slices.Equal(peers(one), []string{"h2"}) && slices.Equal(peers(two), []string{"h1"})
	})
	for i := range 30 { // more than a block has addresses
		putAlways(t, c, fmt.Sprintf("g%d", i))
	}
	seen := map[netip.Prefix]string{}
	eventually(t, "more blocks", func() bool { return len(one.Overlay().Blocks)+len(two.Overlay().Blocks) >= 3 })
	for _, h := range []*sim.Host{one, two} {
		for _, b := range h.Overlay().Blocks {
			if other := seen[b]; other != "" || b.Bits() != host.BlockBits(testRange) || !testRange.Contains(b.Addr()) {
				t.Errorf("the block %s of %s is also that of %q", b, h.Describe().Name, other)
			}
			seen[b] = h.Describe().Name
		}
	}
	again, err := New(t.Context(), c.cfg) // a server that leads later
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"h1", "h2"} {
		if !slices.Equal(again.Blocks(name), c.Blocks(name)) {
			t.Errorf("blocks of %s are %v after a change of leaders, were %v", name, again.Blocks(name), c.Blocks(name))
		}
	}
	if err := again.HoldBlocks(t.Context(), "own", []netip.Addr{c.Blocks("h1")[0].Addr()}); fault.KindOf(err) != fault.Conflict {
		t.Errorf("another's addresses: %v, want a conflict", err)
	}
	if err := again.HoldBlocks(t.Context(), "own", []netip.Addr{netip.MustParseAddr("10.200.0.250"), netip.MustParseAddr("10.200.0.241")}); err != nil || len(again.Blocks("own")) != 1 {
		t.Errorf("blocks of addresses in use = %v, %v, want one", again.Blocks("own"), err)
	}
}

// TestRemovedHostIsGivenNothing removes a host whose connection has not ended yet: it is no host from then on, and nothing
// writes its record anew.
func TestRemovedHostIsGivenNothing(t *testing.T) {
	c := spanning(t, mem.New())
	h := joinAt(t, c, "h1", "192.0.2.1")
	c.mu.RLock()
	uid := c.idx.hosts["h1"].UID
	c.mu.RUnlock()
	if _, err := c.RemoveHost(t.Context(), "h1"); err != nil {
		t.Fatal(err)
	}
	if d, err := c.DescribeHost("h1"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a removed host is %+v, %v", d, err)
	}
	if err := c.ConnectJoined(h, uid); fault.KindOf(err) != fault.Denied {
		t.Errorf("a connection that was let in before the removal: %v, want that it is refused", err)
	}
	for what, write := range map[string]func() error{
		"blocks":        func() error { return c.changeHost(t.Context(), "h1", adding(c.freeBlocks(1))) },
		"a description": func() error { return c.Remember(t.Context(), h.Describe()) },
	} {
		if err := write(); fault.KindOf(err) != fault.NotFound {
			t.Errorf("%s of a removed host: %v, want not found", what, err)
		}
	}
	c.noteLost(t.Context(), "h1", true)
	if err := c.grantBlocks(t.Context()); err != nil {
		t.Error(err)
	}
	if e, err := c.cfg.Store.Get(t.Context(), store.HostKey("h1")); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the record of a removed host is %s, %v", e.Value, err)
	}
	back := joinAt(t, c, "h1", "192.0.2.1")
	if err := c.ConnectJoined(back, uid); fault.KindOf(err) != fault.Denied {
		t.Errorf("the former host of a name: %v, want that it is refused", err)
	}
}

// lagging is a host that says only when it is let that it has carried out what it was told.
type lagging struct {
	*sim.Host
	done atomic.Int64
}

func (l *lagging) Describe() host.Host {
	h := l.Host.Describe()
	h.Overlay = l.done.Load()
	return h
}

func TestLostHostIsWithdrawnBeforeItsGroupsMove(t *testing.T) {
	c := spanning(t, mem.New())
	one := joinAt(t, c, "h1", "192.0.2.1")
	putAlways(t, c, "web")
	await(t, c, "web", group.Running)
	two := &lagging{Host: joinAt(t, c, "h2", "192.0.2.2")}
	c.Connect(two)
	eventually(t, "the peer", func() bool { return slices.Equal(peers(two.Host), []string{"h1"}) })
	two.done.Store(two.Overlay().Version)
	c.Disconnect(one, time.Now(), errors.New("test"))
	eventually(t, "the withdrawal", func() bool { return len(peers(two.Host)) == 0 })
	c.moveLost(t.Context())
	if v := mustGet(t, c, "web"); v.Group.Host != "h1" {
		t.Fatalf("the group was placed on %q before its host was withdrawn there", v.Group.Host)
	}
	two.done.Store(two.Overlay().Version)
	awaitView(t, c, "web", "the other host", func(v arm.View) bool { return v.Group.Host == "h2" })
	c.Connect(one)
	eventually(t, "the peer that is back", func() bool { return slices.Equal(peers(two.Host), []string{"h1"}) })
}

func TestHostsAtOneAddress(t *testing.T) {
	c := spanning(t, mem.New())
	joinAt(t, c, "h1", "192.0.2.1")
	joinAt(t, c, "h2", "192.0.2.1")
	three := joinAt(t, c, "h3", "192.0.2.3")
	eventually(t, "one of the two", func() bool { return slices.Equal(peers(three), []string{"h1"}) })
}

func TestFalseAddressIsNotBelieved(t *testing.T) {
	c := spanning(t, mem.New())
	h := joinAt(t, c, "h1", "192.0.2.1")
	joinAt(t, c, "h2", "192.0.2.2")
	if _, err := c.Cordon(t.Context(), "h2", true); err != nil {
		t.Fatal(err)
	}
	putAlways(t, c, "web")
	await(t, c, "web", group.Running)
	for what, ip := range map[string]string{"another host's": c.Blocks("h2")[0].Addr().Next().String(), "a server's": "192.0.2.9", "no": "localhost"} {
		forged := *mustGet(t, c, "web").Status
		forged.IP = ip
		c.Report("h1", forged)
		if got := mustGet(t, c, "web").Status.IP; got != "" {
			t.Errorf("%s address became the group's: %q", what, got)
		}
	}
	if s, ok := h.Status(mustGet(t, c, "web").Group.UID); !ok || s.IP == "" {
		t.Fatal("the host has no address for its group: the test shows nothing")
	}
}

func TestNamesGoWhereTheyAreSeen(t *testing.T) {
	c := spanning(t, mem.New())
	one := joinAt(t, c, "h1", "192.0.2.1")
	putAlways(t, c, "web")
	labelled := request("run=1h")
	labelled.Spec.Network, labelled.Spec.IP = "apart", &group.IPAddress{DNSLabel: "shop"}
	if _, err := c.Put(t.Context(), ref("shop"), labelled); err != nil {
		t.Fatal(err)
	}
	await(t, c, "web", group.Running)
	await(t, c, "shop", group.Running)
	two := joinAt(t, c, "h2", "192.0.2.2")
	web, shop := mustGet(t, c, "web").Group, mustGet(t, c, "shop").Group
	names := func() (list []string) {
		for uid, n := range two.Names() {
			for _, name := range n.Names {
				if uid == web.UID || uid == shop.UID {
					list = append(list, name.Name)
				}
			}
		}
		slices.Sort(list)
		return list
	}
	label := "shop.local." + arm.Domain
	eventually(t, "the label that all see", func() bool { return slices.Equal(names(), []string{label}) })
	if _, err := c.Cordon(t.Context(), "h1", true); err != nil {
		t.Fatal(err)
	}
	putAlways(t, c, "neighbour") // the other host's first in that network
	eventually(t, "the names of the network", func() bool { return slices.Equal(names(), []string{label, "web.rg.local." + arm.Domain}) })
	if len(one.Names()) > 1 {
		t.Errorf("a host was told of its own groups: %v", one.Names())
	}
	c.Disconnect(one, time.Now(), errors.New("test"))
	if _, err := c.Delete(t.Context(), ref("shop"), nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of a lost host's names", func() bool { _, ok := two.Names()[web.UID]; return !ok && len(names()) == 0 })
}

func TestNetworksAreNumberedOnce(t *testing.T) {
	c := spanning(t, mem.New())
	joinAt(t, c, "h1", "192.0.2.1")
	ids := map[uint32]string{}
	for _, network := range []string{"", "a", "b", "a"} {
		req := request("run=1h")
		req.Spec.Network = network
		name := "in-" + network + fmt.Sprint(len(ids))
		if _, err := c.Put(t.Context(), ref(name), req); err != nil {
			t.Fatal(err)
		}
		id := mustGet(t, c, name).Group.NetworkID
		if other, taken := ids[id]; id == 0 || taken && other != network {
			t.Errorf("network %q has number %d, which is that of %q", network, id, other)
		}
		ids[id] = network
	}
	if len(ids) != 3 {
		t.Errorf("three networks have %d numbers", len(ids))
	}
}

func TestNewLeaderKeepsThePeers(t *testing.T) {
	c := spanning(t, mem.New())
	one, two := joinAt(t, c, "h1", "192.0.2.1"), joinAt(t, c, "h2", "192.0.2.2")
	joinAt(t, c, "h3", "192.0.2.3")
	eventually(t, "the peers", func() bool { return slices.Equal(peers(two), []string{"h1", "h3"}) })
	c.Disconnect(one, time.Now(), errors.New("test"))
	eventually(t, "the withdrawal", func() bool { return slices.Equal(peers(two), []string{"h3"}) })
	eventually(t, "a note of the loss", func() bool { c.mu.RLock(); defer c.mu.RUnlock(); return c.idx.hosts["h1"].Lost })

	next := spanning(t, c.cfg.Store)
	next.Connect(two)
	if got := peers(two); !slices.Equal(got, []string{"h3"}) {
		t.Errorf("a new leader's first word names the peers %v, want h3 alone: h1 is lost, h3 on its way", got)
	}
	// It comes back, but has to clear up first.
	one.Change(func(h *host.Host) { h.State = host.NotReady })
	next.Connect(one)
	next.tellSpan()
	if got := peers(two); !slices.Equal(got, []string{"h3"}) {
		t.Errorf("a host that is not ready yet was let in: %v", got)
	}
	one.Change(func(h *host.Host) { h.State = host.Ready })
	next.Heard("h1")
	eventually(t, "the host that is back", func() bool { return slices.Equal(peers(two), []string{"h1", "h3"}) })
	eventually(t, "a note of its return", func() bool { next.mu.RLock(); defer next.mu.RUnlock(); return !next.idx.hosts["h1"].Lost })
}
