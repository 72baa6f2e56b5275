package network

import (
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/network/overlay"
)

// This file is the part of the rules that is about virtual networks with addresses outside the groups' range. Their
// addresses may be others' as well, so nothing asks for ranges: groups are known by their links and what they have joined,
// and what comes back to one by its connection. It reads:
//
//	chain refuse, recall_here { output, route }   of a connection with the mark of a virtual network: mark it so
//	chain refuse_from   from a group with an address outside the range: mark it, and its connection, with its network
//	                    to a group with such an address by a public one: mark it with that group's network
//	chain dnat          to a declared public port of a group of a virtual network: mark the connection, and it
//	chain snat          from a group with an address outside the range, not to a group: masquerade

// fromVirtual marks what groups of virtual networks send.
func (p plan) fromVirtual() []expr.Any {
	return rule(l3(unix.NFPROTO_IPV4), source(reg0), outside(reg0, p.cidr), source(reg0), lookupMap(setNetOf, reg0, reg0), setMark(reg0), setConnectionMark(reg0))
}

// throughPublic marks what goes from group to group by a public address, either way, with the network of the one to which it
// goes: the two may be of different networks, and the connection has one mark.
func (p plan) throughPublic() (out [][]expr.Any) {
	for _, r := range p.public {
		out = append(out, rule(translated(), called(reg1), within(reg1, r), l3(unix.NFPROTO_IPV4), destination(reg0), outside(reg0, p.cidr),
			destination(reg0), lookupMap(setNetOf, reg0, reg0), setMark(reg0)))
	}
	return out
}

// recall marks what belongs to a connection of a group of a virtual network. Answers from elsewhere find their way by it,
// and what the machine itself has to say about such a connection.
func (p plan) recall() []expr.Any {
	return rule(one(&expr.Ct{Key: expr.CtKeyMARK, Register: reg0}), p.ofVirtual(reg0), setMark(reg0))
}

// publish marks a new connection to a public port of a group of a virtual network.
func (p plan) publish() []expr.Any {
	return rule(l3(unix.NFPROTO_IPV4), destination(reg0), meta(expr.MetaKeyL4PROTO, reg1), port(reg2), lookupMap(setPublic, reg0, reg0),
		lookupMap(setNetOf, reg0, reg0), p.ofVirtual(reg0), setMark(reg0), setConnectionMark(reg0))
}

// leaveVirtual masquerades what groups of virtual networks send to others than groups.
func (p plan) leaveVirtual() []expr.Any {
	ours := p.links[:len(p.links)-1] // links of groups and devices of the overlay begin so
	return rule(p.from(), l3(unix.NFPROTO_IPV4), source(reg0), outside(reg0, p.cidr),
		meta(expr.MetaKeyOIFNAME, reg0), one(&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: []byte(ours)}), one(&expr.Masq{}))
}

// ofVirtual goes on when a register holds the number of a virtual network of this instance.
func (p plan) ofVirtual(reg uint32) []expr.Any {
	return []expr.Any{
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg5, Len: 4, Mask: markOf(overlay.VirtualMask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg5, Data: markOf(p.base())},
	}
}

func setConnectionMark(reg uint32) []expr.Any {
	return one(&expr.Ct{Key: expr.CtKeyMARK, Register: reg, SourceRegister: true})
}
