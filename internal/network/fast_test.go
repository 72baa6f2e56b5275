package network

import (
	"context"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// slowPackets are how many packets of a network have left a host through the stack.
func (h *hostWorld) slowPackets() (n uint64) {
	h.t.Helper()
	h.in(h.host, func() error {
		l, err := netlink.LinkByName("sw" + h.net.plan.instance + "v7")
		if err == nil {
			n = l.Attrs().Statistics.TxPackets
		}
		return err
	})
	return n
}

// follow is what the agent does every second.
func (h *hostWorld) follow() {
	h.t.Helper()
	if err := h.net.FollowRoutes(context.Background()); err != nil {
		h.t.Error(err)
	}
}

// anyFast expects that a new connection to port 8080 goes around the stack.
func (h *hostWorld) anyFast(when string, from *os.File, to netip.Addr) {
	h.t.Helper()
	talk, err := h.call(from, "tcp4", to.String()+":8080")
	if err != nil {
		h.t.Errorf("%s: %v", when, err)
		return
	}
	defer talk.Close()
	h.goesFast(when, talk, true)
}

// goesFast expects that a connection answers, by the way around the stack or by the stack.
func (h *hostWorld) goesFast(when string, c *call, want bool) {
	h.t.Helper()
	h.follow()
	fast := false
	for range 3 { // the last packets of a connection before go slowly
		before := h.slowPackets()
		if _, _, err := c.say(); err != nil {
			h.t.Errorf("%s: %v", when, err)
			return
		}
		if fast = h.slowPackets() == before; fast {
			break
		}
	}
	if fast != want {
		h.t.Errorf("%s: goes around the stack: %v, want %v", when, fast, want)
	}
}

// TestFastPath follows connections between groups of two hosts over what may happen to them.
func TestFastPath(t *testing.T) {
	t.Parallel()
	_, a, b := newPair(t)
	b.group(2, 8)
	to := b.addr(1).String() + ":8080"
	talk, err := a.call(a.ns[1], "tcp4", to)
	if err != nil {
		t.Fatal(err)
	}
	a.goesFast("a connection between groups", talk, true)

	// Large packets, and what the counters of both groups say of them.
	b.swallow(b.ns[1], "0.0.0.0:9000")
	if err := bulk(a.ns[1], b.addr(1).String()+":9000", 4<<20); err != nil {
		t.Error(err)
	}
	sent, err := a.net.Stats(Slot{Index: 1})
	if err != nil || sent.TxBytes < 4<<20 {
		t.Errorf("the sender's counters are %+v, %v, want 4 MiB sent", sent, err)
	}
	got, err := b.net.Stats(Slot{Index: 1})
	if err != nil || got.RxBytes < 4<<20 {
		t.Errorf("the receiver's counters are %+v, %v, want 4 MiB received", got, err)
	}

	// Another process: in between it goes through the stack, afterwards around it again.
	a.net.Close()
	a.open()
	a.goesFast("opened again", talk, false)
	a.set(a.overlay)
	a.goesFast("opened and set again", talk, true)

	// Forgotten connections go slowly.
	a.net.mu.Lock()
	err = a.net.fast.path.ForgetFlows()
	a.net.mu.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	a.goesFast("forgotten", talk, false)

	fenced, err := a.call(a.ns[1], "tcp4", to)
	if err != nil {
		t.Fatal(err)
	}
	a.goesFast("before the peer is fenced", fenced, true)
	a.see()
	if name, _, err := fenced.say(); err == nil {
		t.Errorf("a connection to a fenced peer goes on: %q", name)
	}
	a.see(b)

	left, err := a.call(a.ns[1], "tcp4", to)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.net.Join(context.Background(), Membership{Addr: b.addr(1), Network: 8}); err != nil {
		t.Fatal(err)
	}
	if name, _, err := left.say(); err == nil {
		t.Errorf("a connection into another network goes on: %q", name)
	}
}

// TestFastPathReusedPort: a connection by a service address whose ports a direct one had before is translated there and back, and
// a direct one that has the ports of one by a service address leaves that alone.
func TestFastPathReusedPort(t *testing.T) {
	t.Parallel()
	_, a, b := newPair(t)
	a.group(2, 7)
	for _, endpoint := range []netip.Addr{b.addr(1), a.addr(2)} {
		to := endpoint.String() + ":8080"
		a.world.set(both(7, to))
		from := func(to string) *net.TCPConn {
			t.Helper()
			var c net.Conn
			if err := within1(a.ns[1], func() (err error) {
				d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: a.addr(1).AsSlice(), Port: 33_333}, Control: func(_, _ string, c syscall.RawConn) error {
					return c.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
				}}
				c, err = d.Dial("tcp4", to)
				return err
			}); err != nil {
				t.Fatalf("to %s by way of %s: %v", endpoint, to, err)
			}
			tcp := c.(*net.TCPConn)
			t.Cleanup(func() { tcp.Close() })
			return tcp
		}
		direct := from(to)
		if err := direct.SetLinger(0); err != nil {
			t.Fatal(err)
		}
		direct.Close()
		time.Sleep(50 * time.Millisecond)
		served := from(cluster + ":80")
		talk := newCall(served)
		if _, _, err := talk.say(); err != nil {
			t.Errorf("a service address after a direct connection to %s from the same port: %v", endpoint, err)
		}
		from(to)
		if _, _, err := talk.say(); err != nil {
			t.Errorf("a service address beside a direct connection to %s from the same port: %v", endpoint, err)
		}
		served.SetLinger(0)
		served.Close()
	}
}
