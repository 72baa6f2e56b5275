package controller

import (
	"fmt"
	"testing"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/sim"
	"spillway.dev/spillway/internal/store/mem"
)

// homes are the addresses of virtual networks elsewhere that a host has been told of.
func homes(h *sim.Host) string {
	out := map[string]string{}
	for _, n := range h.Names() {
		if n.Home != nil {
			out[n.Home.Addr.String()] = n.Home.Host
		}
	}
	return fmt.Sprint(out)
}

// TestHomesGoWhereTheirNetworkIs: hosts hear where an address is when they have groups of its network, and follow it.
func TestHomesGoWhereTheirNetworkIs(t *testing.T) {
	c := spanning(t, mem.New())
	hosts := map[string]*sim.Host{}
	for i, name := range []string{"h1", "h2", "h3"} {
		hosts[name] = joinAt(t, c, name, fmt.Sprint("192.0.2.", 11+i))
	}
	n := putNet(t, c, "one", "10.0.0.0/16", "web=10.0.0.0/24")
	on := func(name, host, ip string) {
		for h := range hosts {
			if _, err := c.Cordon(t.Context(), h, h != host); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := c.Put(t.Context(), ref(name), inNetwork("one", "web", ip)); err != nil {
			t.Fatal(err)
		}
		if v := await(t, c, name, group.Running); v.Group.Host != host {
			t.Fatalf("group %s is on %s, want %s", name, v.Group.Host, host)
		}
	}
	on("a", "h1", "")
	on("b", "h2", "10.0.0.12")
	eventually(t, "both hosts know the other's address", func() bool {
		return homes(hosts["h1"]) == "map[10.0.0.12:h2]" && homes(hosts["h2"]) == "map[10.0.0.4:h1]"
	})
	if got := homes(hosts["h3"]); got != "map[]" {
		t.Errorf("a host without groups of the network was told %s", got)
	}
	// An address that is not the group's is not believed, whosever it is.
	v, _ := c.Get(ref("a"))
	lie := *v.Status
	for ip, want := range map[string]string{"10.0.0.12": "", "10.200.0.4": "", "10.0.0.4": "10.0.0.4"} {
		s := lie
		s.IP = ip
		c.Report("h1", s)
		if v, _ := c.Get(ref("a")); v.Status.IP != want {
			t.Errorf("the host reports %s: %q is believed, want %q", ip, v.Status.IP, want)
		}
	}
	if _, err := c.Delete(t.Context(), ref("b"), nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the address of a deleted group is nowhere", func() bool { return homes(hosts["h1"]) == "map[]" })
	eventually(t, "the address of a deleted group is free", func() bool {
		c.mu.RLock()
		defer c.mu.RUnlock()
		return len(c.idx.vnets.used[n.Key()]) == 1
	})
}
