package bench

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/network"
	"spillway.dev/spillway/internal/service"
)

// What a round of the network measures.
const (
	streamFor  = 250 * time.Millisecond
	roundTrips = 1000
	firsts     = 200
)

// serviceCounts are the numbers of service addresses that first packets are compared at.
var serviceCounts = [2]int{10, 10_000}

// networkPaths measures groups of one network on two hosts, beside the same two namespaces connected otherwise: by one cable
// ("veth"), by as many cables as they have, with plain routing ("routed") and with the kernel's VXLAN in between ("vxlan"),
// both without a single rule; and beside a group of the same host ("local"). Hosts are namespaces, and cables veth pairs:
// what is measured is processor time, for the wire costs nothing.
func networkPaths(ctx context.Context, o Options) (*Report, error) {
	r := newReport("network")
	few, err := newPaths(ctx, serviceCounts[0])
	if err != nil {
		return nil, err
	}
	defer few.close()
	many, err := newPaths(ctx, serviceCounts[1])
	if err != nil {
		return nil, err
	}
	defer many.close()
	rounds := max(o.Runs, 3) // single streams differ by a fifth
	rates, trips := map[string][]float64{}, map[string]sample{}
	var first [2]sample
	for i := range rounds + 1 {
		for _, p := range few.paths {
			if err := few.follow(ctx); err != nil {
				return nil, err
			}
			rate, err := few.stream(p.addr)
			if err != nil {
				return nil, fmt.Errorf("stream by %s: %w", p.name, err)
			}
			trip, err := few.roundTrip(p.addr)
			if err != nil {
				return nil, fmt.Errorf("round trips by %s: %w", p.name, err)
			}
			if i > 0 { // the first round warms up
				rates[p.name], trips[p.name] = append(rates[p.name], rate), append(trips[p.name], trip)
			}
		}
		for j, p := range []*paths{few, many} {
			took, err := p.firstPacket()
			if err != nil {
				return nil, fmt.Errorf("first packet: %w", err)
			}
			if i > 0 {
				first[j] = append(first[j], took)
			}
		}
		o.progress("network", i, rounds)
	}
	r.fillNetwork(rates, trips, first)
	return r, ctx.Err()
}

func (r *Report) fillNetwork(rates map[string][]float64, trips map[string]sample, first [2]sample) {
	for name := range rates {
		f := r.Ours
		if name != "overlay" {
			f = Figures{}
			r.Peers[name] = f
			var ratios []float64
			for i, rate := range rates[name] {
				ratios = append(ratios, rates["overlay"][i]/rate)
			}
			r.Ratios["throughputOver_"+name] = round(median(ratios))
			r.Ratios["roundTripOver_"+name] = pairedRatio(trips["overlay"], trips[name])
		}
		f["gigabitsPerSecond"] = round(median(rates[name]))
		f["roundTripP50Ms"] = fineMs(median(trips[name]))
	}
	for i, n := range serviceCounts {
		r.Ours[fmt.Sprintf("firstPacketAt%dServiceAddressesP50Ms", n)] = fineMs(median(first[i]))
	}
	r.Ratios["firstPacket10000Over10"] = pairedRatio(first[1], first[0])
}

// fineMs is a short time in milliseconds.
func fineMs(d time.Duration) float64 { return float64(d.Round(10*time.Nanosecond)) / 1e6 }

// path is a way between the two namespaces: where the far one is by it.
type path struct{ name, addr string }

// paths are two hosts with a group each, and the ways between the groups.
type paths struct {
	all      []*namespace
	networks []*network.Network
	groups   [3]*namespace // near, far, near's neighbour
	paths    []path
	services []network.Service
}

var (
	benchRange  = netip.MustParsePrefix("10.99.0.0/16")
	benchAddrs  = [3]netip.Addr{netip.MustParseAddr("10.99.1.1"), netip.MustParseAddr("10.99.2.1"), netip.MustParseAddr("10.99.1.2")}
	benchBlocks = [2]netip.Prefix{netip.MustParsePrefix("10.99.1.0/24"), netip.MustParsePrefix("10.99.2.0/24")}
	benchHosts  = [2]netip.Addr{netip.MustParseAddr("192.0.2.11"), netip.MustParseAddr("192.0.2.12")}
)

const (
	benchNetwork = 7
	streamPort   = ":9001"
	echoPort     = ":9002"
	packetPort   = 9003
)

func newPaths(ctx context.Context, services int) (_ *paths, err error) {
	p := &paths{paths: []path{{"veth", "10.98.0.2"}, {"overlay", benchAddrs[1].String()}, {"routed", "10.97.2.2"}, {"vxlan", "10.96.2.2"}, {"local", benchAddrs[2].String()}}}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	for range 7 {
		ns, err := newNamespace()
		if err != nil {
			return nil, err
		}
		p.all = append(p.all, ns)
	}
	hosts, plain := p.all[0:2], p.all[2:4]
	p.groups = [3]*namespace(p.all[4:7])
	if err := p.cable(hosts, plain); err != nil {
		return nil, err
	}
	for i, h := range hosts {
		if err := p.openHost(ctx, i, h); err != nil {
			return nil, err
		}
	}
	for i := range services {
		a := netip.AddrFrom4([4]byte{10, 32, byte(i >> 8), byte(i)})
		to := []netip.AddrPort{netip.AddrPortFrom(benchAddrs[1], packetPort)}
		p.services = append(p.services, network.Service{ServiceKey: network.ServiceKey{Network: benchNetwork, Addr: a},
			Ports: []service.RoutePort{{Number: 80, Protocol: "UDP", Targets: to}}})
	}
	if err := p.networks[0].SetServices(ctx, p.services, nil); err != nil {
		return nil, err
	}
	return p, p.serve()
}

// cable connects everything but the platform's part of it.
func (p *paths) cable(hosts, plain []*namespace) error {
	const inside = 1450 // what fits through a tunnel
	near, far := p.groups[0], p.groups[1]
	return errors.Join(
		connect(end{hosts[0], "uplink", "192.0.2.11/24", 0}, end{hosts[1], "uplink", "192.0.2.12/24", 0}),
		connect(end{near, "direct", "10.98.0.1/24", 0}, end{far, "direct", "10.98.0.2/24", 0}),
		connect(end{plain[0], "uplink", "192.0.2.21/24", 0}, end{plain[1], "uplink", "192.0.2.22/24", 0}),
		connect(end{near, "routed", "10.97.1.2/24", 0}, end{plain[0], "routed", "10.97.1.1/24", 0}),
		connect(end{far, "routed", "10.97.2.2/24", 0}, end{plain[1], "routed", "10.97.2.1/24", 0}),
		near.route("10.97.2.0/24", "10.97.1.1"), far.route("10.97.1.0/24", "10.97.2.1"),
		plain[0].route("10.97.2.0/24", "192.0.2.22"), plain[1].route("10.97.1.0/24", "192.0.2.21"),
		connect(end{near, "tunnelled", "10.96.1.2/24", inside}, end{plain[0], "tunnelled", "10.96.1.1/24", inside}),
		connect(end{far, "tunnelled", "10.96.2.2/24", inside}, end{plain[1], "tunnelled", "10.96.2.1/24", inside}),
		tunnel(end{plain[0], "tunnel", "10.95.0.1/24", inside}, "192.0.2.21", "192.0.2.22"),
		tunnel(end{plain[1], "tunnel", "10.95.0.2/24", inside}, "192.0.2.22", "192.0.2.21"),
		near.route("10.96.2.0/24", "10.96.1.1"), far.route("10.96.1.0/24", "10.96.2.1"),
		plain[0].route("10.96.2.0/24", "10.95.0.2"), plain[1].route("10.96.1.0/24", "10.95.0.1"),
	)
}

// follow does what an agent does every second.
func (p *paths) follow(ctx context.Context) error {
	var errs []error
	for _, n := range p.networks {
		errs = append(errs, n.FollowRoutes(ctx))
	}
	return errors.Join(errs...)
}

// openHost opens the network of a host, with its groups.
func (p *paths) openHost(ctx context.Context, i int, h *namespace) error {
	var n *network.Network
	if err := h.do(func() (err error) {
		n, err = network.Open(ctx, network.Config{Instance: fmt.Sprintf("be0%d", i), CIDR: benchRange})
		return err
	}); err != nil {
		return err
	}
	p.networks = append(p.networks, n)
	other := 1 - i
	if err := n.SetOverlay(ctx, network.Overlay{Underlay: benchHosts[i], Networks: []network.OverlayNetwork{{Number: benchNetwork, VNI: 7}},
		Peers: []network.Peer{{Underlay: benchHosts[other], Blocks: []netip.Prefix{benchBlocks[other]}}}}); err != nil {
		return err
	}
	for g, addr := range benchAddrs {
		if !benchBlocks[i].Contains(addr) {
			continue
		}
		if err := n.Attach(ctx, network.Slot{Index: uint32(g + 1), Addr: addr, NetNS: p.groups[g].file}); err != nil {
			return err
		}
		if err := n.Join(ctx, network.Membership{Addr: addr, Network: benchNetwork}); err != nil {
			return err
		}
	}
	return nil
}

func (p *paths) close() {
	for _, n := range p.networks {
		n.Close()
	}
	for _, ns := range p.all {
		ns.close()
	}
}

// serve starts what the far groups answer with: a sink, an echo of bytes, and an echo of packets.
func (p *paths) serve() error {
	for _, g := range p.groups[1:] {
		if err := g.do(func() error {
			return errors.Join(accept(streamPort, sink), accept(echoPort, echo))
		}); err != nil {
			return err
		}
	}
	s, err := p.packetSocket(p.groups[1], &unix.SockaddrInet4{Port: packetPort})
	if err != nil {
		return err
	}
	p.groups[1].apart(func() {
		defer unix.Close(s)
		buf := make([]byte, 64)
		for {
			n, from, err := unix.Recvfrom(s, buf, 0)
			if err != nil || n == 0 || unix.Sendto(s, buf[:n], 0, from) != nil {
				return
			}
		}
	})
	return nil
}

// accept serves connections at a port for as long as the program lives.
func accept(at string, serve func(fd int)) error {
	l, err := net.Listen("tcp4", at)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go blocking(c, func(fd int) error { serve(fd); return nil })
		}
	}()
	return nil
}

// blocking gives a connection's descriptor to a function that waits in the kernel, not in Go's poller: what is measured is
// the network.
func blocking(c net.Conn, f func(fd int) error) error {
	defer c.Close()
	file, err := c.(*net.TCPConn).File()
	if err != nil {
		return err
	}
	defer file.Close()
	return f(int(file.Fd()))
}

// The ends of a stream have a processor each, if there are two: where a scheduler puts them changes by itself, and more than the
// way between them does. Round trips are the scheduler's: their ends would sleep too deeply.
const (
	nearProcessor = 0
	farProcessor  = 1
)

// alone does something on a thread that stays on one of the processors that it may use, and ends with it.
func alone(processor int, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := stayOn(processor)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

func stayOn(processor int) error {
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return fmt.Errorf("ask for processors: %w", err)
	}
	if may.Count() <= processor {
		return nil
	}
	for i := 0; ; i++ {
		if !may.IsSet(i) {
			continue
		}
		if processor == 0 {
			var one unix.CPUSet
			one.Set(i)
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				return fmt.Errorf("stay on processor %d: %w", i, err)
			}
			return nil
		}
		processor--
	}
}

func sink(fd int) {
	_ = alone(farProcessor, func() error {
		buf := make([]byte, 256<<10)
		for {
			if n, err := unix.Read(fd, buf); err != nil || n == 0 {
				return err
			}
		}
	})
}

func echo(fd int) {
	var b [1]byte
	for {
		if n, err := unix.Read(fd, b[:]); err != nil || n == 0 {
			return
		}
		if _, err := unix.Write(fd, b[:]); err != nil {
			return
		}
	}
}

// dial connects from the near group.
func (p *paths) dial(to string, f func(fd int) error) error {
	var c net.Conn
	if err := p.groups[0].do(func() (err error) {
		c, err = net.DialTimeout("tcp4", to, 5*time.Second)
		return err
	}); err != nil {
		return err
	}
	return blocking(c, f)
}

// stream sends as much as goes through one connection and gives gigabits per second.
func (p *paths) stream(to string) (rate float64, err error) {
	err = p.dial(to+streamPort, func(fd int) error {
		return alone(nearProcessor, func() error {
			buf := make([]byte, 256<<10)
			var sent int
			begin := now()
			for now()-begin < streamFor {
				n, err := unix.Write(fd, buf)
				if err != nil {
					return err
				}
				sent += n
			}
			rate = float64(sent) * 8 / float64(now()-begin)
			return nil
		})
	})
	return rate, err
}

// roundTrip is the median time of one byte there and back.
func (p *paths) roundTrip(to string) (trip time.Duration, err error) {
	var list []time.Duration
	err = p.dial(to+echoPort, func(fd int) error {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
			return err
		}
		var b [1]byte
		for range roundTrips {
			begin := now()
			if _, err := unix.Write(fd, b[:]); err != nil {
				return err
			}
			if _, err := unix.Read(fd, b[:]); err != nil {
				return err
			}
			list = append(list, now()-begin)
		}
		return nil
	})
	return median(list), err
}

// packetSocket is a socket for packets in a namespace, which waits for a second at most when it is not bound.
func (p *paths) packetSocket(ns *namespace, at unix.Sockaddr) (fd int, err error) {
	err = ns.do(func() error {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if at != nil {
			return unix.Bind(fd, at)
		}
		return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})
	})
	return fd, err
}

// firstPacket is the median time from the first packet of a new flow through a service address to its answer.
func (p *paths) firstPacket() (time.Duration, error) {
	var list []time.Duration
	for i := range firsts {
		fd, err := p.packetSocket(p.groups[0], nil)
		if err != nil {
			return 0, err
		}
		to := &unix.SockaddrInet4{Port: 80, Addr: p.services[(i*7919)%len(p.services)].Addr.As4()}
		begin := now()
		if err = unix.Sendto(fd, []byte{1}, 0, to); err == nil {
			_, _, err = unix.Recvfrom(fd, make([]byte, 64), 0)
		}
		took := now() - begin
		unix.Close(fd)
		if err != nil {
			return 0, err
		}
		list = append(list, took)
	}
	return median(list), nil
}
