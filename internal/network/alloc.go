package network

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"time"

	"spillway.dev/spillway/internal/fault"
)

// Quarantine is how long a released address is not given out again while others are free: caches of names and of
// connections that still point to it have expired by then.
const Quarantine = 2 * time.Minute

// Pool hands out the addresses of blocks. It does no IO. Safe for concurrent use.
type Pool struct {
	mu     sync.Mutex
	blocks []netip.Prefix    // in the order in which they came
	cidr   netip.Prefix      // of a groups' pool: that blocks must be part of
	spare  []netip.Addr      // never given out
	next   uint64            // first address never given out, as an offset into all blocks
	size   uint64            // of all blocks
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
	p := NewBlockPool(cidr)
	p.add(cidr)
	return p
}

// NewBlockPool is the pool of a host of a fleet: it has none of the groups' range until it is given blocks of it.
func NewBlockPool(cidr netip.Prefix) *Pool {
	p := newPool(nil)
	p.cidr = cidr
	p.spare = []netip.Addr{cidr.Addr(), cidr.Addr().Next(), last(cidr)}
	return p
}

// NewPublicPool is the pool of public ranges: every address of them.
func NewPublicPool(ranges []netip.Prefix) *Pool { return newPool(ranges) }

func newPool(blocks []netip.Prefix) *Pool {
	p := &Pool{taken: map[uint64]bool{}, index: map[uint64]uint64{}}
	for _, b := range blocks {
		p.add(b)
	}
	return p
}

func (p *Pool) add(b netip.Prefix) {
	p.blocks = append(p.blocks, b)
	p.size += 1 << (32 - b.Bits())
}

// Add gives a groups' pool another block; one that it has is no error. Errors: invalid when it is not a part of the groups'
// range, conflict when it overlaps a block that the pool has.
func (p *Pool) Add(block netip.Prefix) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if slices.Contains(p.blocks, block) {
		return nil
	}
	if !block.IsValid() || block != block.Masked() || !p.cidr.Contains(block.Addr()) || block.Bits() < p.cidr.Bits() {
		return fault.New(fault.Invalid, "", "the block %s must be a part of the groups' range %s with no host bits set", block, p.cidr)
	}
	if overlapsAny(block, p.blocks) {
		return fault.New(fault.Conflict, "", "the block %s overlaps one of %v, which this host has", block, p.blocks)
	}
	p.add(block)
	return nil
}

// Blocks are those that the pool has.
func (p *Pool) Blocks() []netip.Prefix {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.blocks)
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
		if _, waiting := p.index[p.next]; !p.taken[p.next] && !waiting && !slices.Contains(p.spare, p.addr(p.next)) {
			p.taken[p.next] = true
			p.next++
			return p.addr(p.next - 1), nil
		}
	}
	if len(p.freed) > 0 {
		return p.reuse(), nil
	}
	if len(p.blocks) == 0 {
		return netip.Addr{}, fault.New(fault.Exhausted, "", "this host has no block of the groups' range %s yet", p.cidr)
	}
	return netip.Addr{}, fault.New(fault.Exhausted, "", "all %d addresses of %v are in use: delete groups or give the platform a larger range", p.usable(), p.blocks)
}

// Free is how many addresses can be given out, those in quarantine included.
func (p *Pool) Free() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.usable() - len(p.taken)
}

// usable is the number of addresses that are ever given out.
func (p *Pool) usable() int {
	n := int(p.size)
	for _, a := range p.spare {
		if _, ok := p.at(a); ok {
			n--
		}
	}
	return n
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
		return fault.New(fault.Invalid, "", "address %s is not one of %v", a, p.blocks)
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
	for _, b := range p.blocks {
		size := uint64(1) << (32 - b.Bits())
		if offset < size {
			return plus(b.Addr(), uint32(offset))
		}
		offset -= size
	}
	return netip.Addr{} // unreachable: offsets are below size
}

func plus(a netip.Addr, n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(a.AsSlice())+n)
	return netip.AddrFrom4(b)
}

// last is the last address of a range.
func last(b netip.Prefix) netip.Addr { return plus(b.Addr(), uint32(1<<(32-b.Bits())-1)) }

// offset is where an address that may be given out is.
func (p *Pool) offset(a netip.Addr) (uint64, bool) {
	o, ok := p.at(a)
	return o, ok && !slices.Contains(p.spare, a)
}

func (p *Pool) at(a netip.Addr) (uint64, bool) {
	var before uint64
	for _, b := range p.blocks {
		if b.Contains(a) {
			return before + uint64(binary.BigEndian.Uint32(a.AsSlice())-binary.BigEndian.Uint32(b.Addr().AsSlice())), true
		}
		before += 1 << (32 - b.Bits())
	}
	return 0, false
}
