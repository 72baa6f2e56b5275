package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/network/overlay"
)

// What an overlay is made of, under the names that users of this package know.
type (
	Overlay        = overlay.Overlay
	OverlayNetwork = overlay.Network
	Peer           = overlay.Peer
	Home           = overlay.Home
)

// SetOverlay makes this host's part of the network that spans hosts what is wanted, whatever there is of it: what is right
// is not touched, so connections go on; what is not wanted goes. A peer that is not named is fenced before anything else
// is done. The zero Overlay is a platform of one machine. An error leaves some of it undone; calling again goes on.
// Errors: invalid; conflict when another overlay of this machine has the port; unavailable when the machine does not have the
// underlay's address.
func (n *Network) SetOverlay(ctx context.Context, want Overlay) error {
	n.overlayMu.Lock()
	defer n.overlayMu.Unlock()
	changes, err := n.setOverlay(want)
	if err != nil {
		return fmt.Errorf("set overlay of %d networks with %d peers: %w", len(want.Networks), len(want.Peers), err)
	}
	if changes > 0 {
		n.log.InfoContext(ctx, "overlay set", "instance", n.plan.instance, "underlay", want.Underlay, "networks", len(want.Networks), "peers", len(want.Peers), "changes", changes)
	}
	return nil
}

func (n *Network) setOverlay(want Overlay) (changes int, err error) {
	if !want.Enabled() && !n.tunnel.enabled() {
		return 0, nil
	}
	plan, lost, err := n.planOverlay(want)
	if err != nil {
		return 0, err
	}
	before := n.way.sent.Load() + n.nf.sent.Load()
	defer func() { changes = int(n.way.sent.Load() + n.nf.sent.Load() - before) }()
	t := tunnel{want.Underlay, plan.Port}
	if lost != nil { // the way stays as it is
		t = n.tunnel
	}
	if err := n.fastFence(plan, t); err != nil {
		return 0, err
	}
	if lost == nil && want.Enabled() && n.tunnel != t { // before there is a device that they are about
		if err := n.changeTunnel(t); err != nil {
			return 0, err
		}
	}
	if n.tunnel.enabled() {
		if err := errors.Join(n.fence(plan), lost); err != nil {
			return 0, err
		}
	}
	if lost != nil {
		return 0, lost
	}
	// gofail: var overlayFenced struct{}
	if err := n.carry(plan); err != nil {
		return 0, err
	}
	if !want.Enabled() {
		n.linkMTU.Store(mostMTU)
		return 0, n.changeTunnel(tunnel{})
	}
	n.linkMTU.Store(overlay.LinkMTU(plan.MTU+overlay.Overhead, mostMTU))
	if err := n.admit(plan); err != nil {
		return 0, err
	}
	return 0, n.fastAdmit(plan)
}

// planOverlay checks what is wanted. When the machine has lost its underlay, whom to refuse is known all the same.
func (n *Network) planOverlay(want Overlay) (p *overlay.Plan, lost, err error) {
	site := overlay.Site{Instance: n.plan.instance, CIDR: n.plan.cidr, MTU: mostMTU}
	if want.Enabled() {
		var mtu uint32
		if mtu, lost = n.underlayMTU(want); lost == nil {
			site.MTU = mtu
		}
	}
	p, err = overlay.New(site, want)
	return p, lost, err
}

// underlayMTU is how large the packets are that the device with the underlay's address carries. An address of loopback
// belongs to the whole machine: then it is the device by which the first peer is reached.
func (n *Network) underlayMTU(want Overlay) (uint32, error) {
	addrs, err := whole(func() ([]netlink.Addr, error) { return n.route.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return 0, fmt.Errorf("list addresses: %w", err)
	}
	index := 0
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok && ip == want.Underlay {
			index = a.LinkIndex
		}
	}
	if index == 0 {
		return 0, fault.New(fault.Unavailable, "", "overlay: the underlay address %s is none of this machine's", want.Underlay)
	}
	if index == loopbackIndex && len(want.Peers) > 0 {
		if routes, err := n.route.RouteGet(net.IP(want.Peers[0].Underlay.AsSlice())); err == nil && len(routes) > 0 {
			index = routes[0].LinkIndex
		}
	}
	link, err := n.route.LinkByIndex(index)
	if err != nil {
		return 0, fmt.Errorf("find the device of %s: %w", want.Underlay, err)
	}
	return uint32(link.Attrs().MTU), nil
}

// changeTunnel writes the rules anew for another way to take part in an overlay. Entries stay.
func (n *Network) changeTunnel(t tunnel) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.applyRuleset(t, n.tunnel.enabled()); err != nil {
		return err
	}
	n.tunnel = t
	return nil
}

// readOverlay is what the overlay's sets hold.
func (n *Network) readOverlay() (map[element]bool, error) {
	have := map[element]bool{}
	for _, set := range []string{setOverlay, setCarrier, setPeer} {
		list, err := n.dumpSet(n.nf, set)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			have[e] = true
		}
	}
	return have, nil
}

// fence takes away what is not wanted of the sets: packets of such peers and networks are refused from now on.
func (n *Network) fence(p *overlay.Plan) error {
	return n.changeOverlay(p, func(have, want map[element]bool) (del, add []element) { return missing(have, want), nil })
}

// admit adds to the sets what is wanted.
func (n *Network) admit(p *overlay.Plan) error {
	return n.changeOverlay(p, func(have, want map[element]bool) (del, add []element) { return nil, missing(want, have) })
}

func (n *Network) changeOverlay(p *overlay.Plan, change func(have, want map[element]bool) (del, add []element)) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	have, err := n.readOverlay()
	if err != nil {
		return err
	}
	del, add := change(have, overlayElements(p))
	return n.nf.do(encodeElements(n.plan.table, del, add)...)
}

// missing is what a has and b has not.
func missing(a, b map[element]bool) (out []element) {
	for e := range a {
		if !b[e] {
			out = append(out, e)
		}
	}
	return out
}

// carry makes devices, what hangs on them, and the rules that lead to their tables. Rules that go do so before their
// devices: where there is no device of ours, there is no rule of ours.
func (n *Network) carry(p *overlay.Plan) error {
	devices, index, err := n.overlayDevices()
	if err != nil {
		return err
	}
	c := p.CompareDevices(devices)
	for _, name := range c.Remove {
		delete(index, name)
	}
	if err := n.setRouteRules(p.Rules(index), false); err != nil {
		return err
	}
	// gofail: var overlayUnruled struct{}
	if err := n.changeDevices(p, c, index); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(index)) {
		at := place{index[name], p.Numbers[name]}
		have, err := n.way.readEntries(at)
		if err != nil {
			return fmt.Errorf("device %s: %w", name, err)
		}
		gone, come := p.Compare(name, have)
		if err := n.way.doMany(entryMessages(at, gone, come)); err != nil {
			return fmt.Errorf("device %s: %w", name, err)
		}
		// gofail: var overlayRouted struct{}
	}
	return n.setRouteRules(p.Rules(index), true)
}

// overlayDevices are the devices of this instance's overlay, and their numbers.
func (n *Network) overlayDevices() (map[string]overlay.Device, map[string]uint32, error) {
	all, err := n.way.readDevices()
	if err != nil {
		return nil, nil, fmt.Errorf("list devices: %w", err)
	}
	devices, index := map[string]overlay.Device{}, map[string]uint32{}
	for _, d := range all {
		if strings.HasPrefix(d.name, overlay.Prefix(n.plan.instance)) {
			devices[d.name], index[d.name] = d.Device, d.index
		}
	}
	return devices, index, nil
}

// changeDevices carries a change of devices out, and notes the numbers of new ones.
func (n *Network) changeDevices(p *overlay.Plan, c overlay.DeviceChanges, index map[string]uint32) error {
	if err := n.deleteLinks(c.Remove...); err != nil {
		return fmt.Errorf("remove devices %v: %w", c.Remove, err)
	}
	for _, name := range c.Make {
		if err := n.way.do(newVXLAN(name, p.Devices[name])); err != nil {
			if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EADDRINUSE) {
				return fault.New(fault.Conflict, "", "overlay: another device of this machine has VXLAN id %d at port %d: give every platform of a machine a port of its own", p.Devices[name].VNI, p.Port)
			}
			return fmt.Errorf("make device %s: %w", name, err)
		}
		i, err := n.way.index(name)
		if err != nil {
			return err
		}
		index[name] = i
		// gofail: var overlayMade struct{}
	}
	for _, name := range c.Adjust {
		i := index[name]
		msgs := []*message{sizeVXLAN(i, p.Devices[name].MTU), settleVXLAN(i), raiseVXLAN(i)}
		if n.plan.ipv6 {
			msgs = slices.Insert(msgs, 1, deviceWithoutIPv6(i))
		}
		if err := n.way.do(msgs...); err != nil {
			return fmt.Errorf("configure device %s: %w", name, err)
		}
	}
	return nil
}

// entryMessages lead from one state of a device's entries to another: whom a route leads to is known before the route, and
// longer than it.
func entryMessages(at place, gone, come overlay.Entries) []*message {
	dev := at.device
	var out []*message
	for block, peer := range gone.Routes {
		out = append(out, blockRoute(at, block, peer).removal(unix.RTM_DELROUTE))
	}
	for peer, mac := range gone.Neighbours {
		out = append(out, neighbour(dev, peer.AsSlice(), mac).removal(unix.RTM_DELNEIGH))
	}
	for mac, peer := range gone.Forwards {
		out = append(out, forward(dev, mac, peer).removal(unix.RTM_DELNEIGH))
	}
	for mac, peer := range come.Forwards {
		out = append(out, forward(dev, mac, peer))
	}
	for peer, mac := range come.Neighbours {
		out = append(out, neighbour(dev, peer.AsSlice(), mac))
	}
	for block, peer := range come.Routes {
		out = append(out, blockRoute(at, block, peer))
	}
	return out
}

// setRouteRules removes the rules about routes that are not wanted, or adds those that are.
func (n *Network) setRouteRules(want map[overlay.Rule]bool, add bool) error {
	have, err := n.way.readRules(n.plan.cidr)
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	gone, come := overlay.CompareRules(have, want)
	var msgs []*message
	for _, r := range gone {
		msgs = append(msgs, routeRule(n.plan.cidr, r).removal(unix.RTM_DELRULE))
	}
	if add {
		for _, r := range come {
			msgs = append(msgs, routeRule(n.plan.cidr, r))
		}
	}
	if err := n.way.doMany(msgs); err != nil {
		return fmt.Errorf("change rules: %w", err)
	}
	return nil
}

// adoptOverlay finds how this host takes part in an overlay already: as its devices say. It says whether the table has been
// made for an overlay, which a process that was killed may have left without one.
func (n *Network) adoptOverlay() (t tunnel, had bool, err error) {
	if _, err := n.dumpSet(n.nf, setPeer); errors.Is(err, unix.ENOENT) {
		return tunnel{}, false, nil
	} else if err != nil {
		return tunnel{}, false, err
	}
	devices, _, err := n.overlayDevices()
	for _, d := range devices {
		t = tunnel{d.Underlay, d.Port}
		n.linkMTU.Store(overlay.LinkMTU(d.MTU+overlay.Overhead, mostMTU))
	}
	return t, true, err
}

// place is where a network's ways to other hosts are: its device, and by its number its table.
type place struct{ device, network uint32 }

// removeOverlay takes away an instance's devices and rules about routes.
func (n *Network) removeOverlay() error {
	n.mu.Lock()
	slow := n.fastEnd(false)
	n.mu.Unlock()
	none := n.setRouteRules(nil, false)
	_, index, err := n.overlayDevices()
	if err == nil {
		err = n.deleteLinks(slices.Collect(maps.Keys(index))...)
	}
	return errors.Join(slow, none, err)
}
