package network

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// elsewhere is an address for documentation: the way to it is the way to the world.
var elsewhere = net.IPv4(192, 0, 2, 1)

// HostAddress is the address by which this machine is known: the preferred one when the machine has it, else that from
// which it speaks to the world, else the first of a device that is not the platform's, else loopback's.
func (n *Network) HostAddress(preferred netip.Addr) (netip.Addr, error) {
	links, err := whole(n.route.LinkList)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list links: %w", err)
	}
	foreign := map[int]bool{} // neither loopback nor a group's
	for _, l := range links {
		a := l.Attrs()
		foreign[a.Index] = a.Flags&net.FlagLoopback == 0 && a.Flags&net.FlagUp != 0 && !strings.HasPrefix(a.Name, n.plan.links)
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return n.route.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list addresses: %w", err)
	}
	var source netip.Addr
	if routes, err := n.route.RouteGet(elsewhere); err == nil && len(routes) > 0 { // without a way out there is none
		source, _ = netip.AddrFromSlice(routes[0].Src.To4())
	}
	first := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP.To4())
		switch {
		case !ok || ip == n.plan.gateway:
		case ip == preferred:
			return ip, nil
		case first.IsLoopback() && foreign[a.LinkIndex]:
			first = ip
		}
	}
	if source.IsValid() && !source.IsLoopback() && source != n.plan.gateway {
		return source, nil
	}
	return first, nil
}
