package network

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/network/overlay"
)

// fleet is several hosts on one wire: namespaces whose uplinks are ports of a bridge.
type fleet struct {
	*testing.T
	wire  *os.File
	mtu   int
	hosts []*hostWorld
}

// hostWorld is a host of a fleet: host n has 192.0.2.1n, and gives its groups addresses of 10.99.n.0/24.
type hostWorld struct {
	*world
	number  int
	overlay Overlay // as it was last set
}

// testNetworks are networks with their VXLAN ids.
var testNetworks = []OverlayNetwork{{Number: 7, VNI: 1007}, {Number: 8, VNI: 1008}}

// newPair makes two hosts with a group of network 7 each, number 1, that reach each other.
func newPair(t *testing.T) (f *fleet, a, b *hostWorld) {
	t.Helper()
	f = newFleet(t, 2, 1500)
	f.connect()
	a, b = f.hosts[0], f.hosts[1]
	a.group(1, 7)
	b.group(1, 7)
	a.settled(1, b, 1)
	return f, a, b
}

func newFleet(t *testing.T, n, mtu int) *fleet {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	f := &fleet{T: t, wire: newNS(t), mtu: mtu}
	if err := within1(f.wire, func() error {
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "wire", MTU: mtu}, MulticastSnooping: new(bool)}); err != nil {
			return err
		}
		// A wire does not look into packets.
		if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("0"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return up("wire", "192.0.2.1/24")
	}); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		h := &hostWorld{number: i + 1, world: &world{t: t, host: f.plug(fmt.Sprintf("192.0.2.%d", 11+i)), ns: map[uint32]*os.File{}}}
		if i == 2 { // the third host of a fleet does without the way around the stack
			h.fastPath = FastOff
		}
		h.open()
		f.hosts = append(f.hosts, h)
	}
	return f
}

// plug makes a machine with an address on the wire.
func (f *fleet) plug(addr string) *os.File {
	f.Helper()
	ns := newNS(f.T)
	port := "p" + fmt.Sprint(ns.Fd())
	if err := errors.Join(within1(f.wire, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port, MTU: f.mtu}, PeerName: "uplink", PeerNamespace: netlink.NsFd(ns.Fd())}
		if err := netlink.LinkAdd(veth); err != nil {
			return err
		}
		bridge, err := netlink.LinkByName("wire")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetMaster(veth, bridge), netlink.LinkSetUp(veth))
	}), within1(ns, func() error {
		l, err := netlink.LinkByName("uplink")
		if err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetMTU(l, f.mtu), netlink.LinkSetUp(lo), up("uplink", addr+"/24")); err != nil {
			return err
		}
		// A way out, so that what has no better route leaves by it.
		return netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.IPv4(192, 0, 2, 1)})
	})); err != nil {
		f.Fatal(err)
	}
	return ns
}

func (h *hostWorld) underlay() netip.Addr {
	return netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + h.number)})
}

func (h *hostWorld) addr(index uint32) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 99, byte(h.number), byte(index)})
}

func (h *hostWorld) peer() Peer {
	return Peer{Underlay: h.underlay(), Blocks: []netip.Prefix{netip.PrefixFrom(h.addr(0), 24)}}
}

// see sets the host's overlay: it sees these peers.
func (h *hostWorld) see(peers ...*hostWorld) {
	h.t.Helper()
	o := Overlay{Underlay: h.underlay(), Networks: testNetworks}
	for _, p := range peers {
		if p != h {
			o.Peers = append(o.Peers, p.peer())
		}
	}
	h.set(o)
}

func (h *hostWorld) set(o Overlay) {
	h.t.Helper()
	if err := h.net.SetOverlay(context.Background(), o); err != nil {
		h.t.Fatal(err)
	}
	h.overlay = o
}

// connect lets every host see every other.
func (f *fleet) connect() {
	f.Helper()
	for _, h := range f.hosts {
		h.see(f.hosts...)
	}
}

// group makes a group that speaks on port 8080, named HOST.INDEX, in a network; 0: in none.
func (h *hostWorld) group(index, network uint32) *os.File {
	h.t.Helper()
	h.ns[index] = newNS(h.t)
	if err := h.net.Attach(context.Background(), Slot{Index: index, Addr: h.addr(index), NetNS: h.ns[index]}); err != nil {
		h.t.Fatal(err)
	}
	if network != 0 {
		if err := h.net.Join(context.Background(), Membership{Addr: h.addr(index), Network: network}); err != nil {
			h.t.Fatal(err)
		}
	}
	h.speak(h.ns[index], "0.0.0.0:8080", fmt.Sprintf("%d.%d", h.number, index))
	h.carries(h.addr(index).String() + ":8080")
	return h.ns[index]
}

// settled waits until a new device takes packets.
func (h *hostWorld) settled(index uint32, to *hostWorld, peer uint32) {
	h.t.Helper()
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if _, _, err = h.who(h.ns[index], "tcp4", to.addr(peer).String()+":8080"); err == nil {
			return
		}
	}
	h.t.Fatalf("no packet comes from %s to %s: %v", h.addr(index), to.addr(peer), err)
}

// reaches expects that a group of this host reaches another, or does not, by TCP, UDP and ICMP, and is seen as itself.
func (h *hostWorld) reaches(index uint32, to *hostWorld, peer uint32, want bool) {
	h.t.Helper()
	what := fmt.Sprintf("%s to %s", h.addr(index), to.addr(peer))
	var all sync.WaitGroup
	for _, network := range []string{"tcp4", "udp4"} {
		all.Go(func() {
			name, seen, err := h.who(h.ns[index], network, to.addr(peer).String()+":8080")
			if (err == nil) != want || want && (name != fmt.Sprintf("%d.%d", to.number, peer) || seen != h.addr(index).String()) {
				h.t.Errorf("%s by %s: met %q, seen as %q, %v, want reached %v", what, network, name, seen, err, want)
			}
		})
	}
	all.Go(func() {
		if got := echo(h.ns[index], to.addr(peer), 56); got != want {
			h.t.Errorf("%s by ICMP: answered %v, want %v", what, got, want)
		}
	})
	all.Wait()
}

// echo sends an echo request and says whether it was answered.
func echo(ns *os.File, to netip.Addr, size int) bool {
	err := within1(ns, func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		limit := unix.NsecToTimeval(patience.Nanoseconds())
		if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return err
		}
		if err := unix.Sendto(s, append([]byte{8, 0, 0, 0, 0, 1, 0, 1}, make([]byte, size)...), 0, &unix.SockaddrInet4{Addr: to.As4()}); err != nil {
			return err
		}
		_, _, err = unix.Recvfrom(s, make([]byte, 100+size), 0)
		return err
	})
	return err == nil
}

// answer takes connections until the test ends, and closes each when it has been answered.
func (h *hostWorld) answer(ns *os.File, at string, how func(net.Conn)) {
	h.t.Helper()
	h.in(ns, func() error {
		l, err := net.Listen("tcp4", at)
		if err != nil {
			return err
		}
		h.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					how(c)
				}()
			}
		}()
		return nil
	})
}

// swallow reads connections to their end and answers with a digest of what came.
func (h *hostWorld) swallow(ns *os.File, at string) {
	h.t.Helper()
	h.answer(ns, at, func(c net.Conn) {
		sum := sha256.New()
		_, _ = io.Copy(sum, c)
		_, _ = c.Write(sum.Sum(nil))
	})
}

// bulk sends much over one connection.
func bulk(ns *os.File, to string, size int) error {
	return within1(ns, func() error {
		c, err := net.DialTimeout("tcp4", to, 2*time.Second)
		if err != nil {
			return err
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		body := bytes.Repeat([]byte("0123456789abcdef"), size/16)
		if _, err := c.Write(body); err != nil {
			return err
		}
		if err := c.(*net.TCPConn).CloseWrite(); err != nil {
			return err
		}
		got, err := io.ReadAll(c)
		if want := sha256.Sum256(body); err == nil && !bytes.Equal(got, want[:]) {
			err = fmt.Errorf("%d bytes came out otherwise", size)
		}
		return err
	})
}

// forge makes a packet as another host sends it to this one: UDP from one group's address to another's port 8080 with a text.
func (h *hostWorld) forge(vni uint32, from, dst netip.Addr, text string) []byte {
	udp := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, 9), 8080)
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(text)))
	udp = append(append(udp, 0, 0), text...)
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(udp)))
	ip = append(append(ip, from.AsSlice()...), dst.AsSlice()...)
	var sum uint32
	for i := 0; i < len(ip); i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	under := h.underlay().As4()
	frame := append([]byte{0x0a, 0x53}, under[:]...)
	frame = append(frame, 0x0a, 0x53, 9, 9, 9, 9, 8, 0)
	head := []byte{8, 0, 0, 0, byte(vni >> 16), byte(vni >> 8), byte(vni), 0}
	return append(append(append(head, frame...), ip...), udp...)
}

// sendUDP sends a packet from a namespace.
func sendUDP(ns *os.File, to netip.AddrPort, body []byte) error {
	return within1(ns, func() error {
		c, err := net.Dial("udp4", to.String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(body)
		return err
	})
}

// ear hears what UDP packets come to a group's port.
type ear struct{ heard chan string }

func (h *hostWorld) listen(ns *os.File, at string) *ear {
	h.t.Helper()
	e := &ear{make(chan string, 100)}
	h.in(ns, func() error {
		c, err := net.ListenPacket("udp4", at)
		if err != nil {
			return err
		}
		h.t.Cleanup(func() { c.Close() })
		go func() {
			buf := make([]byte, 2000)
			for {
				n, from, err := c.ReadFrom(buf)
				if err != nil {
					return
				}
				e.heard <- from.(*net.UDPAddr).IP.String() + " " + string(buf[:n])
			}
		}()
		return nil
	})
	return e
}

// next is the next packet, "" when none comes.
func (e *ear) next() string { return e.within(patience) }

// surely is a packet that has to come, however busy the machine is.
func (e *ear) surely() string { return e.within(10 * time.Second) }

func (e *ear) within(d time.Duration) string {
	select {
	case s := <-e.heard:
		return s
	case <-time.After(d):
		return ""
	}
}

// outerPort is where hosts expect VXLAN packets.
func (h *hostWorld) outerPort() netip.AddrPort {
	return netip.AddrPortFrom(h.underlay(), overlay.DefaultPort)
}
