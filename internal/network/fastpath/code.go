package fastpath

import (
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// This file has the words that the programs are written in.

// What a program says of a packet.
const (
	actUnspec = -1 // not for us: whatever would have become of it without us
	actShot   = 2
)

// Offsets in struct __sk_buff.
const (
	skbLen      = 0
	skbPktType  = 4
	skbIfindex  = 40
	skbIndex    = 44 // tc_index: nobody else changes it between a link and where a packet leaves
	skbData     = 76
	skbDataEnd  = 80
	skbGSOSize  = 176
	packetToUs  = 0 // PACKET_HOST
	ethLen      = 14
	ipLen       = 20
	tcpLen      = 20
	tcpFIN      = 0x01
	tcpSYN      = 0x02
	tcpRST      = 0x04
	tcpACK      = 0x10
	protocolTCP = 6
	protocolUDP = 17
	familyIPv4  = 2
)

// Offsets from the beginning of a network header, and of the transport header behind one without options.
const (
	ipTOS       = 1
	ipLength    = 2
	ipFragments = 6
	ipTTL       = 8
	ipProtocol  = 9
	ipSource    = 12
	ipDest      = 16
	portSource  = ipLen
	portDest    = ipLen + 2
	tcpOffset   = ipLen + 12
	tcpFlags    = ipLen + 13
)

// Where programs keep things on their stack. Registers that last are R6, the context; R7, the packet's first byte, and R8, the one
// behind its last until bounds has looked; R9, whether a packet asks for a connection. Then R8 is what each program says.
const (
	atNow     = -4
	keyFlow   = -16 // 12 bytes
	keyWay    = -32 // 16 bytes: where a packet came from, in which network if that says it, and between which addresses
	keyFrom   = keyWay
	keyID     = keyWay + 4
	keySource = keyWay + 8
	keyDest   = keyWay + 12
	atNetwork = -40 // together with the next one the key of an address in a network
	atAddr    = -36
	atLPM     = -48 // 8 bytes
	atWay     = -56 // 8 bytes
	atEpoch   = -60
	atSlot    = -64
	atPeer    = -68
	atLen     = -72
	atTOS     = -76
	atValue   = -88  // 12 bytes
	atOuter   = -144 // 50 bytes
)

// code is a program in the making.
type code struct {
	list asm.Instructions
	next string // the label of the next instruction
}

func (c *code) add(i ...asm.Instruction) {
	if c.next != "" {
		i[0] = i[0].WithSymbol(c.next)
		c.next = ""
	}
	c.list = append(c.list, i...)
}

// label names the next instruction. Of one that has a name already it makes another, which loses R1.
func (c *code) label(name string) {
	if c.next != "" {
		c.add(asm.Mov.Imm(asm.R1, 0))
	}
	c.next = name
}

// load reads from memory.
func (c *code) load(dst, base asm.Register, offset int16, size asm.Size) {
	c.add(asm.LoadMem(dst, base, offset, size))
}

// keep writes a register to the stack.
func (c *code) keep(offset int16, src asm.Register, size asm.Size) {
	c.add(asm.StoreMem(asm.RFP, offset, src, size))
}

// bounds loads where the packet is, and leaves unless its first n bytes can be read.
func (c *code) bounds(n int32, otherwise string) {
	c.load(asm.R7, asm.R6, skbData, asm.Word)
	c.load(asm.R8, asm.R6, skbDataEnd, asm.Word)
	c.add(asm.Mov.Reg(asm.R1, asm.R7), asm.Add.Imm(asm.R1, n), asm.JGT.Reg(asm.R1, asm.R8, otherwise))
}

// unless leaves when what is at a place in the packet is other than it has to be.
func (c *code) unless(offset int16, size asm.Size, want int32, otherwise string) {
	c.load(asm.R1, asm.R7, offset, size)
	c.add(asm.JNE.Imm32(asm.R1, want, otherwise))
}

// lookup asks a map for a key on the stack: R0 is the value, or 0.
func (c *code) lookup(m *ebpf.Map, key int32) {
	c.add(asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, key), asm.FnMapLookupElem.Call())
}

// note writes a state of the connection whose key is on the stack.
func (c *code) note(m *ebpf.Map, state int64) {
	c.load(asm.R1, asm.RFP, atNow, asm.Word)
	c.keep(atValue+flowUsed, asm.R1, asm.Word)
	c.add(asm.StoreImm(asm.RFP, atValue+flowState, state, asm.Word), asm.StoreImm(asm.RFP, atValue+flowEnded, 0, asm.Word),
		asm.LoadMapPtr(asm.R1, m.FD()), asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, keyFlow),
		asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, atValue), asm.Mov.Imm(asm.R4, 0), asm.FnMapUpdateElem.Call())
}

// now keeps what time it is, in units of 2³⁰ ns.
func (c *code) now() {
	c.add(asm.FnKtimeGetCoarseNs.Call(), asm.RSh.Imm(asm.R0, timeUnit))
	c.keep(atNow, asm.R0, asm.Word)
}

// used writes down when the connection at a register had a packet last.
func (c *code) used(flow asm.Register) {
	c.load(asm.R1, asm.RFP, atNow, asm.Word)
	c.load(asm.R2, flow, flowUsed, asm.Word)
	c.add(asm.JEq.Reg(asm.R1, asm.R2, "used"), asm.StoreMem(flow, flowUsed, asm.R1, asm.Word))
	c.label("used")
}

// ending writes down which side of the connection at a register a packet ends: its sender, or both.
func (c *code) ending(flow asm.Register, ip int16) {
	c.load(asm.R1, asm.R7, ip+tcpFlags, asm.Byte)
	c.add(asm.And.Imm(asm.R1, tcpFIN|tcpRST), asm.JEq.Imm(asm.R1, 0, "lasts"), asm.Mov.Imm(asm.R2, endedBoth), asm.JSet.Imm(asm.R1, tcpRST, "ends"))
	c.load(asm.R3, asm.R7, ip+ipSource, asm.Word)
	c.load(asm.R4, asm.RFP, keyFlow, asm.Word)
	c.add(asm.Mov.Imm(asm.R2, 1), asm.JEq.Reg(asm.R3, asm.R4, "ends"), asm.Mov.Imm(asm.R2, 2))
	c.label("ends")
	c.load(asm.R1, flow, flowEnded, asm.Word)
	c.add(asm.Or.Reg(asm.R1, asm.R2), asm.StoreMem(flow, flowEnded, asm.R1, asm.Word))
	c.label("lasts")
}

// tcp leaves unless a network header is that of a whole TCP packet without options.
func (c *code) tcp(ip int16, otherwise string) {
	c.unless(ip, asm.Byte, 0x45, otherwise)
	c.load(asm.R1, asm.R7, ip+ipFragments, asm.Half)
	c.add(asm.JSet.Imm(asm.R1, int32(be16(0x3fff)), otherwise))
	c.unless(ip+ipProtocol, asm.Byte, protocolTCP, otherwise)
	c.whole(ip+ipLength, ip, otherwise)
}

// whole leaves unless a length that a header says is that of the packet from a place on.
func (c *code) whole(at, from int16, otherwise string) {
	c.load(asm.R1, asm.R6, skbLen, asm.Word)
	c.add(asm.Sub.Imm(asm.R1, int32(from)), asm.HostTo(asm.BE, asm.R1, asm.Half))
	c.load(asm.R2, asm.R7, at, asm.Half)
	c.add(asm.JNE.Reg(asm.R1, asm.R2, otherwise))
}

// flow makes the key of a packet's connection, the same for both directions.
func (c *code) flow(ip int16, prefix string) {
	c.load(asm.R1, asm.R7, ip+ipSource, asm.Word)
	c.load(asm.R2, asm.R7, ip+ipDest, asm.Word)
	c.load(asm.R3, asm.R7, ip+portSource, asm.Half)
	c.load(asm.R4, asm.R7, ip+portDest, asm.Half)
	c.add(asm.JLE.Reg(asm.R1, asm.R2, prefix+"ordered"),
		asm.Mov.Reg(asm.R5, asm.R1), asm.Mov.Reg(asm.R1, asm.R2), asm.Mov.Reg(asm.R2, asm.R5),
		asm.Mov.Reg(asm.R5, asm.R3), asm.Mov.Reg(asm.R3, asm.R4), asm.Mov.Reg(asm.R4, asm.R5))
	c.label(prefix + "ordered")
	c.keep(keyFlow, asm.R1, asm.Word)
	c.keep(keyFlow+4, asm.R2, asm.Word)
	c.keep(keyFlow+8, asm.R3, asm.Half)
	c.keep(keyFlow+10, asm.R4, asm.Half)
}

// opens loads into a register whether a packet asks for a connection: 2, else something else.
func (c *code) opens(dst asm.Register, ip int16) {
	c.load(dst, asm.R7, ip+tcpFlags, asm.Byte)
	c.add(asm.And.Imm(dst, tcpSYN|tcpACK))
}

// home finds the peer that an address is on, from the key at atNetwork, and leaves it at atPeer.
func (c *code) home(m *maps, prefix, otherwise string) {
	c.lookup(m.homes, atNetwork)
	c.add(asm.JNE.Imm(asm.R0, 0, prefix+"home"))
	c.add(asm.StoreImm(asm.RFP, atLPM, 32, asm.Word))
	c.load(asm.R1, asm.RFP, atAddr, asm.Word)
	c.keep(atLPM+4, asm.R1, asm.Word)
	c.lookup(m.blocks, atLPM)
	c.add(asm.JEq.Imm(asm.R0, 0, otherwise))
	c.label(prefix + "home")
	c.load(asm.R1, asm.R0, 0, asm.Word)
	c.keep(atPeer, asm.R1, asm.Word)
}

// fits leaves when a packet, whose network header is at ip and whose transport header is TCP's, is larger in any of its
// segments than the way at R0 takes.
func (c *code) fits(ip int16) {
	c.load(asm.R5, asm.R0, wayMTU, asm.Word)
	c.load(asm.R1, asm.R6, skbGSOSize, asm.Word)
	c.add(asm.JEq.Imm(asm.R1, 0, "single"))
	c.load(asm.R2, asm.R7, ip+tcpOffset, asm.Byte)
	c.add(asm.RSh.Imm(asm.R2, 4), asm.LSh.Imm(asm.R2, 2), asm.Add.Reg(asm.R1, asm.R2), asm.Add.Imm(asm.R1, ipLen), asm.Ja.Label("compare"))
	c.label("single")
	c.load(asm.R1, asm.R6, skbLen, asm.Word)
	c.add(asm.Add.Imm(asm.R1, -int32(ip)))
	c.label("compare")
	c.add(asm.JGT.Reg(asm.R1, asm.R5, "pass"))
}

// deliver gives a packet, whose first bytes are an Ethernet header, to the group that the way at R8 leads to.
func (c *code) deliver() {
	c.add(asm.Mov.Reg(asm.R3, asm.R8), asm.Add.Imm(asm.R3, wayMACs))
	c.store(0, 12)
	c.load(asm.R1, asm.R8, wayIfindex, asm.Word)
	c.add(asm.Mov.Imm(asm.R2, 0), asm.FnRedirectPeer.Call(), asm.Return())
}

// store writes bytes from where R3 points to into the packet.
func (c *code) store(at, n int32) {
	c.add(asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, at), asm.Mov.Imm(asm.R4, n), asm.Mov.Imm(asm.R5, 0),
		asm.FnSkbStoreBytes.Call(), asm.JNE.Imm(asm.R0, 0, "drop"))
}

// ends are the ways out: what was taken apart already and cannot go on, and what is left alone.
func (c *code) ends() asm.Instructions {
	c.label("drop")
	c.add(asm.Mov.Imm(asm.R0, actShot), asm.Return())
	c.label("pass")
	c.add(asm.Mov.Imm(asm.R0, actUnspec), asm.Return())
	return c.list
}

func be16(v uint16) uint16 { return v>>8 | v<<8 }
