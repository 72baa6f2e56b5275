package network

import (
	"encoding/binary"
	"fmt"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/service"
)

// This file is the part of the rules that serves service addresses. Their number is constant, and a new connection
// costs three lookups however many service addresses there are: the class of the port, the class's chain, the endpoint.

// addressed loads the key of a port of a service address as a group asks for it into reg0..3: the group's network,
// address, protocol, port. It ends the rule for those that are in no network.
func addressed() []expr.Any {
	return rule(l3(unix.NFPROTO_IPV4), source(reg0), lookupMap(setNetOf, reg0, reg0), destination(reg1), meta(expr.MetaKeyL4PROTO, reg2), port(reg3))
}

// addressedHere loads the key as the machine itself asks: in a network of its own.
func addressedHere() []expr.Any {
	return rule(l3(unix.NFPROTO_IPV4), machine(reg0), destination(reg1), meta(expr.MetaKeyL4PROTO, reg2), port(reg3))
}

func machine(reg uint32) []expr.Any {
	return one(&expr.Immediate{Register: reg, Data: binary.NativeEndian.AppendUint32(nil, Machine)})
}

// toSpreadHere is toSpread for what the machine itself asks.
func (p plan) toSpreadHere() []expr.Any {
	return rule(addressedHere(), lookupMap(setService, reg0, reg0), lookupMap(setSpreadHere, reg0, unix.NFT_REG_VERDICT))
}

// refuseHere rejects what of that was not translated.
func (p plan) refuseHere() [][]expr.Any {
	asked := rule(l3(unix.NFPROTO_IPV4), machine(reg0), destination(reg1), in(setServiceIP, reg0))
	var out [][]expr.Any
	if p.tunnel.enabled() {
		out = append(out, rule(p.tunnel.sent(), verdict(expr.VerdictAccept)))
	}
	return append(append(out, [][]expr.Any{rule(known(), verdict(expr.VerdictAccept)), rule(translated(), verdict(expr.VerdictAccept))}...), reject(asked)...)
}

// reject refuses in the way of each protocol.
func reject(asked []expr.Any) [][]expr.Any {
	return [][]expr.Any{
		rule(asked, meta(expr.MetaKeyL4PROTO, reg2), equal(reg2, []byte{unix.IPPROTO_TCP}), one(&expr.Reject{Type: unix.NFT_REJECT_TCP_RST})),
		rule(asked, one(&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_PORT_UNREACH})),
	}
}

// toSpread sends new connections to a service address's port to the chain of its class.
func (p plan) toSpread() []expr.Any {
	return rule(p.from(), addressed(), lookupMap(setService, reg0, reg0), lookupMap(setSpread, reg0, unix.NFT_REG_VERDICT))
}

// refuse rejects what goes to a service address and was not translated: no endpoint is ready, or the port is none of its.
// One that leads to the machine may have itself as its endpoint, an address of this machine; the kernel does not count
// that as a translation. What goes to a group needs no such look: service addresses are outside the groups' range.
func (p plan) refuse() [][]expr.Any {
	toGroups := rule(l3(unix.NFPROTO_IPV4), destination(reg0), within(reg0, p.cidr))
	out := append([][]expr.Any{p.fromVirtual()}, p.throughPublic()...)
	if p.tunnel.enabled() {
		out = append(out, rule(toGroups, source(reg0), lookupMap(setNetOf, reg0, reg0), setMark(reg0)))
	}
	asked := rule(l3(unix.NFPROTO_IPV4), source(reg0), lookupMap(setNetOf, reg0, reg0), destination(reg1), in(setServiceIP, reg0))
	out = append(out,
		rule(toGroups, verdict(expr.VerdictAccept)),
		rule(translated(), verdict(expr.VerdictAccept)),
		rule(addressed(), in(setServiceHost, reg0), verdict(expr.VerdictAccept)))
	return append(out, reject(asked)...)
}

// letIn accepts what a service address that may lead here has led here.
func (p plan) letIn() []expr.Any {
	return rule(l3(unix.NFPROTO_IPV4), p.mayEnter(), verdict(expr.VerdictAccept))
}

// mayEnter matches connections that asked for a service address that may lead to machines.
func (p plan) mayEnter() []expr.Any {
	return rule(called(reg1), source(reg0), lookupMap(setNetOf, reg0, reg0), meta(expr.MetaKeyL4PROTO, reg2),
		one(&expr.Ct{Key: expr.CtKeyPROTODST, Register: reg3}), in(setServiceHost, reg0))
}

// spreadChain is the chain of a class.
func spreadChain(class uint32) string {
	if class&classSticky != 0 {
		return "spread_" + strconv.Itoa(int(class&^classSticky)) + "_sticky"
	}
	return "spread_" + strconv.Itoa(int(class))
}

// spreadClasses are all classes.
func spreadClasses() []uint32 {
	var out []uint32
	for _, n := range service.Classes(false) {
		out = append(out, uint32(n))
	}
	for _, n := range service.Classes(true) {
		if n > 1 {
			out = append(out, uint32(n)|classSticky)
		}
	}
	return out
}

// sender is a kind of sender, which has chains of the classes of its own, and a map that leads to them.
type sender struct {
	set       string
	id        uint32
	suffix    string
	addressed []expr.Any
}

var senders = []sender{{setSpread, 9, "", addressed()}, {setSpreadHere, 10, "_here", addressedHere()}}

// addSpread makes the chains of the classes and the map that leads to them.
func (p plan) addSpread(conn *nftables.Conn, t *nftables.Table, s sender) error {
	var list []nftables.SetElement
	for _, class := range spreadClasses() {
		chain := conn.AddChain(&nftables.Chain{Name: spreadChain(class) + s.suffix, Table: t})
		conn.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: rule(s.addressed, p.bucket(class), lookupMap(setEndpoint, reg0, reg0),
			one(&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg0, RegProtoMin: reg1}))})
		list = append(list, nftables.SetElement{Key: binary.NativeEndian.AppendUint32(nil, class),
			VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain.Name}})
	}
	set := &nftables.Set{Table: t, ID: s.id, Name: s.set, KeyType: nftables.TypeMark, DataType: nftables.TypeVerdict, IsMap: true}
	if err := conn.AddSet(set, list); err != nil {
		return fmt.Errorf("plan map %s: %w", s.set, err)
	}
	return nil
}

// bucket chooses one of a class's buckets into reg4. The hash has a seed that never changes, so that clients keep their
// endpoints over a restart.
func (p plan) bucket(class uint32) []expr.Any {
	n := class &^ classSticky
	switch {
	case n == 1:
		return zero(reg4)
	case class&classSticky != 0:
		return rule(source(reg5), one(&expr.Hash{SourceRegister: reg5, DestRegister: reg4, Length: 4, Modulus: n, Seed: uint32(hash(p.instance)) | 1, Type: expr.HashTypeJenkins}))
	}
	return one(&expr.Numgen{Register: reg4, Modulus: n, Type: unix.NFT_NG_RANDOM})
}
