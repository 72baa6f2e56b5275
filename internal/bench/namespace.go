package bench

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace of the benchmark's own: a thread that lives in it. It is gone when that ends.
type namespace struct {
	file *os.File
	jobs chan func()
}

func newNamespace() (*namespace, error) {
	n := &namespace{jobs: make(chan func())}
	ready := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and the namespace with the thread
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			n.file, err = os.Open("/proc/thread-self/ns/net")
		}
		if err == nil {
			err = errors.Join(loopbackUp(), os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0))
		}
		ready <- err
		for f := range n.jobs {
			f()
		}
	}()
	if err := <-ready; err != nil {
		n.close()
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	return n, nil
}

func (n *namespace) close() {
	close(n.jobs)
	if n.file != nil {
		n.file.Close()
	}
}

// do runs a function inside.
func (n *namespace) do(f func() error) error {
	done := make(chan error, 1)
	n.jobs <- func() { done <- f() }
	return <-done
}

// apart runs a function inside on a thread of its own, so that it may wait.
func (n *namespace) apart(f func()) {
	go func() {
		runtime.LockOSThread() // for good, as above
		if unix.Setns(int(n.file.Fd()), unix.CLONE_NEWNET) == nil {
			f()
		}
	}()
}

// end is one end of a cable: a device with an address in a namespace.
type end struct {
	ns   *namespace
	name string
	addr string // with prefix
	mtu  int    // 0: as the kernel makes it
}

// connect lays a veth pair, both ends up.
func connect(a, b end) error {
	if err := a.ns.do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: a.name}, PeerName: b.name, PeerNamespace: netlink.NsFd(b.ns.file.Fd())})
	}); err != nil {
		return fmt.Errorf("cable from %s to %s: %w", a.name, b.name, err)
	}
	return errors.Join(a.up(), b.up())
}

func (e end) up() error {
	return e.ns.do(func() error {
		l, err := netlink.LinkByName(e.name)
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(e.addr)
		if err != nil {
			return err
		}
		if e.mtu != 0 {
			if err := netlink.LinkSetMTU(l, e.mtu); err != nil {
				return err
			}
		}
		return errors.Join(netlink.AddrAdd(l, addr), netlink.LinkSetUp(l))
	})
}

// tunnel makes a VXLAN device between two hosts, as the kernel has it: nothing is filtered.
func tunnel(at end, from, to string) error {
	if err := at.ns.do(func() error {
		return netlink.LinkAdd(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: at.name}, VxlanId: 9, SrcAddr: net.ParseIP(from), Group: net.ParseIP(to), Port: 4789})
	}); err != nil {
		return fmt.Errorf("tunnel from %s to %s: %w", from, to, err)
	}
	return at.up()
}

// route leads a range by way of an address.
func (n *namespace) route(to, via string) error {
	return n.do(func() error {
		_, dst, err := net.ParseCIDR(to)
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: dst, Gw: net.ParseIP(via)})
	})
}
