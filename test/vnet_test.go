package test

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/vnet"
)

// network makes a virtual network with two subnets, in an address space that the platform finds, and gives their ids.
func (p *platform) network(name string) (n *client.VirtualNetwork, web, data string) {
	p.Helper()
	return p.networkIn(name, M{})
}

// azureNetwork is network with the address space that Azure's clients choose.
func (p *platform) azureNetwork(name string) (n *client.VirtualNetwork, web, data string) {
	p.Helper()
	return p.networkIn(name, M{"addressSpace": M{"addressPrefixes": []string{"10.0.0.0/16"}}})
}

func (p *platform) networkIn(name string, properties M) (n *client.VirtualNetwork, web, data string) {
	p.Helper()
	n, err := p.client.PutNetwork(p.Context(), "", name, M{"properties": properties})
	if err != nil {
		p.Fatal(err)
	}
	space := netip.MustParsePrefix(n.Properties.AddressSpace.Prefixes[0])
	var used []netip.Prefix
	for _, s := range []string{"web", "data"} {
		part, ok := vnet.Free(space, 24, used)
		if !ok {
			p.Fatalf("no room in %s", space)
		}
		used = append(used, part)
		if _, err := p.client.PutSubnet(p.Context(), "", name, s, M{"properties": M{"addressPrefix": part.String()}}); err != nil {
			p.Fatal(err)
		}
	}
	if n, err = p.client.GetNetwork(p.Context(), "", name); err != nil {
		p.Fatal(err)
	}
	return n, n.Properties.Subnets[0].ID, n.Properties.Subnets[1].ID
}

func inSubnet(id string) M {
	return M{"subnetIds": []M{{"id": id}}, "ipAddress": M{"type": "Private", "ports": []M{{"port": 8080}}}}
}

// page serves its text at port 8080.
func page(text string) M {
	return container("c", "mkdir -p /w && echo "+text+" > /w/index.html && exec httpd -f -p 8080 -h /w", M{"ports": []M{{"port": 8080}}})
}

func (p *platform) get8080(from, to string) string {
	out, _ := p.exec(from, "c", "timeout 2 wget -qO- http://"+to+":8080/ 2>&1; true")
	return out
}

// TestVirtualNetworks: groups of one virtual network reach each other whatever their subnets, those of two do not, and a group
// keeps its address.
func TestVirtualNetworks(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	one, web, data := p.azureNetwork(name("one"))
	_, other, _ := p.network(name("two"))
	a := p.create("a", []M{page("a")}, inSubnet(web))
	b := p.create("b", []M{page("b")}, inSubnet(data))
	c := p.create("c", []M{page("c")}, inSubnet(other))
	d := p.create("d", []M{page("d")}, M{"ipAddress": M{"type": "Private", "ports": []M{{"port": 8080}}}})
	at := map[string]string{}
	for _, n := range []string{a, b, c, d} {
		at[n] = address(p.running(n))
	}
	first := netip.MustParsePrefix(one.Properties.Subnets[0].Properties.Prefix)
	if got := at[a]; got != vnet.At(first, 0).String() {
		t.Errorf("the first address of %s is %s, want %s", first, got, vnet.At(first, 0))
	}
	if out, _ := p.exec(a, "c", "ip -4 addr show eth0"); !strings.Contains(out, at[a]+"/32") {
		t.Errorf("the group's device:\n%s, want %s", out, at[a])
	}
	for _, pair := range [][2]string{{a, b}, {b, a}, {a, a}} {
		waitFor(t, "a page of "+pair[1]+" for "+pair[0], func() bool { return p.get8080(pair[0], at[pair[1]]) == pair[1][:1] })
	}
	for _, pair := range [][2]string{{a, c}, {c, a}, {c, b}, {d, a}, {a, d}, {d, c}} {
		if got := p.get8080(pair[0], at[pair[1]]); got == pair[1][:1] {
			t.Errorf("from %s to %s, of another network: %q", pair[0], pair[1], got)
		}
	}
	// The machine itself speaks to a group from the gateway's address: probes do, and the group becomes ready by one.
	probed := p.create("probed", []M{container("c", "mkdir -p /w && echo p > /w/index.html && exec httpd -f -p 8080 -h /w",
		M{"ports": []M{{"port": 8080}}, "readinessProbe": M{"httpGet": M{"path": "/", "port": 8080}, "periodSeconds": 1}})}, inSubnet(web))
	waitFor(t, "a name for the group that is probed", func() bool { return p.get8080(a, probed+".default.local.spillway.internal") == "p" })
	p.remove(probed)
	before := p.get(a)
	if _, stderr, code := p.cli("restart", a); code != 0 {
		t.Fatal(stderr)
	}
	p.await(a, "another epoch", func(g *client.Group) bool {
		return g.Properties.Epoch > before.Properties.Epoch && g.State() == "Running"
	})
	if got := address(p.running(a)); got != at[a] {
		t.Errorf("the address after a restart is %s, was %s", got, at[a])
	}
	waitFor(t, "a page of the restarted group", func() bool { return p.get8080(b, at[a]) == "a" })
	if err := p.client.DeleteNetwork(t.Context(), "", one.Name); err == nil || !strings.Contains(err.Error(), "/containerGroups/"+a) {
		t.Errorf("delete a network in use: %v, want the users' names", err)
	}
	p.remove(a)
	taken := p.create("taken", []M{page("t")}, inSubnet(web), M{"ipAddress": M{"type": "Private", "ip": at[a], "ports": []M{{"port": 8080}}}})
	if got := address(p.running(taken)); got != at[a] {
		t.Errorf("the address that was asked for is %s, want %s", got, at[a])
	}
	waitFor(t, "a page of the group with the address of one that is gone", func() bool { return p.get8080(b, at[a]) == "t" })
	for _, n := range []string{taken, b} {
		p.remove(n)
	}
	if err := p.client.DeleteNetwork(t.Context(), "", one.Name); err != nil {
		t.Errorf("delete an empty network: %v", err)
	}
}

// TestVirtualNetworksOverHosts: the same over two hosts, and an address goes with its group when a host is lost.
func TestVirtualNetworksOverHosts(t *testing.T) {
	if os.Getenv("SPILLWAY_OLD") != "" {
		t.Skip("hosts of an earlier release take no groups of subnets")
	}
	t.Parallel()
	w := startSpread(t)
	_, web, data := w.azureNetwork("one")
	_, other, _ := w.network("two")
	in := func(id string) M { return M{"subnetIds": []M{{"id": id}}, "restartPolicy": "Always"} }
	a, b := w.web("a", w.local, in(web)), w.web("b", "second", in(data))
	c := w.web("c", "second", in(other))
	w.web("plain", "third")
	for _, pair := range [][2]*client.Group{{a, b}, {b, a}} {
		waitFor(t, "a way from "+pair[0].Name+" to "+pair[1].Name, func() bool { return w.fetch(pair[0].Name, address(pair[1])) == pair[1].Name })
		if got := w.fetch(pair[0].Name, nameOf(pair[1])); got != pair[1].Name {
			t.Errorf("from %s to %s by name: %q", pair[0].Name, pair[1].Name, got)
		}
	}
	for _, pair := range [][2]string{{"a", address(c)}, {"c", address(a)}, {"b", address(c)}, {"plain", address(a)}, {"plain", address(b)}} {
		if got := w.fetch(pair[0], pair[1]); len(got) == 1 {
			t.Errorf("from %s to %s, of another network: %q", pair[0], pair[1], got)
		}
	}
	if _, err := w.client.HostAction(t.Context(), "third", "uncordon"); err != nil {
		t.Fatal(err)
	}
	second := w.hosts["second"]
	second.signal(syscall.SIGKILL)
	moved := w.await("b", "a start elsewhere", func(g *client.Group) bool { return g.Properties.Host != "second" && g.State() == "Running" })
	if address(moved) != address(b) {
		t.Errorf("the address after the loss of the host is %s, was %s", address(moved), address(b))
	}
	waitFor(t, "a way to the group that was started elsewhere", func() bool { return w.fetch("a", address(b)) == "b" })
	second.start()
	time.Sleep(3 * beat)
	if got := w.fetch("a", address(b)); got != "b" {
		t.Errorf("the group that was started elsewhere, with its old host back: %q", got)
	}
}

// TestAddressesSurviveKills: groups of a subnet keep their address, and the way to each other, over the death of the platform
// and of the keeper.
func TestAddressesSurviveKills(t *testing.T) {
	t.Parallel()
	p := startPlatform(t, options{})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	_, web, data := p.azureNetwork("one")
	a, b := p.create("a", []M{page("a")}, inSubnet(web), M{"restartPolicy": "Always"}), p.create("b", []M{page("b")}, inSubnet(data), M{"restartPolicy": "Always"})
	at := map[string]string{a: address(p.running(a)), b: address(p.running(b))}
	meet := func(when string) {
		t.Helper()
		for _, n := range []string{a, b} {
			waitFor(t, n+" running "+when, func() bool { return p.get(n).State() == "Running" })
			if got := address(p.get(n)); got != at[n] {
				t.Errorf("%s: the address of %s is %s, was %s", when, n, got, at[n])
			}
		}
		for _, pair := range [][2]string{{a, b}, {b, a}} {
			waitFor(t, "a page of "+pair[1]+" for "+pair[0]+" "+when, func() bool {
				out, _, err := p.tryExec(pair[0], "c", "timeout 2 wget -qO- http://"+at[pair[1]]+":8080/ 2>&1; true")
				return err == nil && out == pair[1][:1]
			})
		}
	}
	meet("before")
	if err := p.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.up(); err != nil {
		t.Fatal(err)
	}
	meet("after the platform's death")
	for range 3 {
		before := p.keeperPid()
		if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "another keeper", func() bool { pid := p.keeperPid(); return pid != 0 && pid != before })
		meet("after the keeper's death")
	}
}

// TestKillsWhileANetworkIsMade: what has been stored is there after a kill, whether it was answered or not.
func TestKillsWhileANetworkIsMade(t *testing.T) {
	t.Parallel()
	a := startArmed(t)
	for _, point := range networkPoints {
		a.strike(point, func(ctx context.Context) error {
			_, err := a.client.PutNetwork(ctx, "", "struck", M{"properties": M{}})
			return err
		})
		n, err := a.client.GetNetwork(t.Context(), "", "struck")
		if err != nil {
			t.Fatalf("after a kill at %s: %v", point, err)
		}
		again, err := a.client.PutNetwork(t.Context(), "", "struck", M{"properties": M{"addressSpace": M{"addressPrefixes": n.Properties.AddressSpace.Prefixes}}})
		if err != nil || again.Properties.AddressSpace.Prefixes[0] != n.Properties.AddressSpace.Prefixes[0] {
			t.Errorf("the same again after a kill at %s: %+v, %v", point, again, err)
		}
		if err := a.client.DeleteNetwork(t.Context(), "", "struck"); err != nil {
			t.Error(err)
		}
	}
}
