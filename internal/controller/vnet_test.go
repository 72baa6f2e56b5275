package controller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/sim"
	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/store/mem"
	"spillway.dev/spillway/internal/vnet"
)

// withNetworks starts a controller of a platform with the range 10.64.0.0/16.
func withNetworks(t *testing.T, s store.Store) (*Controller, func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	c, err := New(ctx, Config{Store: s, Location: "local", Log: slog.New(slog.DiscardHandler), Reserved: []netip.Prefix{netip.MustParsePrefix("10.64.0.0/16")}})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	t.Cleanup(stop)
	return c, stop
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// netRequest asks for a virtual network: its address space, then subnets as NAME=RANGE.
func netRequest(space string, subnets ...string) *arm.NetworkRequest {
	r := &arm.NetworkRequest{}
	if space != "" {
		r.Prefixes = prefixes(strings.Split(space, ",")...)
	}
	for _, s := range subnets {
		name, p, _ := strings.Cut(s, "=")
		r.Subnets = append(r.Subnets, vnet.Subnet{Name: name, Prefix: netip.MustParsePrefix(p)})
	}
	return r
}

func putNet(t *testing.T, c *Controller, name, space string, subnets ...string) *vnet.Network {
	t.Helper()
	res, err := c.PutNetwork(t.Context(), ref(name), netRequest(space, subnets...))
	if err != nil {
		t.Fatalf("PutNetwork(%s) = %v", name, err)
	}
	return res.View.Network
}

// inNetwork asks for a group in a subnet, with an address or "".
func inNetwork(network, subnet, ip string) *arm.Request {
	r := request()
	r.Spec.Subnet = &group.Subnet{Network: ref(network), Name: subnet}
	r.Spec.IP = &group.IPAddress{Ports: []group.Port{{Number: 80, Protocol: "TCP"}}, Requested: ip}
	return r
}

// refuses checks the code of an error, and that it says all that it should.
func refuses(t *testing.T, what string, err error, code string, says ...string) {
	t.Helper()
	e, ok := errors.AsType[*fault.Error](err)
	if !ok || e.ARMCode() != code {
		t.Errorf("%s: %v, want %s", what, err, code)
		return
	}
	for _, s := range says {
		if !strings.Contains(e.Message, s) {
			t.Errorf("%s: %s, want it to say %q", what, e.Message, s)
		}
	}
}

func TestNetworkLife(t *testing.T) {
	s := mem.New()
	c, stop := withNetworks(t, s)
	withResourceGroup(t, c)
	n := putNet(t, c, "one", "10.1.128.0/20", "web=10.1.128.0/24")
	if n.Generation != 1 || n.UID == "" {
		t.Errorf("a new network = %+v", n)
	}
	if again := putNet(t, c, "ONE", "10.1.128.0/20", "web=10.1.128.0/24"); again.Generation != 1 || again.UID != n.UID {
		t.Errorf("the same once more = %+v, want no change", again)
	}
	if _, created, err := c.PutSubnet(t.Context(), ref("one"), &vnet.Subnet{Name: "data", Prefix: netip.MustParsePrefix("10.1.129.0/24")}); err != nil || !created {
		t.Fatalf("PutSubnet = %v, %v", created, err)
	}
	kept := netRequest("10.1.128.0/20,10.1.144.0/20")
	kept.KeepSubnets = true
	if res, err := c.PutNetwork(t.Context(), ref("one"), kept); err != nil || len(res.View.Network.Subnets) != 2 || res.View.Network.Generation != 3 {
		t.Errorf("a larger space = %+v, %v, want both subnets", res.View.Network, err)
	}
	if res, err := c.TagNetwork(t.Context(), ref("one"), map[string]string{"a": "b"}); err != nil || res.View.Network.Tags["a"] != "b" {
		t.Errorf("TagNetwork = %v, %v", res, err)
	}
	stop()
	c, _ = withNetworks(t, s)
	if v, err := c.Network(ref("one")); err != nil || len(v.Network.Subnets) != 2 || len(v.Network.Prefixes) != 2 {
		t.Errorf("after a restart = %+v, %v", v.Network, err)
	}
	if err := c.DeleteSubnet(t.Context(), ref("one"), "WEB"); err != nil {
		t.Error(err)
	}
	_, _, err := c.Subnet(ref("one"), "web")
	refuses(t, "a subnet that is gone", err, "NotFound", "/subnets/web")
	if err := c.DeleteNetwork(t.Context(), ref("one")); err != nil {
		t.Error(err)
	}
	if list := c.Networks(Filter{Subscription: "sub"}); len(list) != 0 {
		t.Errorf("networks that are left: %v", list)
	}
	refuses(t, "a network that is gone", c.DeleteNetwork(t.Context(), ref("one")), "ResourceNotFound", "one")
	free := putNet(t, c, "any", "")
	if got := free.Prefixes[0].String(); got != "10.0.0.0/16" {
		t.Errorf("a space that nobody chose is %s", got)
	}
}

func TestNetworksThatCannotBe(t *testing.T) {
	c, _ := withNetworks(t, mem.New())
	withResourceGroup(t, c)
	h := sim.NewHost("h1", nil, c.From("h1"))
	t.Cleanup(h.Close)
	h.Change(func(d *host.Host) {
		d.Addresses = []netip.Prefix{netip.MustParsePrefix("192.168.1.20/24"), netip.MustParsePrefix("100.96.7.0/24")}
	})
	c.Connect(h)
	putNet(t, c, "one", "10.1.128.0/20", "web=10.1.128.0/24")
	putNet(t, c, "near", "192.168.1.128/25") // beside the host's own address, in its network
	putNet(t, c, "azure", "10.0.0.0/16", "default=10.0.0.0/24")
	for _, x := range []struct {
		name, space string
		subnets     []string
		code        string
		says        []string
	}{
		{"two", "203.0.113.0/24", nil, "AddressSpaceNotAvailable", []string{"203.0.113.0/24", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"}},
		{"two", "10.0.0.0/7", nil, "AddressSpaceNotAvailable", []string{"10.0.0.0/7"}},
		{"two", "10.64.128.0/20", nil, "AddressSpaceInUse", []string{"10.64.128.0/20", "10.64.0.0/16", "groups"}},
		{"two", "10.64.0.0/12", nil, "AddressSpaceInUse", []string{"10.64.0.0/12", "10.64.0.0/16"}},
		{"two", "100.64.0.0/20", nil, "AddressSpaceInUse", []string{"100.64.0.0/20", DefaultServices.String(), "service"}},
		{"two", "192.168.1.0/24", nil, "AddressSpaceInUse", []string{"192.168.1.0/24", "192.168.1.20", "h1"}},
		{"two", "100.96.0.0/16", nil, "AddressSpaceInUse", []string{"100.96.7.0/24", "h1"}},
		{"two", "10.1.136.0/24", nil, "AddressSpaceInUse", []string{"10.1.136.0/24", "10.1.128.0/20", "/virtualNetworks/one"}},
		{"two", "10.1.144.0/20,10.1.144.0/24", nil, "AddressPrefixesOverlap", []string{"10.1.144.0/20", "10.1.144.0/24"}},
		{"two", "10.1.144.0/20", []string{"a=10.1.144.0/24", "b=10.1.144.128/25"}, "NetcfgSubnetRangesOverlap", []string{"'b'", "10.1.144.128/25", "10.1.144.0/24", "'a'"}},
		{"two", "10.1.144.0/20", []string{"a=10.1.160.0/24"}, "NetcfgInvalidSubnet", []string{"10.1.160.0/24", "10.1.144.0/20"}},
		{"one", "10.1.129.0/24", []string{"web=10.1.128.0/24"}, "NetcfgInvalidSubnet", []string{"10.1.128.0/24", "10.1.129.0/24"}},
	} {
		_, err := c.PutNetwork(t.Context(), ref(x.name), netRequest(x.space, x.subnets...))
		refuses(t, fmt.Sprint(x), err, x.code, x.says...)
	}
	_, _, err := c.PutSubnet(t.Context(), ref("one"), &vnet.Subnet{Name: "more", Prefix: netip.MustParsePrefix("10.1.128.64/26")})
	refuses(t, "a subnet over another", err, "NetcfgSubnetRangesOverlap", "10.1.128.64/26", "10.1.128.0/24")
	if _, err := c.PutNetwork(t.Context(), group.Ref{Subscription: "sub", ResourceGroup: "none", Name: "x"}, netRequest("")); fault.KindOf(err) != fault.NotFound {
		t.Errorf("in no resource group: %v", err)
	}
}

func TestGroupsInSubnets(t *testing.T) {
	s := mem.New()
	c, stop := withNetworks(t, s)
	connect(t, c, "h1")
	withResourceGroup(t, c)
	n := putNet(t, c, "one", "10.1.128.0/20", "web=10.1.128.0/29", "data=10.1.128.16/28")
	other := putNet(t, c, "two", "10.1.144.0/20", "web=10.1.144.0/29")
	join := func(name, network, subnet, ip string) (*group.Group, error) {
		res, err := c.Put(t.Context(), ref(name), inNetwork(network, subnet, ip))
		return res.View.Group, err
	}
	for i, want := range []string{"10.1.128.4", "10.1.128.5", "10.1.128.6"} {
		if g, err := join(fmt.Sprint("g", i), "one", "WEB", ""); err != nil || g.Address.String() != want || g.Spec.Network != n.Key() {
			t.Fatalf("group %d = %+v, %v, want %s", i, g, err, want)
		}
	}
	_, err := join("late", "one", "web", "")
	refuses(t, "a full subnet", err, "SubnetIsFull", "web", "10.1.128.0/29", "its 3", "5 are reserved")
	for ip, x := range map[string][]string{
		"10.1.128.5":  {"PrivateIPAddressInUse", "10.1.128.5", "/containerGroups/g1"},
		"10.1.128.3":  {"PrivateIPAddressNotInSubnet", "10.1.128.3", "reserved", "10.1.128.0/29"},
		"10.1.128.7":  {"PrivateIPAddressNotInSubnet", "10.1.128.7", "reserved"},
		"10.1.128.20": {"PrivateIPAddressNotInSubnet", "10.1.128.20", "10.1.128.0/29"},
	} {
		_, err := join("late", "one", "web", ip)
		refuses(t, ip, err, x[0], x[1:]...)
	}
	_, err = join("late", "one", "none", "")
	refuses(t, "no subnet", err, "InvalidResourceReference", "/virtualNetworks/one/subnets/none", "/containerGroups/late")
	foreign := inNetwork("one", "web", "")
	foreign.Spec.Subnet.Network.Subscription = "else"
	_, err = c.Put(t.Context(), ref("late"), foreign)
	refuses(t, "a subnet of another subscription", err, "InvalidResourceReference")
	if g, err := join("same", "two", "web", "10.1.144.6"); err != nil || g.Address.String() != "10.1.144.6" || g.Spec.Network != other.Key() {
		t.Errorf("a group with an address of its choice = %+v, %v", g, err)
	}
	refuses(t, "a subnet in use", c.DeleteSubnet(t.Context(), ref("one"), "web"), "InUseSubnetCannotBeDeleted", "/containerGroups/g0")
	refuses(t, "a network in use", c.DeleteNetwork(t.Context(), ref("one")), "InUseSubnetCannotBeDeleted", "/containerGroups/g2")
	_, err = c.PutNetwork(t.Context(), ref("one"), netRequest("10.1.128.0/20", "data=10.1.128.16/28"))
	refuses(t, "a network without a subnet in use", err, "InUseSubnetCannotBeDeleted", "web")
	_, err = c.PutNetwork(t.Context(), ref("one"), netRequest("10.1.128.0/20", "web=10.1.129.0/29", "data=10.1.128.16/28"))
	refuses(t, "another range of a subnet in use", err, "InUsePrefixCannotBeDeleted", "10.1.129.0/29", "10.1.128.0/29")

	await(t, c, "g0", group.Running)
	if v, err := c.Restart(t.Context(), ref("g0")); err != nil || v.View.Group.Address.String() != "10.1.128.4" {
		t.Errorf("the address after a restart of the group = %v, %v", v.View.Group, err)
	}
	stop()
	c, _ = withNetworks(t, s)
	connect(t, c, "h1")
	refuses(t, "a full subnet, after a restart", func() error { _, err := c.Put(t.Context(), ref("late"), inNetwork("one", "web", "")); return err }(), "SubnetIsFull")
	if _, err := c.Delete(t.Context(), ref("g1"), nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the address of a deleted group is free", func() bool {
		res, err := c.Put(t.Context(), ref("late"), inNetwork("one", "web", ""))
		return err == nil && res.View.Group.Address.String() == "10.1.128.5"
	})
}

// TestUpdatesKeepTheAddress: what a client reads can be put back, and an address changes only when the group does not run.
func TestUpdatesKeepTheAddress(t *testing.T) {
	c, _ := withNetworks(t, mem.New())
	connect(t, c, "h1")
	withResourceGroup(t, c)
	putNet(t, c, "one", "10.1.128.0/20", "web=10.1.128.0/28", "data=10.1.128.16/28")
	if _, err := c.Put(t.Context(), ref("g"), inNetwork("one", "web", "")); err != nil {
		t.Fatal(err)
	}
	await(t, c, "g", group.Running)
	if res, err := c.Put(t.Context(), ref("g"), inNetwork("ONE", "Web", "10.1.128.4")); err != nil || res.Changed {
		t.Errorf("what was read put back = %+v, %v, want no change", res, err)
	}
	for what, req := range map[string]*arm.Request{"another subnet": inNetwork("one", "data", ""), "another address": inNetwork("one", "web", "10.1.128.9"), "no subnet": request()} {
		_, err := c.Put(t.Context(), ref("g"), req)
		refuses(t, what, err, "InvalidContainerGroupUpdate", "subnet")
	}
	if _, err := c.Stop(t.Context(), ref("g")); err != nil {
		t.Fatal(err)
	}
	res, err := c.Put(t.Context(), ref("g"), inNetwork("one", "data", ""))
	if err != nil || !netip.MustParsePrefix("10.1.128.16/28").Contains(res.View.Group.Address) {
		t.Fatalf("a stopped group in another subnet = %+v, %v", res.View.Group, err)
	}
	if _, err := c.Put(t.Context(), ref("h"), inNetwork("one", "web", "10.1.128.4")); err != nil {
		t.Errorf("the address that was given up: %v", err)
	}
}

// TestManyJoinAtOnce: no address is given twice, and all are given.
func TestManyJoinAtOnce(t *testing.T) {
	c, _ := withNetworks(t, mem.New())
	withResourceGroup(t, c)
	connect(t, c, "h1")
	putNet(t, c, "one", "10.1.128.0/20", "web=10.1.128.0/26")
	const most, tries = 59, 70
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen, full := map[netip.Addr]bool{}, 0
	for i := range tries {
		wg.Go(func() {
			res, err := c.Put(t.Context(), ref(fmt.Sprint("g", i)), inNetwork("one", "web", ""))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				refuses(t, "one too many", err, "SubnetIsFull")
				full++
				return
			}
			if seen[res.View.Group.Address] {
				t.Errorf("the address %s was given twice", res.View.Group.Address)
			}
			seen[res.View.Group.Address] = true
		})
	}
	wg.Wait()
	if len(seen) != most || full != tries-most {
		t.Errorf("%d groups got an address and %d did not, want %d and %d", len(seen), full, most, tries-most)
	}
}

func TestResourceGroupsTakeTheirNetworks(t *testing.T) {
	c, _ := withNetworks(t, mem.New())
	connect(t, c, "h1")
	withResourceGroup(t, c)
	if _, _, err := c.PutResourceGroup(t.Context(), ResourceGroup{Subscription: "sub", Name: "apps", Location: "local"}); err != nil {
		t.Fatal(err)
	}
	putNet(t, c, "one", "10.1.128.0/20", "web=10.1.128.0/28")
	app := group.Ref{Subscription: "sub", ResourceGroup: "apps", Name: "app"}
	for _, r := range []group.Ref{app, ref("own")} {
		if _, err := c.Put(t.Context(), r, inNetwork("one", "web", "")); err != nil {
			t.Fatal(err)
		}
	}
	_, err := c.DeleteResourceGroup(t.Context(), "sub", "rg")
	refuses(t, "a resource group whose network others use", err, "InUseSubnetCannotBeDeleted", "/containerGroups/app")
	if _, err := c.Delete(t.Context(), app, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the resource group goes with its network", func() bool {
		_, err := c.DeleteResourceGroup(t.Context(), "sub", "rg")
		return err == nil || fault.KindOf(err) == fault.NotFound
	})
	eventually(t, "nothing is left", func() bool {
		_, err := c.ResourceGroup("sub", "rg")
		return err != nil && len(c.Networks(Filter{Subscription: "sub"})) == 0
	})
}

// TestNetworksOfAnEarlierVersion: a network in the groups' range goes on to work, and nobody else gets addresses of it.
func TestNetworksOfAnEarlierVersion(t *testing.T) {
	s := mem.New()
	c, stop := withNetworks(t, s)
	withResourceGroup(t, c)
	stop()
	old := &vnet.Network{Ref: ref("old"), UID: "0123456789abcdef01234567", Generation: 1, Location: "local", Prefixes: prefixes("10.64.128.0/24"),
		Subnets: []vnet.Subnet{{Name: "web", Prefix: netip.MustParsePrefix("10.64.128.0/28")}}}
	value, err := encode(old)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Commit(t.Context(), store.Op{Key: networkRecord(old.Ref), Value: value, If: store.Absent}); err != nil {
		t.Fatal(err)
	}
	c, _ = withNetworks(t, s)
	connect(t, c, "h1")
	if got := fmt.Sprint(c.Apart()); got != "[10.64.128.0/24]" {
		t.Errorf("apart from blocks: %s", got)
	}
	res, err := c.Put(t.Context(), ref("g"), inNetwork("old", "web", ""))
	if err != nil || res.View.Group.Address.String() != "10.64.128.4" {
		t.Fatalf("a group of it = %+v, %v", res.View.Group, err)
	}
	kept := netRequest("10.64.128.0/24", "web=10.64.128.0/28", "data=10.64.128.16/28")
	if _, err := c.PutNetwork(t.Context(), ref("old"), kept); err != nil {
		t.Errorf("another subnet of it: %v", err)
	}
	_, err = c.PutNetwork(t.Context(), ref("old"), netRequest("10.64.128.0/24,10.0.0.0/16", "web=10.64.128.0/28"))
	refuses(t, "a range outside as well", err, "AddressSpaceNotAvailable", "10.64.128.0/24", "10.0.0.0/16")
	_, err = c.PutNetwork(t.Context(), ref("old"), netRequest("10.64.128.0/24,10.64.129.0/24", "web=10.64.128.0/28"))
	refuses(t, "more of the groups' range", err, "AddressSpaceInUse", "10.64.129.0/24", "10.64.0.0/16")
}

// TestHostsAreToldOfSpaces: with a group its host is told the address space of its network, and again when that changes; records hold
// none.
func TestHostsAreToldOfSpaces(t *testing.T) {
	s := mem.New()
	c, _ := withNetworks(t, s)
	withResourceGroup(t, c)
	h := sim.NewHost("h1", nil, c.From("h1"))
	t.Cleanup(h.Close)
	told := &teller{Host: h, spaces: map[string]string{}}
	c.Connect(told)
	putNet(t, c, "one", "10.0.0.0/16", "default=10.0.0.0/24")
	res, err := c.Put(t.Context(), ref("g"), inNetwork("one", "default", ""))
	if err != nil {
		t.Fatal(err)
	}
	uid := res.View.Group.UID
	eventually(t, "the host knows the space", func() bool { return told.space(uid) == "[10.0.0.0/16]" })
	kept := netRequest("10.0.0.0/16,172.16.0.0/16")
	kept.KeepSubnets = true
	if _, err := c.PutNetwork(t.Context(), ref("one"), kept); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the host knows the larger space", func() bool { return told.space(uid) == "[10.0.0.0/16 172.16.0.0/16]" })
	e, err := s.Get(t.Context(), store.GroupKey("sub", "rg", "g"))
	if err != nil || strings.Contains(string(e.Value), `"space"`) {
		t.Errorf("the record of the group, %v: %s", err, e.Value)
	}
	again := &teller{Host: h, spaces: map[string]string{}}
	c.Connect(again)
	if got := again.space(uid); got != "[10.0.0.0/16 172.16.0.0/16]" {
		t.Errorf("a host that connects is told %s", got)
	}
}

// teller is a host that remembers which address spaces it was told.
type teller struct {
	*sim.Host
	mu     sync.Mutex // guards spaces
	spaces map[string]string
}

func (h *teller) Assign(g *group.Group) {
	h.mu.Lock()
	h.spaces[g.UID] = fmt.Sprint(g.Space)
	h.mu.Unlock()
	h.Host.Assign(g)
}

func (h *teller) space(uid string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.spaces[uid]
}
