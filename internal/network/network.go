// Package network gives every group an address of its own and keeps groups of different networks apart.
//
// The plan (names, addresses, rules, elements) is pure; a thin part applies it through netlink. Traffic is routed, not
// bridged: each slot has a veth pair whose far end is eth0 of the slot's network namespace, the group's address is a
// /32 there, and the gateway is one address on the host's loopback device. All filtering is one nftables table per
// platform instance whose number of rules is constant; what changes are elements of maps and sets.
//
// It must never start a process, never touch a link, table or route of another instance, and never do more than one
// netlink change when a group joins its network. Start reading at Open, then ruleset.go.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/group"
)

// Config says what one platform instance owns of a machine's network.
type Config struct {
	Instance string         // 4 hexadecimal digits, unique on the machine: part of every name
	CIDR     netip.Prefix   // addresses of groups; its first address is the gateway (see ChooseCIDR)
	Public   []netip.Prefix // addresses that groups of type Public get; none: no public addresses
	Log      *slog.Logger
	FastPath FastPath // where there is an overlay: package fastpath; "": FastAuto
}

// Slot is a ready-made sandbox network: a veth pair and an address, in a network namespace that nothing else uses.
type Slot struct {
	Index uint32     // unique in the instance: names the link
	Addr  netip.Addr // inside Config.CIDR; outside with Network
	NetNS *os.File   // needed by Attach only
	// Network is the virtual network that the address is of, as Virtual numbers it; 0: the address is inside Config.CIDR.
	// Needed by Attach only.
	Network uint32
}

// Membership connects an address with a network. Addresses without one reach nothing and are reached by the host only.
type Membership struct {
	Addr    netip.Addr
	Network uint32       // groups with the same number reach each other; never 0
	Public  netip.Addr   // invalid: none
	Ports   []group.Port // ports that are reachable at Public
}

// Network is one instance's part of this machine's network. All methods are safe for concurrent use. It stays bound to
// the network namespace in which Open was called.
type Network struct {
	cfg  Config
	plan plan
	log  *slog.Logger

	home  *os.File        // the network namespace of the machine
	route *netlink.Handle // slow paths: listing
	xfrm  *netlink.Handle // nil: the kernel encrypts nothing

	mu   sync.Mutex // guards nf, have and fast: batches are serial in the kernel anyway
	nf   *socket
	have elements // what the table's sets hold of groups

	rtMu sync.Mutex // guards rt
	rt   *socket

	serviceMu sync.Mutex // guards what follows; taken before mu, so that groups need not wait for service addresses
	services  serviceStates
	list      *socket

	fast fast

	spaceMu sync.Mutex // guards what follows
	spaces  map[uint32][]netip.Prefix

	linkMTU atomic.Uint32 // of new groups' links

	overlayMu sync.Mutex // guards what follows; taken before mu
	tunnel    tunnel     // as the rules say
	way       *socket
	watch     *socket // for lists of what is not ours
}

// Open makes the table, the gateway address and the public routes of an instance, or adopts those that are there.
// Errors: conflict when another instance has the range.
func Open(ctx context.Context, cfg Config) (*Network, error) {
	n, err := connect(cfg)
	if err != nil {
		return nil, err
	}
	if err := n.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open network %s of instance %s: %w", cfg.CIDR, cfg.Instance, err), n.Close())
	}
	n.log.InfoContext(ctx, "network ready", "instance", cfg.Instance, "cidr", cfg.CIDR.String(), "gateway", n.plan.gateway.String(), "addresses", len(n.have.guard))
	return n, nil
}

// connect opens the sockets of an instance's network and changes nothing.
func connect(cfg Config) (*Network, error) {
	p, err := newPlan(cfg)
	if err != nil {
		return nil, err
	}
	_, err = os.Stat("/proc/sys/net/ipv6/conf")
	p.ipv6 = err == nil
	n := &Network{cfg: cfg, plan: p, log: cfg.Log, spaces: map[uint32][]netip.Prefix{}}
	n.linkMTU.Store(mostMTU)
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	if err := n.dial(); err != nil {
		return nil, errors.Join(fmt.Errorf("open network of instance %s: %w", cfg.Instance, err), n.Close())
	}
	return n, nil
}

func (n *Network) dial() error {
	var err error
	if n.home, err = os.Open("/proc/thread-self/ns/net"); err != nil {
		return fmt.Errorf("open own network namespace: %w", err)
	}
	if n.route, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return fmt.Errorf("open route socket: %w", err)
	}
	if n.xfrm, err = netlink.NewHandle(unix.NETLINK_XFRM); err != nil {
		n.xfrm = nil // there is no such family
	}
	if n.rt, err = dial(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if n.way, err = dial(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if n.list, err = dial(unix.NETLINK_NETFILTER); err != nil {
		return err
	}
	if n.watch, err = dial(unix.NETLINK_NETFILTER); err != nil {
		return err
	}
	n.nf, err = dial(unix.NETLINK_NETFILTER)
	return err
}

func (n *Network) open() error {
	if err := n.checkPublic(); err != nil {
		return err
	}
	if err := n.claimGateway(); err != nil {
		return err
	}
	// Forwarding is the one setting that belongs to the whole machine; groups reach nothing without it.
	if err := writeSysctl("net/ipv4/ip_forward", "1"); err != nil {
		return err
	}
	if err := n.addPublic(); err != nil {
		return err
	}
	way, had, err := n.adoptOverlay()
	if err != nil {
		return err
	}
	if had { // nobody has kept its maps up to date since
		if err := n.fastEnd(true); err != nil {
			return err
		}
	}
	if err := n.applyRuleset(way, had); err != nil {
		return err
	}
	n.tunnel = way
	return n.readGroups() // service addresses are read when they are first changed
}

// Gateway is the address where groups find the platform: their default route and their DNS server.
func (n *Network) Gateway() netip.Addr { return n.plan.gateway }

// CIDR is the range that groups' addresses come from.
func (n *Network) CIDR() netip.Prefix { return n.cfg.CIDR }

// Addresses are those of all slots.
func (n *Network) Addresses() []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Keys(n.have.guard))
}

// Close closes the sockets; links, addresses and rules stay, and groups keep their network.
func (n *Network) Close() error {
	var errs []error
	if n.route != nil {
		n.route.Close()
	}
	if n.xfrm != nil {
		n.xfrm.Close()
	}
	if n.home != nil {
		errs = append(errs, n.home.Close())
	}
	for _, s := range []*socket{n.rt, n.way, n.nf, n.list, n.watch} {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	return errors.Join(errs...)
}

// Join puts an address into its network, and its public ports into the map. It is one netlink batch; joining again
// with the same membership changes nothing, with another one replaces it.
func (n *Network) Join(_ context.Context, m Membership) error {
	if err := n.plan.check(m); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	want := membershipElements(m)
	if err := n.commit(func(have elements) (del, add []element) { return have.replace(m.Addr, want) }); err != nil {
		return fmt.Errorf("join %s to network %d: %w", m.Addr, m.Network, err)
	}
	return nil
}

// Leave takes addresses out of their networks and forgets their connections, so that the next owner of an address
// inherits none. Addresses without a membership are skipped.
func (n *Network) Leave(_ context.Context, addrs ...netip.Addr) error {
	return n.leave(addrs, func(elements, int) bool { return true })
}

// LeaveSlots is Leave for the addresses of slots, as far as they are theirs still: an address may belong to another slot
// that a group has got meanwhile.
func (n *Network) LeaveSlots(_ context.Context, slots ...Slot) error {
	addrs := make([]netip.Addr, len(slots))
	for i, s := range slots {
		addrs[i] = s.Addr
	}
	return n.leave(addrs, func(have elements, i int) bool {
		held, ok := have.guard[addrs[i]]
		return !ok || held == guardElement(n.plan.link(slots[i].Index), addrs[i])
	})
}

// leave takes addresses out of their networks that may be, by what the table holds and their index.
func (n *Network) leave(addrs []netip.Addr, may func(have elements, i int) bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var left []netip.Addr
	err := n.commit(func(have elements) (del, add []element) {
		seen := map[netip.Addr]bool{}
		left = left[:0]
		for i, a := range addrs {
			if seen[a] || !may(have, i) {
				continue
			}
			seen[a] = true
			left = append(left, a)
			d, _ := have.replace(a, nil)
			del = append(del, d...)
		}
		return del, nil
	})
	if err != nil {
		return fmt.Errorf("leave networks: %w", err)
	}
	return n.forgetConnections(left)
}

// commit applies a change, computed from what the table holds, in one batch and records it. When the kernel disagrees
// with the record (somebody else changed the table), the record is read again and the change computed anew, once.
func (n *Network) commit(change func(have elements) (del, add []element)) error {
	del, add := change(n.have)
	if err := n.fastRefuse(del); err != nil {
		return err
	}
	defer func() { n.fastAllow(del, add) }()
	err := n.nf.do(encodeElements(n.plan.table, del, add)...)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) {
		if readErr := n.readGroups(); readErr != nil {
			return errors.Join(err, readErr)
		}
		del, add = change(n.have)
		if err := n.fastRefuse(del); err != nil {
			return err
		}
		err = n.nf.do(encodeElements(n.plan.table, del, add)...)
	}
	if err != nil {
		return err
	}
	n.have.apply(del, add)
	return nil
}

func writeSysctl(name, value string) error {
	path := "/proc/sys/" + name
	if old, err := os.ReadFile(path); err == nil && len(old) > 0 && string(old[:len(old)-1]) == value {
		return nil // also on machines where /proc/sys is read-only but right
	}
	if err := os.WriteFile(path, []byte(value), 0); err != nil {
		return fmt.Errorf("set %s=%s: %w", name, value, err)
	}
	return nil
}
