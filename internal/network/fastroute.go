package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/network/fastpath"
	"spillway.dev/spillway/internal/network/overlay"
)

// This file is about the ways to other hosts that packets take around the stack. They are those of the machine's own routes,
// which change without a word to anybody here: FollowRoutes looks.

// FollowInterval is how often FollowRoutes wants to be called. Packets around the stack take the way of before, and pass rules of
// the machine's, for so long after a change. When nobody has called for ten seconds they take the stack.
const FollowInterval = time.Second

// FollowRoutes lets packets around the stack take the way that the machine's routes lead now. Peers to which none leads are
// reached by the stack, or not at all, as it has it. All take the stack where the machine has rules of its own. It asks one
// question for each peer and one for the rules, and changes only what is other.
func (n *Network) FollowRoutes(ctx context.Context) error {
	n.overlayMu.Lock()
	defer n.overlayMu.Unlock()
	if n.fast.path == nil {
		return nil
	}
	ways, why := n.fastWays(), n.reasonToRest()
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := errors.Join(n.rest(why), n.fast.path.Lead(ways), n.leaveUplinks(ways)); err != nil {
		return fmt.Errorf("follow the routes to %d hosts: %w", len(ways), err)
	}
	return nil
}

// fastWays are the ways to peers, by devices that have programs. Those without one that is understood are left out; who they
// are is said when it changes.
func (n *Network) fastWays() map[netip.Addr]fastpath.Peer {
	ways, slow, devices := map[netip.Addr]fastpath.Peer{}, map[netip.Addr]string{}, map[uint32]uplink{}
	policies := n.encrypts()
	for _, a := range n.fast.peers {
		to, err := n.wayTo(a, devices)
		if policies != nil {
			err = policies
		}
		if err == nil {
			err = n.fastDevice(to.Ifindex, ingress, n.fast.path.FromWire)
		}
		if err != nil {
			slow[a] = err.Error()
			continue
		}
		ways[a] = to
	}
	if !maps.Equal(slow, n.fast.slow) {
		n.saySlow(slow)
	}
	n.fast.slow = slow
	return ways
}

// encrypts says why packets between hosts may not go around the stack: the machine may have to encrypt them, or take no others.
func (n *Network) encrypts() error {
	if n.xfrm == nil {
		return nil
	}
	list, err := whole(func() ([]netlink.XfrmPolicy, error) { return n.xfrm.XfrmPolicyList(unix.AF_INET) })
	if err != nil {
		return fmt.Errorf("list policies of encryption: %w", err)
	}
	if len(list) > 0 {
		return errors.New("the machine has policies of encryption (IPsec)")
	}
	return nil
}

// mostTold bounds how many hosts a line names.
const mostTold = 8

func (n *Network) saySlow(slow map[netip.Addr]string) {
	var some []string
	for _, a := range n.fast.peers {
		if why, ok := slow[a]; ok && len(some) < mostTold {
			some = append(some, fmt.Sprintf("%s: %s", a, why))
		}
	}
	n.log.Info("hosts to which packets take the stack", "instance", n.plan.instance, "count", len(slow), "some", some)
}

// uplink is a device of the machine as ways to peers need it; mtu 0: it is of another kind.
type uplink struct{ mtu uint32 }

// wayTo is how a packet gets to a peer.
func (n *Network) wayTo(a netip.Addr, devices map[uint32]uplink) (fastpath.Peer, error) {
	routes, err := n.route.RouteGetWithOptions(net.IP(a.AsSlice()), &netlink.RouteGetOptions{SrcAddr: n.tunnel.underlay.AsSlice()})
	if err != nil {
		return fastpath.Peer{}, fmt.Errorf("no route: %w", err)
	}
	if len(routes) != 1 || routes[0].Type != unix.RTN_UNICAST {
		return fastpath.Peer{}, errors.New("no unicast route")
	}
	index, next := uint32(routes[0].LinkIndex), a
	if gw, ok := netip.AddrFromSlice(routes[0].Gw.To4()); ok {
		next = gw
	}
	d, ok := devices[index]
	if !ok {
		if d, err = n.uplink(index); err != nil {
			return fastpath.Peer{}, err
		}
		devices[index] = d
	}
	if d.mtu == 0 || routes[0].Via != nil || routes[0].Encap != nil {
		return fastpath.Peer{}, fmt.Errorf("the way by device %d is no plain one over Ethernet", index)
	}
	return fastpath.Peer{Ifindex: index, Next: next, MTU: min(d.mtu, n.fast.mtu)}, nil
}

func (n *Network) uplink(index uint32) (uplink, error) {
	l, err := n.route.LinkByIndex(int(index))
	if err != nil {
		return uplink{}, fmt.Errorf("find device %d: %w", index, err)
	}
	a := l.Attrs()
	if a.EncapType != "ether" || a.Flags&net.FlagLoopback != 0 || a.MTU <= overlay.Overhead {
		return uplink{}, nil
	}
	return uplink{uint32(a.MTU) - overlay.Overhead}, nil
}

// leaveUplinks takes programs off devices by which no peer is reached any more.
func (n *Network) leaveUplinks(ways map[netip.Addr]fastpath.Peer) error {
	used := map[uint32]bool{}
	for _, to := range ways {
		used[to.Ifindex] = true
	}
	for index, at := range n.fast.devices {
		if at == ingress && !used[index] {
			if err := n.unhook(index); err != nil {
				return err
			}
		}
	}
	return nil
}
