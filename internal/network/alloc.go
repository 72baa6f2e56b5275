package network

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"spillway.dev/spillway/internal/fault"
)

// Quarantine is how long a released address is not given out again while others are free: caches of names and of
// connections that still point to it have expired by then.
const Quarantine = 2 * time.Minute

// Pool hands out the addresses of a range. It does no IO. Safe for concurrent use.
type Pool struct {
	mu     sync.Mutex
	ranges []netip.Prefix
	skip   uint64            // addresses left out at the beginning and (network, broadcast) of the first range
	next   uint64            // first address never given out, as an offset into all ranges
	size   uint64            // of all ranges
	taken  map[uint64]bool   // given out or reserved
	freed  []released        // oldest first
	index  map[uint64]uint64 // offset → its serial in freed, to skip entries that were reserved meanwhile
	serial uint64
}

type released struct {
	offset uint64
	serial uint64
	at     time.Time
}

// NewGroupPool is the pool of a groups' range: all but the network address, the gateway and the broadcast address.
func NewGroupPool(cidr netip.Prefix) *Pool {
	p := newPool([]netip.Prefix{cidr})
	p.next = 2
	p.size--
	p.skip = 2
	return p
}

// NewPublicPool is the pool of public ranges: every address of them.
func NewPublicPool(ranges []netip.Prefix) *Pool { return newPool(ranges) }

func newPool(ranges []netip.Prefix) *Pool {
	p := &Pool{ranges: ranges, taken: map[uint64]bool{}, index: map[uint64]uint64{}}
	for _, r := range ranges {
		p.size += 1 << (32 - r.Bits())
	}
	return p
}

// Alloc gives a free address: a fresh one while there are any, then the one released longest ago.
// Errors: exhausted.
func (p *Pool) Alloc(now time.Time) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trim()
	if len(p.freed) > 0 && now.Sub(p.freed[0].at) >= Quarantine {
		return p.reuse(), nil
	}
	for ; p.next < p.size; p.next++ {
		if _, waiting := p.index[p.next]; !p.taken[p.next] && !waiting {
			p.taken[p.next] = true
			p.next++
			return p.addr(p.next - 1), nil
		}
	}
	if len(p.freed) > 0 {
		return p.reuse(), nil
	}
	return netip.Addr{}, fault.New(fault.Exhausted, "", "all %d addresses of %v are in use: delete groups or give the platform a larger range", p.size-p.skip, p.ranges)
}

func (p *Pool) reuse() netip.Addr {
	r := p.freed[0]
	p.freed = p.freed[1:]
	delete(p.index, r.offset)
	p.taken[r.offset] = true
	return p.addr(r.offset)
}

// trim drops entries at the head that are no longer free.
func (p *Pool) trim() {
	for len(p.freed) > 0 && p.index[p.freed[0].offset] != p.freed[0].serial {
		p.freed = p.freed[1:]
	}
}

// Reserve marks an address as given out, for instance one that a running group has after a restart.
// Errors: invalid when it is not of the pool, conflict when it is given out.
func (p *Pool) Reserve(a netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	o, ok := p.offset(a)
	if !ok {
		return fault.New(fault.Invalid, "", "address %s is not one of %v", a, p.ranges)
	}
	if p.taken[o] {
		return fault.New(fault.Conflict, "", "address %s is in use", a)
	}
	p.taken[o] = true
	delete(p.index, o)
	return nil
}

// Release takes an address back. One that is not given out is left alone.
func (p *Pool) Release(a netip.Addr, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	o, ok := p.offset(a)
	if !ok || !p.taken[o] {
		return
	}
	delete(p.taken, o)
	p.serial++
	p.index[o] = p.serial
	p.freed = append(p.freed, released{offset: o, serial: p.serial, at: now})
}

// InUse is the number of addresses given out.
func (p *Pool) InUse() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.taken)
}

func (p *Pool) addr(offset uint64) netip.Addr {
	for _, r := range p.ranges {
		size := uint64(1) << (32 - r.Bits())
		if offset < size {
			var b [4]byte
			binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(r.Addr().AsSlice())+uint32(offset))
			return netip.AddrFrom4(b)
		}
		offset -= size
	}
	return netip.Addr{} // unreachable: offsets are below size
}

func (p *Pool) offset(a netip.Addr) (uint64, bool) {
	var before uint64
	for _, r := range p.ranges {
		if r.Contains(a) {
			o := before + uint64(binary.BigEndian.Uint32(a.AsSlice())-binary.BigEndian.Uint32(r.Addr().AsSlice()))
			return o, o >= p.skip && o < p.size
		}
		before += 1 << (32 - r.Bits())
	}
	return 0, false
}
