package network

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	nfsocket "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// This file is the whole rule set of an instance. It reads, in nft's words:
//
//	chain guard   { prerouting, raw }
//	    from a group: source in @guard accept, else drop (IPv6, too)
//	chain dnat    { prerouting + output } to a declared public port: dnat to its group
//	    before that, from a group: to a port of a service address of its network, go to the chain of the port's class
//	    from the machine: to a port of a service address that it may reach, likewise
//	chain spread_N, spread_N_sticky, and with _here for the machine: choose one of N buckets by chance, or by a hash of the sender; dnat to its endpoint
//	chain refuse  { prerouting, filter }  from a group to a service address of its network, not translated: reject
//	chain refuse_here { output }          the same from the machine
//	chain forward { forward }
//	    from a group to metadata addresses                        drop
//	    from a group to a group: by a public address, or member of the sender's network accept, else drop
//	    from a group that has joined a network                    accept, else drop
//	    to a group from elsewhere: established or dnat'ed          accept, else drop
//	chain input   { input }
//	    to a public address (not translated: undeclared port)     drop
//	    from a group: established, DNS and echo to the gateway, by a service address that may lead here  accept, else drop
//	chain snat    { postrouting }
//	    leaving the range or a virtual network: masquerade; group to a public address, or to itself by a service address: from the gateway,
//	    so that answers come back this way
//
// An overlay adds to it: overlayrules.go. What is about virtual networks outside the range is in spacerules.go.
//
// Where a packet comes from is asked once for each hook: what concerns groups is in a chain of its own, with the hook's name
// and _from or _to. Every packet of every group passes here, and comparing names is what costs.
//
// Group to group is decided without connection tracking, so that a connection never outlives a membership; that holds
// after the translation of a service address, too.

// Registers for concatenated keys: 4 bytes each, the first of them aliased by nothing else that the rules use.
const (
	reg0 = unix.NFT_REG32_00 + iota
	reg1
	reg2
	reg3
	reg4 // behind a 16-byte link name in reg0..3
	reg5
)

// ctStatusDNAT is IPS_DST_NAT of the kernel's connection tracking.
const ctStatusDNAT = 1 << 5

func (p plan) nftTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: p.table}
}

func (p plan) sets() []*nftables.Set {
	t := p.nftTable()
	concat := nftables.MustConcatSetType
	servicePortType := concat(nftables.TypeMark, nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	bucketType := concat(nftables.TypeMark, nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService, nftables.TypeMark)
	sets := []*nftables.Set{
		{Table: t, ID: 1, Name: setNetOf, KeyType: nftables.TypeIPAddr, DataType: nftables.TypeMark, IsMap: true},
		{Table: t, ID: 2, Name: setMember, KeyType: concat(nftables.TypeIPAddr, nftables.TypeMark), Concatenation: true},
		{Table: t, ID: 3, Name: setGuard, KeyType: concat(nftables.TypeIFName, nftables.TypeIPAddr), Concatenation: true},
		{Table: t, ID: 5, Name: setServiceIP, KeyType: concat(nftables.TypeMark, nftables.TypeIPAddr), Concatenation: true},
		{Table: t, ID: 6, Name: setService, KeyType: servicePortType, DataType: nftables.TypeMark, IsMap: true, Concatenation: true},
		{Table: t, ID: 7, Name: setEndpoint, KeyType: bucketType, DataType: concat(nftables.TypeIPAddr, nftables.TypeInetService), IsMap: true, Concatenation: true},
		{Table: t, ID: 8, Name: setServiceHost, KeyType: servicePortType, Concatenation: true},
		{Table: t, ID: 4, Name: setPublic, KeyType: concat(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService), DataType: nftables.TypeIPAddr, IsMap: true, Concatenation: true},
	}
	if p.tunnel.enabled() {
		sets = append(sets, p.overlaySets()...)
	}
	return sets
}

// chain is a chain with its rules; every rule is a list of expressions. Without a hook others lead to it.
type chain struct {
	name  string
	hook  *nftables.ChainHook
	kind  nftables.ChainType
	prio  *nftables.ChainPriority
	rules [][]expr.Any
}

func (p plan) chains() []chain {
	translate := rule(l3(unix.NFPROTO_IPV4), destination(reg0), meta(expr.MetaKeyL4PROTO, reg1), port(reg2),
		lookupMap(setPublic, reg0, reg0), nat(expr.NATTypeDestNAT, reg0))
	chains := []chain{
		{"guard", nftables.ChainHookPrerouting, nftables.ChainTypeFilter, nftables.ChainPriorityRaw, p.guard()},
		{"dnat", nftables.ChainHookPrerouting, nftables.ChainTypeNAT, nftables.ChainPriorityNATDest, [][]expr.Any{p.toSpread(), p.publish(), translate}},
		{"refuse", nftables.ChainHookPrerouting, nftables.ChainTypeFilter, nftables.ChainPriorityFilter, [][]expr.Any{p.recall(), rule(p.from(), leadTo("refuse_from"))}},
		{"dnat_local", nftables.ChainHookOutput, nftables.ChainTypeNAT, nftables.ChainPriorityNATDest, [][]expr.Any{p.toSpreadHere(), p.publish(), translate}},
		{"recall_here", nftables.ChainHookOutput, nftables.ChainTypeRoute, nftables.ChainPriorityMangle, [][]expr.Any{p.recall()}},
		{"refuse_here", nftables.ChainHookOutput, nftables.ChainTypeFilter, nftables.ChainPriorityFilter, p.refuseHere()},
		{"forward", nftables.ChainHookForward, nftables.ChainTypeFilter, nftables.ChainPriorityFilter, p.forward()},
		{"input", nftables.ChainHookInput, nftables.ChainTypeFilter, nftables.ChainPriorityFilter, p.input()},
		{"snat", nftables.ChainHookPostrouting, nftables.ChainTypeNAT, nftables.ChainPriorityNATSource, p.snat()},
		{name: "guard_from", rules: p.guardFrom()}, {name: "refuse_from", rules: p.refuse()},
		{name: "forward_from", rules: p.forwardFrom()}, {name: "forward_to", rules: p.forwardTo()}, {name: "input_from", rules: p.inputFrom()},
	}
	if p.tunnel.enabled() {
		chains = append(chains, p.overlayChains()...)
	}
	return chains
}

func (p plan) guard() [][]expr.Any {
	out := [][]expr.Any{rule(p.from(), leadTo("guard_from"))}
	if p.tunnel.enabled() {
		out = append(out, p.overlayGuard()...)
	}
	return out
}

func (p plan) guardFrom() [][]expr.Any {
	return [][]expr.Any{
		rule(l3(unix.NFPROTO_IPV4), meta(expr.MetaKeyIIFNAME, reg0), source(reg4), in(setGuard, reg0), verdict(expr.VerdictAccept)),
		verdict(expr.VerdictDrop),
	}
}

func (p plan) snat() [][]expr.Any {
	fromGateway := rule(one(&expr.Immediate{Register: reg0, Data: p.gateway.AsSlice()}), nat(expr.NATTypeSourceNAT, reg0))
	out := [][]expr.Any{
		rule(l3(unix.NFPROTO_IPV4), source(reg0), within(reg0, p.cidr), destination(reg0), outside(reg0, p.cidr), one(&expr.Masq{})),
		// It leaves by the very link whose source it has: a group that was led to itself.
		rule(p.to(), l3(unix.NFPROTO_IPV4), meta(expr.MetaKeyOIFNAME, reg0), source(reg4), in(setGuard, reg0), translated(), fromGateway),
	}
	for _, r := range p.public {
		out = append(out, rule(l3(unix.NFPROTO_IPV4), source(reg0), within(reg0, p.cidr), destination(reg0), within(reg0, p.cidr),
			translated(), called(reg1), within(reg1, r), fromGateway))
		out = append(out, rule(p.from(), p.to(), l3(unix.NFPROTO_IPV4), translated(), called(reg1), within(reg1, r), fromGateway))
	}
	return append(out, p.leaveVirtual())
}

func (p plan) forward() [][]expr.Any {
	out := [][]expr.Any{rule(p.from(), leadTo("forward_from"))}
	if p.tunnel.enabled() {
		out = append(out, p.overlayForward()...)
	}
	return append(out, rule(p.to(), leadTo("forward_to")))
}

// forwardFrom is about what groups send.
func (p plan) forwardFrom() [][]expr.Any {
	var out [][]expr.Any
	if p.tunnel.enabled() {
		out = p.overlayForwardOut()
	}
	out = append(out, rule(l3(unix.NFPROTO_IPV4), destination(reg0), within(reg0, metadata), verdict(expr.VerdictDrop)))
	for _, r := range p.public {
		out = append(out, rule(p.to(), l3(unix.NFPROTO_IPV4), translated(), called(reg1), within(reg1, r), verdict(expr.VerdictAccept)))
	}
	out = append(out,
		rule(zero(reg0), setMark(reg0)),
		rule(l3(unix.NFPROTO_IPV4), source(reg0), lookupMap(setNetOf, reg0, reg0), setMark(reg0)),
		rule(p.to(), l3(unix.NFPROTO_IPV4), destination(reg0), meta(expr.MetaKeyMARK, reg1), in(setMember, reg0), verdict(expr.VerdictAccept)),
		rule(p.to(), verdict(expr.VerdictDrop)),
	)
	if p.tunnel.enabled() {
		out = append(out, p.overlayForwardAway()...)
	}
	return append(out,
		rule(meta(expr.MetaKeyMARK, reg0), notZero(reg0), zero(reg0), setMark(reg0), verdict(expr.VerdictAccept)),
		verdict(expr.VerdictDrop),
	)
}

// forwardTo is about what groups get from elsewhere.
func (p plan) forwardTo() [][]expr.Any {
	return [][]expr.Any{
		rule(known(), verdict(expr.VerdictAccept)),
		rule(translated(), verdict(expr.VerdictAccept)),
		verdict(expr.VerdictDrop),
	}
}

func (p plan) input() [][]expr.Any {
	var out [][]expr.Any
	if p.tunnel.enabled() {
		out = p.overlayInput()
	}
	for _, r := range p.public {
		out = append(out, rule(l3(unix.NFPROTO_IPV4), destination(reg0), within(reg0, r), verdict(expr.VerdictDrop)))
	}
	return append(out, rule(p.from(), leadTo("input_from")))
}

func (p plan) inputFrom() [][]expr.Any {
	toGateway := rule(l3(unix.NFPROTO_IPV4), destination(reg0), equal(reg0, p.gateway.AsSlice()))
	dns := func(proto byte) []expr.Any {
		return rule(toGateway, meta(expr.MetaKeyL4PROTO, reg1), equal(reg1, []byte{proto}), port(reg2), equal(reg2, []byte{0, 53}), verdict(expr.VerdictAccept))
	}
	echo := rule(toGateway, meta(expr.MetaKeyL4PROTO, reg1), equal(reg1, []byte{unix.IPPROTO_ICMP}),
		one(&expr.Payload{DestRegister: reg2, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1}), equal(reg2, []byte{8}), verdict(expr.VerdictAccept))
	return [][]expr.Any{
		rule(known(), verdict(expr.VerdictAccept)),
		dns(unix.IPPROTO_UDP), dns(unix.IPPROTO_TCP), echo, p.letIn(),
		verdict(expr.VerdictDrop),
	}
}

// answersBuffer holds the kernel's answers to all rules and chains, which come at once.
const answersBuffer = 4 << 20

// applyRuleset writes table, sets, chains and rules in one transaction. Rules are made anew, elements stay: groups that
// run notice nothing. What an overlay had before is removed when there is none.
func (n *Network) applyRuleset(way tunnel, had bool) error {
	p := n.plan
	p.tunnel = way
	conn, err := nftables.New(nftables.WithNetNSFd(int(n.home.Fd())), nftables.WithSockOptions(func(s *nfsocket.Conn) error {
		return s.SetReadBuffer(answersBuffer)
	}))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := conn.AddTable(p.nftTable())
	conn.FlushTable(t)
	for _, s := range p.sets() {
		if err := conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("plan set %s: %w", s.Name, err)
		}
	}
	for _, s := range senders {
		if err := p.addSpread(conn, t, s); err != nil {
			return err
		}
	}
	chains, made := p.chains(), map[string]*nftables.Chain{}
	for _, c := range chains { // all before the first rule that leads to one
		made[c.name] = conn.AddChain(&nftables.Chain{Name: c.name, Table: t, Hooknum: c.hook, Type: c.kind, Priority: c.prio})
	}
	for _, c := range chains {
		for _, r := range c.rules {
			conn.AddRule(&nftables.Rule{Table: t, Chain: made[c.name], Exprs: r})
		}
	}
	if had && !way.enabled() {
		p.removeOverlay(conn, t)
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("write table %s: %w", p.table, err)
	}
	return nil
}

// rule joins parts in order.
func rule(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func one(e expr.Any) []expr.Any { return []expr.Any{e} }

func verdict(kind expr.VerdictKind) []expr.Any { return one(&expr.Verdict{Kind: kind}) }

// leadTo goes on in another chain, for good.
func leadTo(chain string) []expr.Any {
	return one(&expr.Verdict{Kind: expr.VerdictGoto, Chain: chain})
}

// from and to match the instance's links by the beginning of their names.
func (p plan) from() []expr.Any {
	return rule(meta(expr.MetaKeyIIFNAME, reg0), equal(reg0, []byte(p.links)))
}

func (p plan) to() []expr.Any {
	return rule(meta(expr.MetaKeyOIFNAME, reg0), equal(reg0, []byte(p.links)))
}

func l3(proto byte) []expr.Any {
	return rule(meta(expr.MetaKeyNFPROTO, reg0), equal(reg0, []byte{proto}))
}

func meta(key expr.MetaKey, reg uint32) []expr.Any { return one(&expr.Meta{Key: key, Register: reg}) }

// setMark marks a packet with its sender's network. Nothing else on the machine sees the mark: it is taken off what
// leaves the range, and is gone when a packet enters another namespace.
func setMark(reg uint32) []expr.Any {
	return one(&expr.Meta{Key: expr.MetaKeyMARK, Register: reg, SourceRegister: true})
}

func zero(reg uint32) []expr.Any {
	return one(&expr.Immediate{Register: reg, Data: make([]byte, 4)})
}

func notZero(reg uint32) []expr.Any {
	return one(&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)})
}

func equal(reg uint32, v []byte) []expr.Any {
	return one(&expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: v})
}

func source(reg uint32) []expr.Any {
	return one(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4})
}

func destination(reg uint32) []expr.Any {
	return one(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4})
}

// port is the destination port of TCP and UDP.
func port(reg uint32) []expr.Any {
	return one(&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2})
}

func within(reg uint32, p netip.Prefix) []expr.Any  { return masked(reg, p, expr.CmpOpEq) }
func outside(reg uint32, p netip.Prefix) []expr.Any { return masked(reg, p, expr.CmpOpNeq) }

func masked(reg uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	mask := binaryutil.BigEndian.PutUint32(^uint32(0) << (32 - p.Bits()))
	if p.Bits() == 0 {
		mask = make([]byte, 4)
	}
	return []expr.Any{
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: reg, Data: p.Addr().AsSlice()},
	}
}

func in(set string, reg uint32) []expr.Any {
	return one(&expr.Lookup{SourceRegister: reg, SetName: set})
}

func notIn(set string, reg uint32) []expr.Any {
	return one(&expr.Lookup{SourceRegister: reg, SetName: set, Invert: true})
}

// lookupMap ends the rule when the key is not in the map.
func lookupMap(set string, key, value uint32) []expr.Any {
	return one(&expr.Lookup{SourceRegister: key, DestRegister: value, IsDestRegSet: true, SetName: set})
}

func nat(kind expr.NATType, addr uint32) []expr.Any {
	return one(&expr.NAT{Type: kind, Family: unix.NFPROTO_IPV4, RegAddrMin: addr})
}

func known() []expr.Any {
	return ctBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

// called loads the address that a connection asked for, before it was translated. It needs four registers.
func called(reg uint32) []expr.Any { return one(&expr.Ct{Key: expr.CtKeyDST, Register: reg}) }

func translated() []expr.Any { return ctBits(expr.CtKeySTATUS, ctStatusDNAT) }

func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg0},
		&expr.Bitwise{SourceRegister: reg0, DestRegister: reg0, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg0, Data: make([]byte, 4)},
	}
}
