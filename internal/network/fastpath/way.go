package fastpath

import (
	"math/rand/v2"

	"github.com/cilium/ebpf/asm"
)

// This file is about ways that packets have gone. Where a packet goes takes half a dozen questions to maps; each processor
// remembers the answers, so that the next packet has one question. What it remembers is of an epoch, and each change of the maps
// begins another: before a change has been made known, nobody has been told that it is made.
//
// A program reads the epoch before it asks anything. What it then writes down is of that epoch, also when the maps have
// changed meanwhile, and so is worth nothing. Nobody else writes to a processor's part, and no program is interrupted by
// another of the same processor: but for kernels that do everything in threads (realTime).

// The layout of what is known of a way.
const (
	wayKey     = 0 // 16 bytes, as at keyWay
	wayEpoch   = 16
	wayKind    = 20
	wayIfindex = 24
	wayMTU     = 28
	wayMACs    = 32 // to a group: 12 bytes
	wayPeer    = 32 // to a peer
	waySum     = 36
	wayNext    = 40
	wayID      = 44
	waySize    = 48
)

const (
	toGroup = 0
	toPeer  = 1
)

// Of ways each processor remembers so many, in 96 KiB. Two that have one place forget each other.
const (
	wayBits  = 11
	mostWays = 1 << wayBits
)

// The layout of what all programs look at.
const (
	stateUntil = 0 // when what the maps say is not trusted any more
	stateEpoch = 4
	stateSize  = 8
	resting    = 0 // in place of an epoch
)

// state loads what all programs look at.
func (c *code) state(m *maps, dst asm.Register, offset uint32) {
	c.add(asm.LoadMapValue(dst, m.state.FD(), offset))
	c.load(dst, dst, 0, asm.Word)
}

// seek leaves in R0 what is known of the way whose key is on the stack, and goes to "way" if that is right. Otherwise it is at
// atWay, and to be filled in. When nothing may go fast it goes to "pass".
func (c *code) seek(m *maps) {
	c.state(m, asm.R1, stateUntil)
	c.load(asm.R2, asm.RFP, atNow, asm.Word)
	c.add(asm.JGT.Reg(asm.R2, asm.R1, "pass"))
	c.state(m, asm.R1, stateEpoch)
	c.keep(atEpoch, asm.R1, asm.Word)
	c.add(asm.JEq.Imm(asm.R1, resting, "pass"))
	// Which ways have one place differs from one set of programs to another, so that nobody can prepare for it.
	c.add(asm.LoadImm(asm.R3, int64(rand.Uint64()|1), asm.DWord), asm.Mov.Imm(asm.R1, 0))
	for _, at := range []int16{keyFrom, keySource, keyDest} {
		c.load(asm.R2, asm.RFP, at, asm.Word)
		c.add(asm.Add.Reg(asm.R1, asm.R2), asm.Mul.Reg(asm.R1, asm.R3))
	}
	c.add(asm.RSh.Imm(asm.R1, 64-wayBits))
	c.keep(atSlot, asm.R1, asm.Word)
	c.lookup(m.ways, atSlot)
	c.add(asm.JEq.Imm(asm.R0, 0, "pass"))
	for o := int16(0); o < 16; o += 8 {
		c.load(asm.R1, asm.R0, wayKey+o, asm.DWord)
		c.load(asm.R2, asm.RFP, keyWay+o, asm.DWord)
		c.add(asm.JNE.Reg(asm.R1, asm.R2, "unknown"))
	}
	c.load(asm.R1, asm.R0, wayEpoch, asm.Word)
	c.load(asm.R2, asm.RFP, atEpoch, asm.Word)
	c.add(asm.JEq.Reg(asm.R1, asm.R2, "way"))
	c.label("unknown")
	c.add(asm.StoreImm(asm.R0, wayEpoch, 0, asm.Word))
	c.keep(atWay, asm.R0, asm.DWord)
}

// learn writes down that the way leads to what R0 points to, of which words of the second are copied to places of the first.
func (c *code) learn(kind int64, fields [][2]int16) {
	c.load(asm.R2, asm.RFP, atWay, asm.DWord)
	for _, f := range fields {
		c.load(asm.R1, asm.R0, f[1], asm.Word)
		c.add(asm.StoreMem(asm.R2, f[0], asm.R1, asm.Word))
	}
	c.add(asm.StoreImm(asm.R2, wayKind, kind, asm.Word))
}

// toGroup learns that the way leads to the group at R0, which has to be in the network at atNetwork.
func (c *code) toGroup() {
	c.load(asm.R1, asm.R0, groupNetwork, asm.Word)
	c.load(asm.R2, asm.RFP, atNetwork, asm.Word)
	c.add(asm.JNE.Reg(asm.R1, asm.R2, "pass"))
	c.learn(toGroup, [][2]int16{{wayIfindex, groupIfindex}, {wayMTU, groupMTU}, {wayMACs, groupMAC}, {wayMACs + 4, groupMAC + 4}, {wayMACs + 8, groupMAC + 8}})
}

// learned ends with R0 as seek leaves it.
func (c *code) learned() {
	c.load(asm.R0, asm.RFP, atWay, asm.DWord)
	for o := int16(0); o < 16; o += 8 {
		c.load(asm.R1, asm.RFP, keyWay+o, asm.DWord)
		c.add(asm.StoreMem(asm.R0, wayKey+o, asm.R1, asm.DWord))
	}
	c.load(asm.R1, asm.RFP, atEpoch, asm.Word)
	c.add(asm.StoreMem(asm.R0, wayEpoch, asm.R1, asm.Word))
	c.label("way")
}
