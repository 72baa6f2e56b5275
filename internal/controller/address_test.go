package controller

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/service"
	"spillway.dev/spillway/internal/sim"
	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/store/mem"
)

func selecting(network string, labels ...string) *arm.AddressRequest {
	r := &arm.AddressRequest{Spec: service.Spec{Network: network, Affinity: service.AffinityNone, Selector: map[string]string{},
		Ports: []service.Port{{Number: 80, Protocol: "TCP", Target: 8080}}}}
	for _, l := range labels {
		r.Spec.Selector[l] = "yes"
	}
	return r
}

func listing(network string, ips ...string) *arm.AddressRequest {
	r := &arm.AddressRequest{Spec: service.Spec{Network: network, Affinity: service.AffinityNone, Endpoints: []service.Endpoint{},
		Ports: []service.Port{{Number: 80, Protocol: "TCP"}}}}
	for _, ip := range ips {
		r.Spec.Endpoints = append(r.Spec.Endpoints, service.Endpoint{IP: netip.MustParseAddr(ip)})
	}
	return r
}

func at(r *arm.AddressRequest, ip string) *arm.AddressRequest {
	r.IP = netip.MustParseAddr(ip)
	return r
}

func putAddress(t *testing.T, c *Controller, name string, r *arm.AddressRequest) arm.AddressView {
	t.Helper()
	res, err := c.PutAddress(t.Context(), ref(name), r)
	if err != nil {
		t.Fatalf("PutAddress(%s) = %v", name, err)
	}
	return res.View
}

// labelled puts a group of a network with labels.
func labelled(t *testing.T, c *Controller, name, network string, labels ...string) {
	t.Helper()
	req := request()
	req.Live = true
	req.Spec.Network, req.Spec.Labels = network, map[string]string{}
	for _, l := range labels {
		req.Spec.Labels[l] = "yes"
	}
	if _, err := c.Put(t.Context(), ref(name), req); err != nil {
		t.Fatal(err)
	}
}

// leads waits until a service address leads to these groups on a host.
func leads(t *testing.T, c *Controller, h *sim.Host, uid string, groups ...string) {
	t.Helper()
	var last service.Route
	var want []netip.AddrPort
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		want = nil
		for _, g := range groups {
			v, err := c.Get(ref(g))
			if err == nil && v.Status != nil {
				if ip, err := netip.ParseAddr(v.Status.IP); err == nil {
					want = append(want, netip.AddrPortFrom(ip, 8080))
				}
			}
		}
		slices.SortFunc(want, netip.AddrPort.Compare)
		last = h.Routes()[uid]
		if len(want) == len(groups) && len(last.Ports) == 1 && slices.Equal(last.Ports[0].Targets, want) {
			return
		}
	}
	t.Fatalf("the service address leads to %+v, want %v, the groups %v", last.Ports, want, groups)
}

func TestSelectorFollowsGroups(t *testing.T) {
	c, _ := start(t, mem.New())
	h := connect(t, c, "h1")
	withResourceGroup(t, c)
	labelled(t, c, "a", "blue", "web", "front")
	labelled(t, c, "b", "blue", "web", "front", "more")
	labelled(t, c, "c", "blue", "web")
	labelled(t, c, "d", "", "web", "front")
	uid := putAddress(t, c, "svc", selecting("blue", "web", "front")).Address.UID
	leads(t, c, h, uid, "a", "b")
	labelled(t, c, "c", "blue", "web", "front")
	leads(t, c, h, uid, "a", "b", "c")
	labelled(t, c, "a", "blue", "front")
	leads(t, c, h, uid, "b", "c")
	if _, err := c.Stop(t.Context(), ref("b")); err != nil {
		t.Fatal(err)
	}
	leads(t, c, h, uid, "c")
	if _, err := c.Start(t.Context(), ref("b")); err != nil {
		t.Fatal(err)
	}
	leads(t, c, h, uid, "b", "c")
	if _, err := c.Delete(t.Context(), ref("c"), nil); err != nil {
		t.Fatal(err)
	}
	leads(t, c, h, uid, "b")
	eventually(t, "the view counts one endpoint", func() bool {
		v, err := c.Address(ref("svc"))
		return err == nil && v.Status.Ready == 1
	})
	// Not ready, and not ready but published.
	v, err := c.Get(ref("b"))
	if err != nil {
		t.Fatal(err)
	}
	unready := *v.Status
	unready.Containers = slices.Clone(unready.Containers)
	unready.Containers[0].Ready = false
	c.Report("h1", unready)
	leads(t, c, h, uid)
	published := selecting("blue", "web", "front")
	published.Spec.PublishNotReady = true
	putAddress(t, c, "svc", published)
	leads(t, c, h, uid, "b")
	if _, err := c.DeleteAddress(t.Context(), ref("svc")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the host has no route", func() bool { return len(h.Routes()) == 0 })
	x := c.idx.addresses
	if len(x.all)+len(x.byUID)+len(x.taken)+len(x.claimed)+len(x.selectors)+len(x.inGroup)+x.weight["sub"]+x.count["sub"] != 0 {
		t.Errorf("the index keeps %+v", x)
	}
}

func TestAddressIsOneCommit(t *testing.T) {
	s := &counting{Store: mem.New()}
	c, _ := start(t, s)
	withResourceGroup(t, c)
	before := s.commits
	req := at(listing("blue", "10.1.2.3"), "10.96.0.1")
	first := putAddress(t, c, "svc", req)
	if got := s.commits - before; got != 1 {
		t.Errorf("a create made %d commits, want 1", got)
	}
	again, err := c.PutAddress(t.Context(), ref("svc"), listing("blue", "10.1.2.3"))
	if err != nil || again.Created || again.View.Address.Generation != 1 || s.commits-before != 1 {
		t.Errorf("the same again: %+v, %v, %d commits, want no change", again, err, s.commits-before)
	}
	update, err := c.PutAddress(t.Context(), ref("svc"), listing("blue", "10.1.2.4"))
	if err != nil || update.View.Address.UID != first.Address.UID || update.View.Address.IP != first.Address.IP || update.View.Status.Ready != 1 || s.commits-before != 2 {
		t.Errorf("update = %+v, %v, %d commits", update.View, err, s.commits-before)
	}
}

func TestAddressesAreUniqueInTheirNetwork(t *testing.T) {
	s := mem.New()
	ctx := t.Context()
	c, err := New(ctx, Config{Store: s, Location: "local", Services: netip.MustParsePrefix("100.64.0.0/29"), Reserved: []netip.Prefix{netip.MustParsePrefix("10.64.0.0/16")}})
	if err != nil {
		t.Fatal(err)
	}
	withResourceGroup(t, c)
	want := func(name string, r *arm.AddressRequest, kind fault.Kind, text string) {
		t.Helper()
		if _, err := c.PutAddress(ctx, ref(name), r); fault.KindOf(err) != kind || !strings.Contains(fmt.Sprint(err), text) {
			t.Errorf("PutAddress(%s) = %v, want %v with %q", name, err, kind, text)
		}
	}
	putAddress(t, c, "a", at(listing("blue"), "10.96.0.1"))
	putAddress(t, c, "b", at(listing("green"), "10.96.0.1"))
	want("c", at(listing("blue"), "10.96.0.1"), fault.Conflict, "10.96.0.1")
	want("c", at(listing("blue"), "10.64.3.4"), fault.Invalid, "10.64.0.0/16")
	want("a", at(listing("blue"), "10.96.0.2"), fault.Invalid, "neither can change")
	want("a", listing("green"), fault.Invalid, "neither can change")
	if _, err := c.DeleteAddress(ctx, ref("a")); err != nil {
		t.Fatal(err)
	}
	putAddress(t, c, "c", at(listing("blue"), "10.96.0.1"))
	seen := map[string]bool{}
	for i := range 6 {
		seen[putAddress(t, c, fmt.Sprint("auto", i), listing("blue")).Address.IP.String()] = true
	}
	if len(seen) != 6 || seen["100.64.0.0"] || seen["100.64.0.7"] {
		t.Errorf("allocated %v, want the six addresses inside 100.64.0.0/29", seen)
	}
	want("auto6", listing("blue"), fault.Exhausted, "--service-addresses")
	putAddress(t, c, "other", listing("green"))
}

// TestUnknownEndpointsStayAsTheyAre starts again on a store whose groups ran: until their host has told of them, a
// service address is not said to lead nowhere.
func TestUnknownEndpointsStayAsTheyAre(t *testing.T) {
	s := mem.New()
	c, stop := start(t, s)
	h := connect(t, c, "h1")
	withResourceGroup(t, c)
	labelled(t, c, "a", "", "web")
	labelled(t, c, "b", "", "web")
	uid := putAddress(t, c, "svc", selecting("default", "web")).Address.UID
	leads(t, c, h, uid, "a", "b")
	stop()

	c, _ = start(t, s)
	silent := sim.NewHost("h1", nil, func(group.Status) {})
	t.Cleanup(silent.Close)
	c.Connect(muted{silent})
	if r := silent.Routes()[uid]; !r.Pending {
		t.Fatalf("before any report the host was told %+v, want that it is not known", r)
	}
	reportRunning(t, c, "a", "10.200.0.1")
	reportRunning(t, c, "b", "10.200.0.2")
	eventually(t, "all endpoints are known", func() bool {
		r := silent.Routes()[uid]
		return !r.Pending && len(r.Ports[0].Targets) == 2
	})
}

// muted is a host that knows nothing of its groups yet.
type muted struct{ *sim.Host }

func (muted) Status(string) (group.Status, bool) { return group.Status{}, false }

func reportRunning(t *testing.T, c *Controller, name, ip string) {
	t.Helper()
	v, err := c.Get(ref(name))
	if err != nil {
		t.Fatal(err)
	}
	c.Report(v.Group.Host, group.Status{UID: v.Group.UID, Generation: v.Group.Generation, Epoch: v.Group.Epoch, State: group.Running, IP: ip,
		Containers: []group.ContainerStatus{{Name: "main", Ready: true, Current: group.Moment{State: group.Started}}}})
}

func TestResourceGroupTakesItsAddresses(t *testing.T) {
	s := mem.New()
	c, _ := start(t, s)
	withResourceGroup(t, c)
	putAddress(t, c, "svc", listing("default"))
	if _, err := c.DeleteResourceGroup(t.Context(), "sub", "rg"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ResourceGroup("sub", "rg"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("the resource group is still there: %v", err)
	}
	page, err := s.List(t.Context(), store.Root, 0, "")
	if err != nil || len(page.Entries) != 0 {
		t.Errorf("left in the store: %v, %v", page.Entries, err)
	}
}

// TestAddressesOfTheStoreComeBack also reads what another server wrote.
func TestAddressesOfTheStoreComeBack(t *testing.T) {
	s := mem.New()
	c, stop := start(t, s)
	withResourceGroup(t, c)
	v := putAddress(t, c, "svc", listing("blue", "10.1.2.3"))
	other, _ := start(t, s)
	stop()
	again, err := other.Address(ref("SVC"))
	if err != nil || again.Address.UID != v.Address.UID || again.Address.IP != v.Address.IP {
		t.Fatalf("after a restart: %+v, %v", again.Address, err)
	}
	foreign := *v.Address
	foreign.Ref.Name, foreign.UID, foreign.IP = "foreign", "f00", netip.MustParseAddr("10.96.0.9")
	value, _ := json.Marshal(foreign)
	if _, err := s.Commit(t.Context(), store.Op{Key: addressKey(foreign.Ref), Value: value, If: store.Absent}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the foreign record is known", func() bool { _, err := other.Address(ref("foreign")); return err == nil })
	if _, err := other.PutAddress(t.Context(), ref("x"), at(listing("blue"), "10.96.0.9")); fault.KindOf(err) != fault.Conflict {
		t.Errorf("its address was given again: %v", err)
	}
	if got := len(other.Addresses(Filter{Subscription: "SUB"})); got != 2 {
		t.Errorf("%d service addresses listed, want 2", got)
	}
}

// TestRoutesHaveABudget fills a subscription's share of the hosts' memory.
func TestRoutesHaveABudget(t *testing.T) {
	c, _ := start(t, mem.New())
	h := connect(t, c, "h1")
	withResourceGroup(t, c)
	req := listing("default")
	for i := range service.MostEndpoints(service.MaxPorts) {
		req.Spec.Endpoints = append(req.Spec.Endpoints, service.Endpoint{IP: netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)})})
	}
	req.Spec.Ports = nil
	for i := range service.MaxPorts {
		req.Spec.Ports = append(req.Spec.Ports, service.Port{Name: fmt.Sprint("p", i), Number: 80 + i, Protocol: "TCP"})
	}
	n := service.MaxBuckets/(service.MaxPorts*service.Buckets(len(req.Spec.Endpoints), false)) + 2
	for i := range n {
		putAddress(t, c, fmt.Sprint("svc", i), req)
	}
	eventually(t, "all are on the host", func() bool { return len(h.Routes()) == n })
	total, cut := 0, 0
	for _, r := range h.Routes() {
		total += r.Weight()
		if len(r.Ports[0].Targets) == 1 {
			cut++
		}
	}
	if total > service.MaxBuckets || cut == 0 || cut == n {
		t.Errorf("the host has %d entries, %d of %d addresses are cut", total, cut, n)
	}
	reasons := 0
	for _, v := range c.Addresses(Filter{}) {
		if v.Status.Reason != "" {
			reasons++
		}
	}
	if reasons != cut {
		t.Errorf("%d addresses say why, %d are cut", reasons, cut)
	}
}
