package test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netns"

	"spillway.dev/spillway/internal/client"
)

// site is some machines of a test on one switch: network namespaces that nothing else is in.
type site struct {
	*testing.T
	prefix string // of the namespaces' names
	count  int
}

// machine is one of them.
type machine struct {
	site *site
	name string
	ns   string // name of the namespace
	addr string
}

var sites atomic.Int64

// newSite makes a switch; it and its machines go at the test's end.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{T: t, prefix: fmt.Sprintf("swt%d-%d-", os.Getpid(), sites.Add(1))}
	s.ip("netns", "add", s.prefix+"switch")
	t.Cleanup(func() { s.ip("netns", "del", s.prefix+"switch") })
	s.ip("-n", s.prefix+"switch", "link", "add", "name", "switch0", "type", "bridge")
	s.ip("-n", s.prefix+"switch", "link", "set", "switch0", "up")
	return s
}

func (s *site) ip(args ...string) {
	s.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		s.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// machine adds a machine: 10.253.0.1 is the first.
func (s *site) machine(name string) *machine {
	s.Helper()
	s.count++
	m := &machine{site: s, name: name, ns: s.prefix + name, addr: fmt.Sprintf("10.253.0.%d", s.count)}
	s.ip("netns", "add", m.ns)
	s.Cleanup(func() { s.ip("netns", "del", m.ns) })
	s.ip("link", "add", "up0", "netns", m.ns, "type", "veth", "peer", "name", name, "netns", s.prefix+"switch")
	s.ip("-n", s.prefix+"switch", "link", "set", "dev", name, "master", "switch0", "up")
	s.ip("-n", m.ns, "link", "set", "lo", "up")
	s.ip("-n", m.ns, "addr", "add", m.addr+"/24", "dev", "up0")
	s.ip("-n", m.ns, "link", "set", "up0", "up")
	s.ip("-n", m.ns, "route", "add", "default", "via", "10.253.0.254")
	return m
}

// command is a command on the machine. `ip netns exec` would hide the hierarchies of cgroups.
func (m *machine) command(program string, args ...string) *exec.Cmd {
	if m == nil {
		return exec.Command(program, args...)
	}
	return exec.Command("nsenter", append([]string{"--net=" + filepath.Join("/run/netns", m.ns), program}, args...)...)
}

// inside runs f in the machine's network namespace; nil is this one.
func (m *machine) inside(f func() error) error {
	if m == nil {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		target, err := netns.GetFromName(m.ns)
		if err == nil {
			err = netns.Set(target)
			target.Close()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// dialContext connects to an address as the machine sees it.
func (m *machine) dialContext(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	err = m.inside(func() (err error) {
		conn, err = (&net.Dialer{Timeout: patience}).DialContext(ctx, network, addr)
		return err
	})
	return conn, err
}

// reach makes a listener of the machine reachable here, and gives where.
func (m *machine) reach(addr string) string {
	m.site.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.site.Fatal(err)
	}
	m.site.Cleanup(func() { l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			go m.carry(near, addr)
		}
	}()
	return l.Addr().String()
}

// carry takes a connection on to an address of the machine.
func (m *machine) carry(near net.Conn, addr string) {
	defer near.Close()
	far, err := m.dialContext(m.site.Context(), "tcp", addr)
	if err != nil {
		return
	}
	defer far.Close()
	back := make(chan struct{})
	go func() {
		defer close(back)
		_, _ = io.Copy(near, far)
		near.Close()
	}()
	_, _ = io.Copy(far, near)
	far.Close()
	<-back
}

// client is a client of the platform with these credentials, whose API is on the machine.
func (m *machine) client(path string) (*client.Client, error) {
	cfg, err := client.LoadConfig(path)
	if err != nil {
		return nil, err
	}
	if m != nil {
		at, ok := strings.CutPrefix(cfg.Endpoint, "https://")
		if !ok {
			return nil, errors.New("the endpoint is " + cfg.Endpoint)
		}
		cfg.Endpoint = "https://" + m.reach(at)
	}
	return client.New(*cfg)
}
