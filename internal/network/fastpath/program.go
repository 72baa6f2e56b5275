package fastpath

import (
	"encoding/binary"
	"net/netip"

	"github.com/cilium/ebpf/asm"
)

// The envelope: what is between the outer and the inner network header, and the outer one.
const (
	udpLen   = 8
	vxlanLen = 8
	envelope = ipLen + udpLen + vxlanLen + ethLen // 50 bytes, as the kernel's own
	innerIP  = ethLen + envelope
	mostLen  = 65_535
)

// Flags of bpf_skb_adjust_room.
const (
	roomAtMAC    = 1
	roomFixedGSO = 1 << 0
	roomIPv4     = 1 << 1
	roomUDP      = 1 << 4
	roomEthernet = 1 << 6
	roomEnvelope = roomFixedGSO | roomIPv4 | roomUDP | roomEthernet | ethLen<<56
)

// Hardware addresses of hosts begin with the first; a packet whose inner sender's address begins with the second says: by
// connection tracking of the sending host nothing was translated, and nothing will be.
const (
	macHost   = 0x530a // 0a:53, as loaded from memory
	macDirect = 0x530e // 0e:53
)

// raw is an address as programs load it from memory.
func raw(a netip.Addr) uint32 { b := a.As4(); return binary.NativeEndian.Uint32(b[:]) }

// fromGroup is for packets that come from a group over its link: to a group of the same host they go at once, to one of another in
// an envelope.
func fromGroup(m *maps, w Way) asm.Instructions {
	c := &code{}
	c.add(asm.Mov.Reg(asm.R6, asm.R1))
	c.load(asm.R1, asm.R6, skbPktType, asm.Word)
	c.add(asm.JNE.Imm(asm.R1, packetToUs, "pass"))
	c.bounds(ethLen+ipLen+tcpLen, "pass")
	c.unless(12, asm.Half, int32(be16(0x0800)), "pass")
	c.tcp(ethLen, "pass")
	c.load(asm.R1, asm.R7, ethLen+ipTTL, asm.Byte)
	c.add(asm.JLE.Imm(asm.R1, 2, "pass")) // the hosts on the way would count

	// The connection is known to be direct, or asked for and not known to be anything else.
	c.mark(0)
	c.opens(asm.R9, ethLen)
	c.flow(ethLen, "")
	c.now()
	c.lookup(m.flows, keyFlow)
	c.add(asm.Mov.Reg(asm.R8, asm.R0), asm.JNE.Imm(asm.R8, 0, "known"), asm.JEq.Imm(asm.R9, tcpSYN, "allowed"), asm.Ja.Label("pass"))
	c.label("known")
	c.load(asm.R1, asm.R8, flowState, asm.Word)
	c.add(asm.JNE.Imm(asm.R1, flowDirect, "stranger"))
	c.load(asm.R1, asm.R8, flowEnded, asm.Word)
	c.add(asm.JNE.Imm(asm.R1, endedBoth, "allowed"), asm.JNE.Imm(asm.R9, tcpSYN, "pass")) // the ports may be another's, by a service address
	c.label("allowed")

	c.load(asm.R1, asm.R6, skbIfindex, asm.Word)
	c.keep(keyFrom, asm.R1, asm.Word)
	c.add(asm.StoreImm(asm.RFP, keyID, 0, asm.Word))
	c.between(ethLen)
	c.seek(m)
	c.findFromGroup(m)
	c.add(asm.JEq.Imm(asm.R8, 0, "new"))
	c.used(asm.R8)
	c.ending(asm.R8, ethLen)
	c.label("new")
	c.fits(ethLen)
	c.add(asm.Mov.Reg(asm.R8, asm.R0))
	c.load(asm.R1, asm.R8, wayKind, asm.Word)
	c.add(asm.JEq.Imm(asm.R1, toPeer, "away"), asm.JNE.Imm(asm.R9, tcpSYN, "deliver"))
	c.note(m.flows, flowDirect)
	c.label("deliver")
	c.deliver()
	c.away(m, w)
	return c.ends()
}

// findFromGroup finds out where a packet from a group has to go.
func (c *code) findFromGroup(m *maps) {
	// The sender is the group of this link, and in a network.
	c.lookup(m.groups, keySource)
	c.add(asm.JEq.Imm(asm.R0, 0, "pass"))
	c.load(asm.R1, asm.R0, groupIfindex, asm.Word)
	c.load(asm.R2, asm.RFP, keyFrom, asm.Word)
	c.add(asm.JNE.Reg(asm.R1, asm.R2, "pass"))
	c.load(asm.R1, asm.R0, groupNetwork, asm.Word)
	c.keep(atNetwork, asm.R1, asm.Word)

	c.lookup(m.groups, keyDest)
	c.add(asm.JEq.Imm(asm.R0, 0, "elsewhere"))
	c.toGroup()
	c.add(asm.Ja.Label("learned"))

	c.label("elsewhere")
	c.load(asm.R1, asm.RFP, keyDest, asm.Word)
	c.keep(atAddr, asm.R1, asm.Word)
	c.home(m, "to", "stranger")
	c.lookup(m.peers, atPeer)
	c.add(asm.JEq.Imm(asm.R0, 0, "pass"))
	c.learn(toPeer, [][2]int16{{wayIfindex, peerIfindex}, {waySum, peerChecksum}, {wayNext, peerNext}, {wayMTU, peerMTU}})
	c.load(asm.R1, asm.RFP, atPeer, asm.Word)
	c.add(asm.StoreMem(asm.R2, wayPeer, asm.R1, asm.Word))
	c.lookup(m.ids, atNetwork)
	c.add(asm.JEq.Imm(asm.R0, 0, "pass"))
	c.load(asm.R1, asm.R0, 0, asm.Word)
	c.load(asm.R2, asm.RFP, atWay, asm.DWord)
	c.add(asm.StoreMem(asm.R2, wayID, asm.R1, asm.Word), asm.Ja.Label("learned"))

	c.label("stranger")
	c.add(asm.JNE.Imm(asm.R9, tcpSYN, "pass"))
	c.mark(forOthers)
	c.add(asm.Ja.Label("pass"))
	c.label("learned")
	c.learned()
}

// forOthers is on packets, while they are in this host, with which a group asks for a connection to what is no group's address.
// Where such a packet reaches a group it has been translated.
const forOthers = 0x5357

func (c *code) mark(value int32) {
	c.add(asm.Mov.Imm(asm.R1, value), asm.StoreMem(asm.R6, skbIndex, asm.R1, asm.Word))
}

// between keeps the addresses of a packet.
func (c *code) between(ip int16) {
	c.load(asm.R1, asm.R7, ip+ipSource, asm.Word)
	c.keep(keySource, asm.R1, asm.Word)
	c.load(asm.R1, asm.R7, ip+ipDest, asm.Word)
	c.keep(keyDest, asm.R1, asm.Word)
}

// away sends a packet to another host.
func (c *code) away(m *maps, w Way) {
	c.label("away")
	c.load(asm.R1, asm.R6, skbLen, asm.Word)
	c.add(asm.Add.Imm(asm.R1, envelope-ethLen), asm.JGT.Imm(asm.R1, mostLen, "pass"))
	c.keep(atLen, asm.R1, asm.Word)
	c.load(asm.R1, asm.R7, ethLen+ipTOS, asm.Byte)
	c.add(asm.And.Imm(asm.R1, 3), asm.JNE.Imm(asm.R1, 3, "marked"), asm.Mov.Imm(asm.R1, 2)) // congestion is said by who meets it
	c.label("marked")
	c.keep(atTOS, asm.R1, asm.Word)
	c.add(asm.JNE.Imm(asm.R9, tcpSYN, "wrap"))
	c.note(m.flows, flowDirect)
	c.label("wrap")
	c.add(asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, envelope), asm.Mov.Imm(asm.R3, roomAtMAC), asm.LoadImm(asm.R4, roomEnvelope, asm.DWord),
		asm.FnSkbAdjustRoom.Call(), asm.JNE.Imm(asm.R0, 0, "pass"))
	c.outer(w)
	c.add(asm.Mov.Reg(asm.R3, asm.RFP), asm.Add.Imm(asm.R3, atOuter))
	c.store(ethLen, envelope)
	// struct bpf_redir_neigh, over what has been stored.
	c.add(asm.StoreImm(asm.RFP, atOuter, familyIPv4, asm.Word))
	c.load(asm.R2, asm.R8, wayNext, asm.Word)
	c.keep(atOuter+4, asm.R2, asm.Word)
	for o := int16(8); o < 20; o += 4 {
		c.add(asm.StoreImm(asm.RFP, atOuter+o, 0, asm.Word))
	}
	c.load(asm.R1, asm.R8, wayIfindex, asm.Word)
	c.add(asm.Mov.Reg(asm.R2, asm.RFP), asm.Add.Imm(asm.R2, atOuter), asm.Mov.Imm(asm.R3, 20), asm.Mov.Imm(asm.R4, 0), asm.FnRedirectNeigh.Call(), asm.Return())
}

// outer writes the envelope at atOuter, for the peer that the way at R8 leads to. R7 sums up what is not the same in all.
func (c *code) outer(w Way) {
	imm := func(offset int16, v int64, size asm.Size) { c.add(asm.StoreImm(asm.RFP, atOuter+offset, v, size)) }
	imm(0, 0x45, asm.Byte)
	c.load(asm.R7, asm.RFP, atTOS, asm.Word)
	c.keep(atOuter+1, asm.R7, asm.Byte)
	c.load(asm.R9, asm.RFP, atLen, asm.Word)
	c.add(asm.Mov.Reg(asm.R1, asm.R9), asm.HostTo(asm.BE, asm.R1, asm.Half))
	c.keep(atOuter+2, asm.R1, asm.Half)
	c.add(asm.LSh.Imm(asm.R7, 8), asm.Add.Reg(asm.R7, asm.R1))
	c.add(asm.Sub.Imm(asm.R9, ipLen), asm.HostTo(asm.BE, asm.R9, asm.Half))
	c.keep(atOuter+24, asm.R9, asm.Half)
	c.add(asm.FnGetPrandomU32.Call(), asm.And.Imm(asm.R0, 0xffff))
	c.keep(atOuter+4, asm.R0, asm.Half)
	c.add(asm.Add.Reg(asm.R7, asm.R0))
	imm(6, 0, asm.Half)
	imm(8, protocolUDP<<8|64, asm.Half)
	c.load(asm.R1, asm.R8, waySum, asm.Word)
	c.add(asm.Add.Reg(asm.R7, asm.R1))
	for range 2 {
		c.add(asm.Mov.Reg(asm.R1, asm.R7), asm.RSh.Imm(asm.R1, 16), asm.And.Imm(asm.R7, 0xffff), asm.Add.Reg(asm.R7, asm.R1))
	}
	c.add(asm.Xor.Imm(asm.R7, 0xffff))
	c.keep(atOuter+10, asm.R7, asm.Half)
	imm(12, int64(int32(raw(w.Underlay))), asm.Word)
	c.load(asm.R7, asm.R8, wayPeer, asm.Word)
	c.keep(atOuter+16, asm.R7, asm.Word)
	c.add(asm.Mov.Reg(asm.R1, asm.R6), asm.FnGetHashRecalc.Call(), asm.Or.Imm(asm.R0, 0xc000), asm.HostTo(asm.BE, asm.R0, asm.Half))
	c.keep(atOuter+20, asm.R0, asm.Half)
	imm(22, int64(be16(w.Port)), asm.Half)
	imm(26, 0, asm.Half)
	imm(28, 8, asm.Word)
	c.load(asm.R1, asm.R8, wayID, asm.Word)
	c.keep(atOuter+32, asm.R1, asm.Word)
	imm(36, macHost, asm.Half)
	c.keep(atOuter+38, asm.R7, asm.Half)
	c.add(asm.RSh.Imm(asm.R7, 16))
	c.keep(atOuter+40, asm.R7, asm.Half)
	imm(42, macDirect, asm.Half)
	imm(44, int64(raw(w.Underlay)&0xffff), asm.Half)
	imm(46, int64(raw(w.Underlay)>>16), asm.Half)
	imm(48, int64(be16(0x0800)), asm.Half)
}

// fromWire is for packets that come to this host from others: what a peer says to be direct goes to its group at once.
func fromWire(m *maps, w Way) asm.Instructions {
	c := &code{}
	const udp, vx, mac = ethLen + ipLen, ethLen + ipLen + udpLen, ethLen + ipLen + udpLen + vxlanLen
	c.add(asm.Mov.Reg(asm.R6, asm.R1))
	c.bounds(vx, "pass")
	c.unless(12, asm.Half, int32(be16(0x0800)), "pass")
	c.unless(ethLen, asm.Byte, 0x45, "pass")
	c.unless(ethLen+ipProtocol, asm.Byte, protocolUDP, "pass")
	c.unless(udp+2, asm.Half, int32(be16(w.Port)), "pass")
	c.unless(ethLen+ipDest, asm.Word, int32(raw(w.Underlay)), "pass")
	c.load(asm.R1, asm.R7, ethLen+ipFragments, asm.Half)
	c.add(asm.JSet.Imm(asm.R1, int32(be16(0x3fff)), "pass"))
	c.whole(ethLen+ipLength, ethLen, "pass")
	c.whole(udp+4, udp, "pass")
	c.unless(udp+6, asm.Half, 0, "pass") // a checksum is for the stack to judge
	c.load(asm.R1, asm.R7, ethLen+ipTOS, asm.Byte)
	c.add(asm.And.Imm(asm.R1, 3), asm.JEq.Imm(asm.R1, 3, "pass")) // and so is congestion
	c.load(asm.R1, asm.R6, skbPktType, asm.Word)
	c.add(asm.JNE.Imm(asm.R1, packetToUs, "pass"))
	c.add(asm.Mov.Reg(asm.R1, asm.R7), asm.Add.Imm(asm.R1, innerIP+ipLen+tcpLen), asm.JLE.Reg(asm.R1, asm.R8, "whole"),
		asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, innerIP+ipLen+tcpLen), asm.FnSkbPullData.Call())
	c.bounds(innerIP+ipLen+tcpLen, "pass")
	c.label("whole")
	c.unless(vx, asm.Word, 8, "pass")
	c.unless(mac, asm.Half, macHost, "pass")
	c.load(asm.R1, asm.R7, mac+2, asm.Half)
	c.add(asm.JNE.Imm(asm.R1, int32(raw(w.Underlay)&0xffff), "pass"))
	c.load(asm.R1, asm.R7, mac+4, asm.Half)
	c.add(asm.JNE.Imm(asm.R1, int32(raw(w.Underlay)>>16), "pass"))
	c.unless(mac+6, asm.Half, macDirect, "pass")
	c.unless(mac+12, asm.Half, int32(be16(0x0800)), "pass")
	c.tcp(innerIP, "pass")
	c.load(asm.R1, asm.R7, innerIP+ipTTL, asm.Byte)
	c.add(asm.JLE.Imm(asm.R1, 2, "pass"))
	c.opens(asm.R9, innerIP)

	c.load(asm.R1, asm.R7, ethLen+ipSource, asm.Word)
	c.keep(keyFrom, asm.R1, asm.Word)
	c.load(asm.R1, asm.R7, vx+4, asm.Word)
	c.keep(keyID, asm.R1, asm.Word)
	c.between(innerIP)
	c.now()
	c.seek(m)
	c.findFromWire(m)
	c.arrive(m)
	return c.ends()
}

// findFromWire finds out which group a packet from a host is for.
func (c *code) findFromWire(m *maps) {
	// A peer, a network, and a sender that is on that peer in that network, and not here.
	c.lookup(m.peers, keyFrom)
	c.add(asm.JEq.Imm(asm.R0, 0, "pass"))
	c.lookup(m.networks, keyID)
	c.add(asm.JEq.Imm(asm.R0, 0, "pass"))
	c.load(asm.R1, asm.R0, 0, asm.Word)
	c.keep(atNetwork, asm.R1, asm.Word)
	c.lookup(m.groups, keySource)
	c.add(asm.JNE.Imm(asm.R0, 0, "pass"))
	c.load(asm.R1, asm.RFP, keySource, asm.Word)
	c.keep(atAddr, asm.R1, asm.Word)
	c.home(m, "from", "pass")
	c.load(asm.R1, asm.RFP, atPeer, asm.Word)
	c.load(asm.R2, asm.RFP, keyFrom, asm.Word)
	c.add(asm.JNE.Reg(asm.R1, asm.R2, "pass"))

	c.lookup(m.groups, keyDest)
	c.add(asm.JEq.Imm(asm.R0, 0, "pass"))
	c.toGroup()
	c.learned()
}

// arrive takes a packet from a peer out of its envelope, and to its group.
func (c *code) arrive(m *maps) {
	c.fits(innerIP)
	c.add(asm.Mov.Reg(asm.R8, asm.R0), asm.JEq.Imm(asm.R9, tcpSYN, "opens"))
	c.load(asm.R1, asm.R7, innerIP+tcpFlags, asm.Byte)
	c.add(asm.And.Imm(asm.R1, tcpFIN|tcpRST), asm.JEq.Imm(asm.R1, 0, "unwrap"))
	c.flow(innerIP, "end")
	c.lookup(m.flows, keyFlow)
	c.add(asm.JEq.Imm(asm.R0, 0, "unwrap"))
	c.ending(asm.R0, innerIP)
	c.add(asm.Ja.Label("unwrap"))
	c.label("opens")
	c.flow(innerIP, "")
	c.note(m.flows, flowDirect)
	c.label("unwrap")
	c.add(asm.Mov.Reg(asm.R1, asm.R6), asm.Mov.Imm(asm.R2, -envelope), asm.Mov.Imm(asm.R3, roomAtMAC), asm.Mov.Imm(asm.R4, roomFixedGSO),
		asm.FnSkbAdjustRoom.Call(), asm.JNE.Imm(asm.R0, 0, "pass"))
	c.deliver()
}

// slowly is for packets that take the slow way to a group or to another host: a connection that is asked for there may have been
// translated on its way, and its packets have to stay on it. One that has been, and has the ports of a direct connection that
// lives, is not let in: the two could not be told apart.
func slowly(m *maps) asm.Instructions {
	c := &code{}
	c.add(asm.Mov.Reg(asm.R6, asm.R1))
	c.bounds(ethLen+ipLen+tcpLen, "pass")
	c.unless(12, asm.Half, int32(be16(0x0800)), "pass")
	c.tcp(ethLen, "pass")
	c.opens(asm.R9, ethLen)
	c.add(asm.JNE.Imm(asm.R9, tcpSYN, "pass"))
	c.flow(ethLen, "")
	c.now()
	c.load(asm.R1, asm.R6, skbIndex, asm.Word)
	c.add(asm.JNE.Imm(asm.R1, forOthers, "slow"))
	c.lookup(m.flows, keyFlow)
	c.add(asm.JEq.Imm(asm.R0, 0, "slow"))
	c.load(asm.R1, asm.R0, flowState, asm.Word)
	c.add(asm.JNE.Imm(asm.R1, flowDirect, "slow"))
	c.load(asm.R1, asm.R0, flowEnded, asm.Word)
	c.add(asm.JEq.Imm(asm.R1, endedBoth, "slow"))
	c.load(asm.R1, asm.R0, flowUsed, asm.Word)
	c.add(asm.Add.Imm(asm.R1, mostIdle))
	c.load(asm.R2, asm.RFP, atNow, asm.Word)
	c.add(asm.JLE.Reg(asm.R2, asm.R1, "drop"))
	c.label("slow")
	c.note(m.flows, flowSlow)
	c.add(asm.Ja.Label("pass"))
	return c.ends()
}
