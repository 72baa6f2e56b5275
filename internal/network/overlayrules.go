package network

import (
	"encoding/binary"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/network/overlay"
)

// This file is the part of the rules that an overlay adds; a platform of one machine has none of it. It reads:
//
//	chain guard    over a device of the overlay: other than IPv4 drop; mark it with the device's network; source not
//	               routed over that device drop. From a peer to the VXLAN port: do not track
//	chain refuse   from a group to the range: mark it with the sender's network
//	chain outer    { output, raw }  VXLAN packets of this host: to a peer do not track, to others drop
//	chain forward  over a device of the overlay: to a member of the marked network accept, else drop
//	               from a group to a device of the overlay: of the sender's network accept; everything else to one drop
//	               from a group to the range by another way, to the VXLAN port or to a peer, drop; a peer that a service
//	               address with the right leads to may be reached
//	chain input    to the VXLAN port: from a peer to the underlay's address accept, else drop
//	               over a device of the overlay: drop
//
// A packet's mark chooses the table of its network when it is routed. That a source is routed over the device by which it
// came is all that has to be asked of it: routes lead to peers' blocks, and what is on this host is found before them.

// tunnel is how this host takes part in an overlay; the zero value: it does not.
type tunnel struct {
	underlay netip.Addr
	port     uint16
}

func (t tunnel) enabled() bool { return t.underlay.IsValid() }

// over and toOver match the overlay's devices by the beginning of their names.
func (p plan) over() []expr.Any {
	return rule(meta(expr.MetaKeyIIFNAME, reg0), equal(reg0, []byte(overlay.Prefix(p.instance))))
}

func (p plan) toOver() []expr.Any {
	return rule(meta(expr.MetaKeyOIFNAME, reg0), equal(reg0, []byte(overlay.Prefix(p.instance))))
}

func notrack() []expr.Any { return one(&expr.Notrack{}) }

// toPort matches what goes to the VXLAN port of whichever machine.
func (t tunnel) toPort() []expr.Any {
	return rule(meta(expr.MetaKeyL4PROTO, reg0), equal(reg0, []byte{unix.IPPROTO_UDP}), port(reg0), equal(reg0, binary.BigEndian.AppendUint16(nil, t.port)))
}

// fromPeer matches VXLAN packets that may come in.
func (t tunnel) fromPeer() []expr.Any {
	return rule(l3(unix.NFPROTO_IPV4), t.toPort(), destination(reg0), equal(reg0, t.underlay.AsSlice()), source(reg0), in(setPeer, reg0))
}

// sent matches VXLAN packets that this host sends.
func (t tunnel) sent() []expr.Any {
	return rule(l3(unix.NFPROTO_IPV4), t.toPort(), source(reg0), equal(reg0, t.underlay.AsSlice()))
}

func (p plan) overlayGuard() [][]expr.Any {
	return [][]expr.Any{
		rule(p.over(), leadTo("guard_over")),
		rule(p.tunnel.fromPeer(), notrack()),
	}
}

// overlayChains are those that only an overlay has.
func (p plan) overlayChains() []chain {
	return []chain{
		{"outer", nftables.ChainHookOutput, nftables.ChainTypeFilter, nftables.ChainPriorityRaw, [][]expr.Any{
			rule(p.tunnel.sent(), destination(reg0), in(setPeer, reg0), notrack(), verdict(expr.VerdictAccept)),
			rule(p.tunnel.sent(), verdict(expr.VerdictDrop)), // routes to a peer that was taken out last longer than its entry
		}},
		{name: "guard_over", rules: [][]expr.Any{
			rule(meta(expr.MetaKeyNFPROTO, reg0), one(&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: []byte{unix.NFPROTO_IPV4}}), verdict(expr.VerdictDrop)),
			rule(meta(expr.MetaKeyIIFNAME, reg0), lookupMap(setOverlay, reg0, reg0), setMark(reg0)),
			rule(one(&expr.Fib{Register: reg0, ResultOIF: true, FlagSADDR: true, FlagMARK: true, FlagIIF: true}), equal(reg0, make([]byte, 4)), verdict(expr.VerdictDrop)),
		}},
		{name: "forward_over", rules: [][]expr.Any{
			rule(p.to(), l3(unix.NFPROTO_IPV4), destination(reg0), meta(expr.MetaKeyMARK, reg1), in(setMember, reg0), verdict(expr.VerdictAccept)),
			verdict(expr.VerdictDrop),
		}},
	}
}

// overlayForward comes behind what is said of packets from groups.
func (p plan) overlayForward() [][]expr.Any {
	return [][]expr.Any{
		rule(p.over(), leadTo("forward_over")),
		rule(p.toOver(), verdict(expr.VerdictDrop)),
	}
}

// overlayForwardOut lets groups' packets out over the device of their network. It comes first: all that they send to other
// hosts passes here, and nothing else that is said of their packets is about those.
func (p plan) overlayForwardOut() [][]expr.Any {
	return [][]expr.Any{
		rule(p.toOver(), meta(expr.MetaKeyOIFNAME, reg0), meta(expr.MetaKeyMARK, reg4), in(setCarrier, reg0), zero(reg0), setMark(reg0), verdict(expr.VerdictAccept)),
		rule(p.toOver(), verdict(expr.VerdictDrop)),
	}
}

// overlayForwardAway keeps groups' packets that leave the range from hosts, and those for the range from leaving it.
func (p plan) overlayForwardAway() [][]expr.Any {
	toPeer := rule(l3(unix.NFPROTO_IPV4), destination(reg0), in(setPeer, reg0))
	return [][]expr.Any{
		rule(l3(unix.NFPROTO_IPV4), destination(reg0), within(reg0, p.cidr), verdict(expr.VerdictDrop)),
		rule(p.tunnel.toPort(), verdict(expr.VerdictDrop)),
		rule(toPeer, p.mayEnter(), verdict(expr.VerdictAccept)),
		rule(toPeer, verdict(expr.VerdictDrop)),
	}
}

func (p plan) overlayInput() [][]expr.Any {
	return [][]expr.Any{
		rule(p.tunnel.fromPeer(), verdict(expr.VerdictAccept)),
		rule(p.tunnel.toPort(), verdict(expr.VerdictDrop)),
		rule(p.over(), verdict(expr.VerdictDrop)),
	}
}

// overlaySets are the sets that only an overlay has.
func (p plan) overlaySets() []*nftables.Set {
	t := p.nftTable()
	return []*nftables.Set{
		{Table: t, ID: 11, Name: setOverlay, KeyType: nftables.TypeIFName, DataType: nftables.TypeMark, IsMap: true},
		{Table: t, ID: 12, Name: setCarrier, KeyType: nftables.MustConcatSetType(nftables.TypeIFName, nftables.TypeMark), Concatenation: true},
		{Table: t, ID: 13, Name: setPeer, KeyType: nftables.TypeIPAddr},
	}
}

// removeOverlay takes off the table what only an overlay has.
func (p plan) removeOverlay(conn *nftables.Conn, t *nftables.Table) {
	for _, c := range p.overlayChains() {
		conn.DelChain(&nftables.Chain{Table: t, Name: c.name})
	}
	for _, s := range p.overlaySets() {
		conn.DelSet(s)
	}
}

// overlayElements are the entries of the overlay's sets.
func overlayElements(o *overlay.Plan) map[element]bool {
	out := map[element]bool{}
	for device, number := range o.Numbers {
		out[element{set: setOverlay, key: linkKey(device), value: native(number)}] = true
		out[element{set: setCarrier, key: linkKey(device) + native(number)}] = true
	}
	for a := range o.Peers {
		out[element{set: setPeer, key: addrKey(a)}] = true
	}
	return out
}
