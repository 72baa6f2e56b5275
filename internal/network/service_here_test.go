package network

import (
	"context"
	"errors"
	"net"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestMachineReachesServiceAddresses: those that are in the machine's own network, and no others.
func TestMachineReachesServiceAddresses(t *testing.T) {
	w := newWorld(t)
	w.in(w.host, func() error {
		return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}, Gw: net.IPv4(203, 0, 113, 1)})
	})
	w.members(7, 1, 2)
	w.members(8, 3)
	w.speak(w.host, "203.0.113.2:9090", "machine")
	w.set(both(7, "10.99.1.1:8080", "10.99.1.2:8080"))
	if name, _, err := w.who(w.host, "tcp4", cluster+":80"); err == nil {
		t.Fatalf("the machine reaches %s by a service address of a group's network", name)
	}
	w.set(both(Machine, "10.99.1.1:8080", "10.99.1.2:8080"))
	for _, network := range []string{"tcp4", "udp4"} {
		got := map[string]int{}
		for range 60 {
			name, seen, err := w.who(w.host, network, cluster+":80")
			if err != nil || seen != "203.0.113.2" {
				t.Fatalf("%s: %s saw %q, %v", network, name, seen, err)
			}
			got[name]++
		}
		if got["1"] < 10 || got["2"] < 10 {
			t.Errorf("%s: connections went to %v", network, got)
		}
		if name, _, err := w.who(w.ns[3], network, cluster+":80"); err == nil {
			t.Errorf("%s: a group of another network reached %s", network, name)
		}
		if name, _, err := w.who(w.ns[1], network, cluster+":80"); err != nil {
			t.Errorf("%s: a group of its network reached %s, %v", network, name, err)
		}
	}
	sticky := both(Machine, "10.99.1.1:8080", "10.99.1.2:8080")
	sticky.Sticky = true
	w.set(sticky)
	first, _, err := w.who(w.host, "tcp4", cluster+":80")
	for range 10 {
		if name, _, again := w.who(w.host, "tcp4", cluster+":80"); err != nil || again != nil || name != first {
			t.Fatalf("a machine that sticks went from %s to %s, %v %v", first, name, err, again)
		}
	}
	w.set(both(Machine, "203.0.113.2:9090"))
	if name, _, err := w.who(w.host, "tcp4", cluster+":80"); err != nil || name != "machine" {
		t.Errorf("an endpoint on the machine itself = %q, %v", name, err)
	}
	w.set(both(Machine))
	for _, port := range []string{":80", ":81"} {
		if _, err := w.call(w.host, "tcp4", cluster+port); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("port %s without endpoints: %v, want a refusal at once", port, err)
		}
	}
	w.open() // a new process finds the rules as they are
	if _, err := w.call(w.host, "tcp4", cluster+":80"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("after the rules were made anew: %v", err)
	}
	if err := w.net.SetServices(context.Background(), nil, []ServiceKey{both(Machine).ServiceKey}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.call(w.host, "tcp4", cluster+":80"); err == nil || errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("an address that is none any more: %v, want nothing of the machine", err)
	}
	if name, _, err := w.who(w.ns[2], "tcp4", cluster+":80"); err != nil {
		t.Errorf("the groups' own went with it: %s, %v", name, err)
	}
}
