package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// site is machines on one switch: network namespaces with an address each, 10.253.0.1 the first.
type site struct {
	hub      *namespace
	machines []*machine
}

// machine is one of them.
type machine struct {
	*namespace
	hub  *namespace
	name string
	addr string
}

const (
	switchName = "switch0"
	uplink     = "up0" // of every machine
	gateway    = "10.253.0.254"
)

func newSite() (*site, error) {
	hub, err := newNamespace()
	if err != nil {
		return nil, err
	}
	err = hub.do(func() error {
		l := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: switchName}}
		return errors.Join(netlink.LinkAdd(l), netlink.LinkSetUp(l))
	})
	if err != nil {
		hub.close()
		return nil, fmt.Errorf("switch: %w", err)
	}
	return &site{hub: hub}, nil
}

// machine adds one; its name is that of its cable at the switch.
func (s *site) machine(name string) (*machine, error) {
	ns, err := newNamespace()
	if err != nil {
		return nil, err
	}
	m := &machine{namespace: ns, hub: s.hub, name: name, addr: fmt.Sprintf("10.253.0.%d", len(s.machines)+1)}
	s.machines = append(s.machines, m)
	err = ns.do(func() error {
		return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: uplink}, PeerName: name, PeerNamespace: netlink.NsFd(s.hub.file.Fd())})
	})
	if err == nil {
		err = s.hub.do(func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			master, err := netlink.LinkByName(switchName)
			if err != nil {
				return err
			}
			return errors.Join(netlink.LinkSetMaster(l, master), netlink.LinkSetUp(l))
		})
	}
	if err == nil {
		err = end{ns: ns, name: uplink, addr: m.addr + "/24"}.up()
	}
	if err == nil {
		err = ns.do(func() error { return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gateway)}) })
	}
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", name, err)
	}
	return m, nil
}

func (s *site) close() {
	for _, m := range s.machines {
		m.close()
	}
	s.hub.close()
}

// plug puts the machine's cable into the switch, or pulls it out.
func (m *machine) plug(in bool) error {
	return m.hub.do(func() error {
		l, err := netlink.LinkByName(m.name)
		if err != nil {
			return err
		}
		if in {
			return netlink.LinkSetUp(l)
		}
		return netlink.LinkSetDown(l)
	})
}

// reach makes a port of the machine reachable from this program's own network until ctx ends, and gives where.
func (m *machine) reach(ctx context.Context, port string) (string, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			go m.carry(ctx, near, net.JoinHostPort(m.addr, port))
		}
	}()
	return l.Addr().String(), nil
}

// carry takes a connection on to an address as the machine sees it.
func (m *machine) carry(ctx context.Context, near net.Conn, addr string) {
	defer near.Close()
	const patience = 5 * time.Second
	dialled := make(chan net.Conn, 1)
	m.apart(func() {
		defer close(dialled)
		if far, err := (&net.Dialer{Timeout: patience}).DialContext(ctx, "tcp4", addr); err == nil {
			dialled <- far
		}
	})
	far := <-dialled
	if far == nil {
		return
	}
	defer far.Close()
	stop := context.AfterFunc(ctx, func() { unblock(near, far) })
	defer stop()
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(near, far)
		unblock(near, far)
	}()
	_, _ = io.Copy(far, near)
	unblock(near, far)
	<-back
}

func unblock(conns ...net.Conn) {
	for _, c := range conns {
		_ = c.SetDeadline(time.Unix(1, 0))
	}
}

// killAll ends processes as nobody likes it.
func killAll(pids []int) {
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}
