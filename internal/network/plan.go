package network

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"spillway.dev/spillway/internal/fault"
)

// mostMTU is the MTU of group links: what every path of the internet carries. Where groups speak to those of other hosts it
// may have to be smaller.
const mostMTU = 1500

// Ranges that instances choose from: /16 blocks of 10.64.0.0/10, which common clusters and engines leave alone.
var (
	pool     = netip.MustParsePrefix("10.64.0.0/10")
	metadata = netip.MustParsePrefix("169.254.0.0/16")
	// clusters is where Kubernetes' services are by default: no range of groups, so that a network may have them.
	clusters  = netip.MustParsePrefix("10.96.0.0/12")
	blockBits = 16
)

// plan is everything about an instance that follows from its configuration.
type plan struct {
	instance string
	table    string
	links    string // prefix of host link names
	cidr     netip.Prefix
	gateway  netip.Addr
	public   []netip.Prefix
	group    uint32 // link group in which links die together
	ipv6     bool   // the kernel knows IPv6
	tunnel   tunnel // set while rules are planned
}

func newPlan(cfg Config) (plan, error) {
	if len(cfg.Instance) != 4 || strings.Trim(cfg.Instance, "0123456789abcdef") != "" {
		return plan{}, fault.New(fault.Invalid, "", "network instance %q must be 4 lower-case hexadecimal digits", cfg.Instance)
	}
	if !cfg.CIDR.Addr().Is4() || cfg.CIDR.Bits() > 29 || cfg.CIDR != cfg.CIDR.Masked() {
		return plan{}, fault.New(fault.Invalid, "", "network range %s must be an IPv4 prefix of at most 29 bits with no host bits set", cfg.CIDR)
	}
	if !slices.Contains([]FastPath{"", FastAuto, FastOn, FastOff}, cfg.FastPath) {
		return plan{}, fault.New(fault.Invalid, "", "fast path %q: it must be %s, %s or %s", cfg.FastPath, FastAuto, FastOn, FastOff)
	}
	for _, p := range cfg.Public {
		if !p.Addr().Is4() || p != p.Masked() {
			return plan{}, fault.New(fault.Invalid, "", "public range %s must be an IPv4 prefix with no host bits set", p)
		}
		if p.Overlaps(cfg.CIDR) {
			return plan{}, fault.New(fault.Invalid, "", "public range %s overlaps the groups' range %s: choose another", p, cfg.CIDR)
		}
	}
	return plan{
		instance: cfg.Instance,
		table:    tablePrefix + cfg.Instance,
		links:    "sw" + cfg.Instance + "-",
		cidr:     cfg.CIDR,
		gateway:  cfg.CIDR.Addr().Next(),
		public:   cfg.Public,
		group:    0x53570000 | uint32(hash(cfg.Instance)&0xffff),
	}, nil
}

// link is the host's end of a slot. At most 15 bytes: the kernel's limit.
func (p plan) link(index uint32) string { return fmt.Sprintf("%s%x", p.links, index) }

// mac is the hardware address of one end of a slot: locally administered, the same after every restart, so that both
// ends can know each other without asking.
func (p plan) mac(index uint32, inside bool) [6]byte {
	m := [6]byte{0x02, 0x53}
	if inside {
		m[0] = 0x06
	}
	binary.BigEndian.PutUint32(m[2:], index)
	return m
}

func (p plan) check(m Membership) error {
	if of := m.Network; !p.place(m.Addr, of) && !p.place(m.Addr, 0) || m.Addr == p.cidr.Addr() {
		return fault.New(fault.Invalid, "", "address %s is not one of the groups' range %s, and of no virtual network", m.Addr, p.cidr)
	}
	if m.Network == 0 {
		return fault.New(fault.Invalid, "", "address %s: network 0 means none and cannot be joined", m.Addr)
	}
	if !m.Public.IsValid() {
		return nil
	}
	for _, r := range p.public {
		if r.Contains(m.Public) {
			return nil
		}
	}
	return fault.New(fault.Invalid, "", "public address %s is in none of the public ranges %v: add its range with --public-addresses", m.Public, p.public)
}

// ChooseCIDR picks the range of a new instance: a block that overlaps nothing in use. The instance's id spreads the
// choice; another instance may still choose the same at the same moment, so the range has to be claimed (see Claim).
func ChooseCIDR(instance string, used []netip.Prefix) (netip.Prefix, error) {
	blocks := 1 << (blockBits - pool.Bits())
	start := int(hash(instance) % uint64(blocks))
	base := binary.BigEndian.Uint32(pool.Addr().AsSlice())
	for i := range blocks {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], base+uint32((start+i)%blocks)<<(32-blockBits))
		candidate := netip.PrefixFrom(netip.AddrFrom4(b), blockBits)
		if !candidate.Overlaps(clusters) && !overlapsAny(candidate, used) {
			return candidate, nil
		}
	}
	return netip.Prefix{}, fault.New(fault.Exhausted, "", "no free /%d block is left in %s: every one overlaps an address or route of this machine", blockBits, pool)
}

func overlapsAny(p netip.Prefix, used []netip.Prefix) bool {
	for _, u := range used {
		if u.Bits() > 0 && u.Overlaps(p) {
			return true
		}
	}
	return false
}

func hash(s string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(s)) // never fails
	return h.Sum64()
}
