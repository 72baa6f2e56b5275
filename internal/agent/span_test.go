package agent

import (
	"slices"
	"testing"
	"time"

	"spillway.dev/spillway/internal/network"
)

// TestNetworksLinger: a network stays for a while when its last group has gone, so that the next one does not wait for it.
func TestNetworksLinger(t *testing.T) {
	one, two := network.OverlayNetwork{Number: 1, VNI: 11}, network.OverlayNetwork{Number: 2, VNI: 12}
	renumbered := network.OverlayNetwork{Number: 3, VNI: 12}
	s, begin := newSpan(&Agent{}), time.Now()
	for i, x := range []struct {
		after         time.Duration
		carried, want []network.OverlayNetwork
	}{
		{0, []network.OverlayNetwork{one, two}, []network.OverlayNetwork{one, two}},
		{time.Second, []network.OverlayNetwork{two}, []network.OverlayNetwork{one, two}},
		{2 * time.Second, nil, []network.OverlayNetwork{one, two}},
		{lingerTime, []network.OverlayNetwork{one}, []network.OverlayNetwork{one, two}}, // one has come back
		{lingerTime + 3*time.Second, []network.OverlayNetwork{one}, []network.OverlayNetwork{one}},
		{2 * lingerTime, nil, []network.OverlayNetwork{one}},
		{3 * lingerTime, nil, nil},
		{4 * lingerTime, []network.OverlayNetwork{two}, []network.OverlayNetwork{two}},
		{4*lingerTime + 1, []network.OverlayNetwork{renumbered}, []network.OverlayNetwork{renumbered}}, // no two of one id
	} {
		got := s.linger(x.carried, begin.Add(x.after))
		if !slices.Equal(got, x.want) {
			t.Errorf("%d: networks %v, want %v", i, got, x.want)
		}
		s.last.Networks = got
	}
}

// TestLingeringNetworksAreBounded: a tenant that makes networks without end does not fill the host with devices.
func TestLingeringNetworksAreBounded(t *testing.T) {
	s := newSpan(&Agent{})
	for i := range uint32(3 * mostLinger) {
		s.last.Networks = s.linger([]network.OverlayNetwork{{Number: i + 1, VNI: i + 1}}, time.Now())
	}
	if n := len(s.last.Networks); n != mostLinger+1 {
		t.Errorf("%d networks, want %d", n, mostLinger+1)
	}
}
