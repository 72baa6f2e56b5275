package agent

import (
	"fmt"
	"net/netip"
	"testing"

	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/network"
)

// TestHomesOfAWish: addresses are led to peers that there are, in networks that this host carries, each to one.
func TestHomesOfAWish(t *testing.T) {
	a := &Agent{homes: map[string]home{}}
	at := func(addr, on string) *host.Home { return &host.Home{Addr: netip.MustParseAddr(addr), Host: on} }
	for _, x := range []struct {
		uid     string
		network uint32
		home    *host.Home
		moved   bool
	}{
		{"a", 1, at("10.64.128.4", "two"), true}, {"a", 1, at("10.64.128.4", "two"), false}, {"b", 2, at("10.64.128.5", "two"), true},
		{"c", 1, at("10.64.128.6", "lost"), true}, {"d", 1, at("10.64.128.7", "three"), true}, {"e", 1, at("10.64.128.4", "three"), true},
		{"f", 0, at("10.64.128.8", "two"), false}, {"g", 1, at("10.64.128.9", "two"), true}, {"g", 1, nil, true}, {"g", 1, nil, false},
	} {
		if got := a.setHome(x.uid, x.network, x.home); got != x.moved {
			t.Errorf("setHome(%s, %d, %v) = %v, want %v", x.uid, x.network, x.home, got, x.moved)
		}
	}
	wish := host.Overlay{Underlay: netip.MustParseAddr("192.0.2.1"), Set: []host.Peer{
		{Name: "two", Underlay: netip.MustParseAddr("192.0.2.2")}, {Name: "three", Underlay: netip.MustParseAddr("192.0.2.3")}}}
	got := fmt.Sprint(a.homesOf(wish, []network.OverlayNetwork{{Number: 1, VNI: 9}}))
	if want := "[{1 10.64.128.4 192.0.2.2} {1 10.64.128.7 192.0.2.3}]"; got != want {
		t.Errorf("homes = %s, want %s", got, want)
	}
}
