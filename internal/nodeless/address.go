package nodeless

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Addresses are those at which the API and the kubelet API of clusters are reached, by pods and by each other. They
// exist on loopback of their machine only. A machine may have no address of its own, and an API server refuses nodes on
// 127.0.0.0/8, so that each instance has one out of a range that is nobody's on the internet: no two instances of a
// machine have the same id.
var Addresses = netip.MustParsePrefix("100.127.0.0/16")

// address is that of an instance's cluster.
func address(instance string) (netip.Addr, error) {
	id, err := hex.DecodeString(instance)
	if err != nil || len(id) != 2 {
		return netip.Addr{}, fmt.Errorf("instance %q: must be four hexadecimal digits", instance)
	}
	base := Addresses.Addr().As4()
	return netip.AddrFrom4([4]byte{base[0], base[1], id[0], id[1]}), nil
}

// entry is the address as loopback has it; the label says whose it is.
func entry(addr netip.Addr, instance string) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(32, 32)}, Label: "lo:sk" + instance}
}

func addAddress(addr netip.Addr, instance string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := netlink.AddrAdd(lo, entry(addr, instance)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("add address %s to loopback: %w", addr, err)
	}
	return nil
}

// removeAddress removes the address when it is this instance's.
func removeAddress(addr netip.Addr, instance string) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	want := entry(addr, instance)
	have, err := netlink.AddrList(lo, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for i := range have {
		if have[i].Label == want.Label && have[i].IP.Equal(want.IP) {
			if err := netlink.AddrDel(lo, want); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return err
			}
		}
	}
	return nil
}
