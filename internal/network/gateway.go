package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
)

// Claim takes a range for an instance before anything else of it is made, or says who has it. The kernel decides: the
// gateway address exists once, and its label names the owner, so that of two instances that start at the same moment
// one gets the range. Claiming again what is one's own changes nothing. Errors: conflict.
func Claim(_ context.Context, cfg Config) error {
	n, err := connect(cfg)
	if err != nil {
		return err
	}
	return errors.Join(n.claimGateway(), n.Close())
}

// claimGateway puts the gateway address on loopback, unless another instance has it there.
func (n *Network) claimGateway() error {
	n.rtMu.Lock()
	err := n.rt.do(linkUp(loopbackIndex), n.plan.gatewayAddress(unix.RTM_NEWADDR))
	n.rtMu.Unlock()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	owner, err := n.gatewayLabel()
	if err != nil || owner == n.plan.label() {
		return err
	}
	return fault.New(fault.Conflict, "", "the range %s is taken: its gateway %s is an address of this machine already (%s)", n.plan.cidr, n.plan.gateway, owner)
}

// gatewayLabel is the label of the gateway address, "" when it is not there.
func (n *Network) gatewayLabel() (string, error) {
	addrs, err := whole(func() ([]netlink.Addr, error) { return n.route.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return "", fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && ip == n.plan.gateway {
			return a.Label, nil
		}
	}
	return "", nil
}

// addPublic makes public ranges local to this machine, so that it answers for each of their addresses without one
// address record each.
func (n *Network) addPublic() error {
	if len(n.plan.public) == 0 {
		return nil
	}
	n.rtMu.Lock()
	defer n.rtMu.Unlock()
	var msgs []*message
	for _, p := range n.plan.public {
		msgs = append(msgs, publicRoute(p, n.plan.gateway.AsSlice()))
	}
	if err := n.rt.do(msgs...); err != nil {
		return fmt.Errorf("add public ranges %v: %w", n.plan.public, err)
	}
	return nil
}

// removeGateway takes this instance's gateway address away, and the public routes, which have it as their source.
func (n *Network) removeGateway() error {
	owner, err := n.gatewayLabel()
	if err != nil || owner != n.plan.label() {
		return err
	}
	public, err := whole(func() ([]netlink.Route, error) {
		return n.route.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: unix.RT_TABLE_LOCAL, Src: net.IP(n.plan.gateway.AsSlice())},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_SRC)
	})
	if err != nil {
		return fmt.Errorf("list public routes: %w", err)
	}
	for _, r := range public {
		if ip, ok := netip.AddrFromSlice(r.Dst.IP.To4()); !ok || ip == n.plan.gateway {
			continue // the address's own route, which goes with it
		}
		if err := n.route.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("remove public route %s: %w", r.Dst, err)
		}
	}
	n.rtMu.Lock()
	defer n.rtMu.Unlock()
	if err := n.rt.do(n.plan.gatewayAddress(unix.RTM_DELADDR)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("remove gateway %s: %w", n.plan.gateway, err)
	}
	return nil
}

// label marks the gateway address as this instance's. The kernel wants the device's name in front.
func (p plan) label() string { return "lo:sw" + p.instance }

// gatewayAddress is the message that makes or removes the gateway address.
func (p plan) gatewayAddress(kind uint16) *message {
	gw := p.gateway.AsSlice()
	flags := uint16(unix.NLM_F_ACK)
	if kind == unix.RTM_NEWADDR {
		flags |= unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	m := newMessage(kind, flags, addressHead(loopbackIndex))
	return m.attr(unix.IFA_LOCAL, gw).attr(unix.IFA_ADDRESS, gw).text(unix.IFA_LABEL, p.label())
}

func publicRoute(p netip.Prefix, gateway []byte) *message {
	return route(routeSpec{dst: p.Addr().AsSlice(), bits: uint8(p.Bits()), dev: loopbackIndex, src: gateway,
		scope: unix.RT_SCOPE_HOST, kind: unix.RTN_LOCAL, table: unix.RT_TABLE_LOCAL})
}
