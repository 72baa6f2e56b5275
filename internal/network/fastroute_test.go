package network

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cable connects two hosts by a second way, over which each reaches the other's underlay.
func (f *fleet) cable(a, b *hostWorld) {
	f.Helper()
	a.in(a.host, func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "second", MTU: 1500}, PeerName: "second", PeerNamespace: netlink.NsFd(b.host.Fd())})
	})
	for _, h := range []*hostWorld{a, b} {
		h.in(h.host, func() error { return up("second", fmt.Sprintf("198.18.0.%d/30", h.number)) })
	}
	for _, ends := range [][2]*hostWorld{{a, b}, {b, a}} {
		ends[0].in(ends[0].host, func() error {
			l, err := netlink.LinkByName("second")
			if err != nil {
				return err
			}
			r := ends[1].only()
			r.LinkIndex, r.Gw = l.Attrs().Index, net.IPv4(198, 18, 0, byte(ends[1].number))
			return netlink.RouteAdd(r)
		})
	}
}

// only is a route to a host's underlay alone.
func (h *hostWorld) only() *netlink.Route {
	return &netlink.Route{Dst: &net.IPNet{IP: h.underlay().AsSlice(), Mask: net.CIDRMask(32, 32)}}
}

func (h *hostWorld) sent(device string) (n uint64) {
	h.t.Helper()
	h.in(h.host, func() error {
		l, err := netlink.LinkByName(device)
		if err == nil {
			n = l.Attrs().Statistics.TxPackets
		}
		return err
	})
	return n
}

// TestFastPathFollowsRoutes: the way to a peer becomes another in the middle of a connection, goes away, and comes back.
func TestFastPathFollowsRoutes(t *testing.T) {
	t.Parallel()
	f, a, b := newPair(t)
	talk, err := a.call(a.ns[1], "tcp4", b.addr(1).String()+":8080")
	if err != nil {
		t.Fatal(err)
	}
	a.goesFast("before", talk, true)
	f.cable(a, b)
	b.follow()
	first, second := b.tapAt(b.host, "uplink"), b.tapAt(b.host, "second")
	a.goesFast("by another device", talk, true)
	if _, came := second.until("who"); !came {
		t.Error("nothing that is said takes the new way")
	}
	for len(first.frames) > 0 { // acknowledgements and questions for neighbours may still
		has(t, "by the old way", [][]byte{<-first.frames}, "who")
	}
	a.in(a.host, func() error {
		l, err := netlink.LinkByName("second")
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	b.follow()
	a.goesFast("by the first device again", talk, true)

	nowhere := b.only()
	nowhere.Type = unix.RTN_UNREACHABLE
	a.in(a.host, func() error { return netlink.RouteAdd(nowhere) })
	a.follow()
	there := b.tap(b.ns[1])
	if name, _, err := talk.say(); err == nil {
		t.Errorf("without a route: answered by %q", name)
	}
	for len(there.frames) > 0 {
		has(t, "without a route", [][]byte{<-there.frames}, "who")
	}
	if a.net.fast.slow[b.underlay()] == "" {
		t.Error("nobody has said why the peer is not reached around the stack")
	}
	a.in(a.host, func() error { return netlink.RouteDel(nowhere) })
	a.follow()
	_ = talk.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := talk.in.ReadString('\n'); err != nil {
		t.Errorf("with the route again, the answer to what was said before: %v", err)
	}
	a.goesFast("with the route again", talk, true)

	a.encrypts(b, talk)
	a.runsOut(talk)
}

// encrypts: what the machine may have to encrypt goes through the stack. This policy asks for it where it can be had.
func (h *hostWorld) encrypts(b *hostWorld, talk *call) {
	h.t.Helper()
	policy := &netlink.XfrmPolicy{Src: h.only().Dst, Dst: b.only().Dst, Dir: netlink.XFRM_DIR_OUT, Tmpls: []netlink.XfrmPolicyTmpl{
		{Src: h.underlay().AsSlice(), Dst: b.underlay().AsSlice(), Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TRANSPORT, Optional: 1}}}
	h.in(h.host, func() error { return netlink.XfrmPolicyAdd(policy) })
	h.goesFast("with a policy of encryption", talk, false)
	h.in(h.host, func() error { return netlink.XfrmPolicyDel(policy) })
	h.goesFast("without it again", talk, true)
}

// runsOut: when nobody looks after the ways any more, packets take the stack after a while.
func (h *hostWorld) runsOut(talk *call) {
	h.t.Helper()
	slow := false
	for deadline := time.Now().Add(30 * time.Second); !slow && time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		before := h.slowPackets()
		if _, _, err := talk.say(); err != nil {
			h.t.Fatal(err)
		}
		slow = h.slowPackets() != before
	}
	if !slow {
		h.t.Error("packets go around the stack though nobody follows the routes")
	}
	h.goesFast("looked after again", talk, true)
}
