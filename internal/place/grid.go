package place

import (
	"math/bits"

	"spillway.dev/spillway/internal/group"
)

// levels is how finely free CPU and free memory are told apart: a machine word of bits, four levels for each doubling.
const levels = 64

// The lowest amounts that are told apart, as powers of two: 32 thousandths of a core, 64 MiB.
const (
	cpuBase    = 5
	memoryBase = 26
)

// level is the level of an amount. It never falls as the amount grows: a higher level is a larger amount.
func level(n int64, base int) int {
	top := bits.Len64(uint64(max(n, 0))) - 1
	if top < base {
		return 0
	}
	return min((top-base)*4+int(n>>(top-2)&3)+1, levels-1)
}

// amount is the least amount of a level.
func amount(level, base int) int64 {
	if level == 0 {
		return 0
	}
	level--
	return int64(4+level%4) << (base + level/4 - 2)
}

// cell is a place in the grid: row and column are the levels of free CPU and memory.
type cell int32

func cellOf(free group.Resources) cell {
	return cell(level(free.MilliCPU, cpuBase)<<6 | level(free.Memory, memoryBase))
}

// grid finds hosts by what they have free: which cells have hosts, and of which sections. Bits are set for cells, never
// for hosts, so its size and the time of a search do not grow with the fleet.
type grid struct {
	rows  uint64
	cols  [levels]uint64
	cells [levels * levels]bitset // sections
}

func (g *grid) set(c cell, section int) {
	g.cells[c].set(section)
	g.cols[c>>6] |= 1 << (c & 63)
	g.rows |= 1 << (c >> 6)
}

func (g *grid) clear(c cell, section int) {
	if g.cells[c].clear(section); !g.cells[c].empty() {
		return
	}
	if g.cols[c>>6] &^= 1 << (c & 63); g.cols[c>>6] == 0 {
		g.rows &^= 1 << (c >> 6)
	}
}

// bitset is a set of small numbers.
type bitset []uint64

func (b *bitset) set(n int) {
	for len(*b) <= n/64 {
		*b = append(*b, 0)
	}
	(*b)[n/64] |= 1 << (n % 64)
}

func (b bitset) clear(n int) {
	if n/64 < len(b) {
		b[n/64] &^= 1 << (n % 64)
	}
}

func (b bitset) has(n int) bool { return n/64 < len(b) && b[n/64]&(1<<(n%64)) != 0 }

func (b bitset) empty() bool {
	for _, w := range b {
		if w != 0 {
			return false
		}
	}
	return true
}

// bucket is the hosts of one section in one cell.
type bucket struct {
	machines []int32
	turn     int32           // where the next search begins: hosts take turns
	bound    group.Resources // no host here has more of anything free
}

func (v *View) addToGrid(m int32) {
	h := &v.machines[m]
	s := v.sections[h.section]
	h.cell = cellOf(h.free)
	b := s.at(h.cell)
	if len(b.machines) == 0 {
		v.grid.set(h.cell, int(h.section))
		b.bound = h.free
	} else {
		b.bound = b.bound.Max(h.free)
	}
	h.pos = int32(len(b.machines))
	b.machines = append(b.machines, m)
	s.machines++
}

func (v *View) removeFromGrid(m int32) {
	h := &v.machines[m]
	s := v.sections[h.section]
	b := s.at(h.cell)
	last := len(b.machines) - 1
	moved := b.machines[last]
	b.machines[h.pos] = moved
	v.machines[moved].pos = h.pos
	b.machines = b.machines[:last]
	b.turn = h.pos + 1
	if last == 0 {
		v.grid.clear(h.cell, int(h.section))
	}
	s.machines--
}

// moved puts a machine where it belongs after what it has free has changed.
func (v *View) moved(m int32) {
	h := &v.machines[m]
	if !h.open {
		return
	}
	if h.most.GPUs > 0 { // its section goes by the GPUs that are left
		v.removeFromGrid(m)
		h.section = v.sectionOf(h)
		v.addToGrid(m)
		return
	}
	if c := cellOf(h.free); c != h.cell {
		v.removeFromGrid(m)
		v.addToGrid(m)
		return
	}
	b := v.sections[h.section].at(h.cell)
	b.bound = b.bound.Max(h.free)
	b.turn = h.pos + 1
}
