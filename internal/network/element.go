package network

import (
	"encoding/binary"
	"maps"
	"net/netip"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/group"
)

// The sets and maps of the table.
const (
	setNetOf  = "net_of" // address → network
	setMember = "member" // address . network
	setGuard  = "guard"  // link . address: the only source that a link may use
	setPublic = "public" // public address . protocol . port → address
	// Of service addresses; SERVICE stands for: network . address.
	setServiceIP   = "service_ip"   // SERVICE
	setService     = "service"      // SERVICE . protocol . port → class
	setEndpoint    = "endpoint"     // SERVICE . protocol . port . bucket → address . port
	setServiceHost = "service_host" // SERVICE . protocol . port: connections may enter the machine
	setSpread      = "spread"       // class → chain; constant
	setSpreadHere  = "spread_here"  // the same, for what the machine itself asks
	// Of an overlay.
	setOverlay = "overlay" // device → network
	setCarrier = "carrier" // device . network
	setPeer    = "peer"    // address of another host
)

// element is one entry of a set or map. Key and value are as the kernel holds them.
type element struct {
	set   string
	key   string
	value string // maps only
}

// elements is what the sets of a table hold of groups, by the address that owns each entry.
type elements struct {
	member map[netip.Addr][]element // net_of, member and public
	guard  map[netip.Addr]element
}

func newElements() elements {
	return elements{member: map[netip.Addr][]element{}, guard: map[netip.Addr]element{}}
}

func membershipElements(m Membership) []element {
	addr, mark := addrKey(m.Addr), string(binary.NativeEndian.AppendUint32(nil, m.Network))
	out := []element{{set: setNetOf, key: addr, value: mark}, {set: setMember, key: addr + mark}}
	if m.Public.IsValid() {
		for _, p := range m.Ports {
			out = append(out, element{set: setPublic, key: publicKey(m.Public, p), value: addr})
		}
	}
	return out
}

func guardElement(link string, a netip.Addr) element {
	return element{set: setGuard, key: linkKey(link) + addrKey(a)}
}

// linkKey is a device's name as sets hold it.
func linkKey(name string) string {
	var key [unix.IFNAMSIZ]byte
	copy(key[:], name)
	return string(key[:])
}

func addrKey(a netip.Addr) string { b := a.As4(); return string(b[:]) }

// publicKey is address, protocol and port, each filled up to 4 bytes as concatenations are.
func publicKey(a netip.Addr, p group.Port) string {
	proto := byte(unix.IPPROTO_TCP)
	if p.Protocol == "UDP" {
		proto = unix.IPPROTO_UDP
	}
	return addrKey(a) + string([]byte{proto, 0, 0, 0, byte(p.Number >> 8), byte(p.Number), 0, 0})
}

// owner is the group address that an element belongs to.
func (e element) owner() netip.Addr {
	from := e.key
	switch e.set {
	case setPublic:
		from = e.value
	case setGuard:
		from = e.key[unix.IFNAMSIZ:]
	}
	return netip.AddrFrom4([4]byte([]byte(from[:4])))
}

// replace is the change from what an address has to what it should have.
func (h elements) replace(a netip.Addr, want []element) (del, add []element) {
	return difference(h.member[a], want), difference(want, h.member[a])
}

// difference is what a has and b has not.
func difference(a, b []element) []element {
	var out []element
	for _, e := range a {
		found := false
		for _, o := range b {
			found = found || e == o
		}
		if !found {
			out = append(out, e)
		}
	}
	return out
}

// apply records a change that the kernel has made.
func (h elements) apply(del, add []element) {
	for _, e := range del {
		a := e.owner()
		if e.set == setGuard {
			delete(h.guard, a)
			continue
		}
		if h.member[a] = difference(h.member[a], []element{e}); len(h.member[a]) == 0 {
			delete(h.member, a)
		}
	}
	for _, e := range add {
		a := e.owner()
		if e.set == setGuard {
			h.guard[a] = e
			continue
		}
		h.member[a] = append(h.member[a], e)
	}
}

// all are the entries.
func (h elements) all() map[element]bool {
	out := map[element]bool{}
	for _, list := range h.member {
		for _, e := range list {
			out[e] = true
		}
	}
	for e := range maps.Values(h.guard) {
		out[e] = true
	}
	return out
}

// encodeElements makes the messages of one batch: per set one with what goes, then per set one with what comes.
func encodeElements(table string, del, add []element) []*message {
	var out []*message
	for _, part := range []struct {
		kind  uint16
		flags uint16
		list  []element
	}{
		{unix.NFT_MSG_DELSETELEM, 0, del},
		{unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, add},
	} {
		bySet := map[string][]element{}
		for _, e := range part.list {
			bySet[e.set] = append(bySet[e.set], e)
		}
		for _, set := range []string{setPublic, setNetOf, setMember, setGuard, setServiceIP, setService, setEndpoint, setServiceHost, setOverlay, setCarrier, setPeer} {
			list := bySet[set]
			for len(list) > 0 {
				n := min(len(list), maxPerMessage)
				out = append(out, encodeSet(table, set, part.kind, part.flags, list[:n]))
				list = list[n:]
			}
		}
	}
	return out
}

// maxPerMessage keeps the nested list below the 64 KiB that an attribute can hold.
const maxPerMessage = 500

func encodeSet(table, set string, kind, flags uint16, list []element) *message {
	head := []byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}
	m := newMessage(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags|unix.NLM_F_ACK, head)
	m.text(unix.NFTA_SET_ELEM_LIST_TABLE, table)
	m.text(unix.NFTA_SET_ELEM_LIST_SET, set)
	m.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
		for _, e := range list {
			m.nest(unix.NFTA_LIST_ELEM, func() {
				m.nest(unix.NFTA_SET_ELEM_KEY, func() { m.attr(unix.NFTA_DATA_VALUE, []byte(e.key)) })
				if e.value != "" && kind == unix.NFT_MSG_NEWSETELEM {
					m.nest(unix.NFTA_SET_ELEM_DATA, func() { m.attr(unix.NFTA_DATA_VALUE, []byte(e.value)) })
				}
			})
		}
	})
	return m
}

// readGroups reads what the sets of the table hold of groups. The lock is held.
func (n *Network) readGroups() error {
	have := newElements()
	for _, set := range []string{setNetOf, setMember, setGuard, setPublic} {
		list, err := n.dumpSet(n.nf, set)
		if err != nil {
			return err
		}
		have.apply(nil, list)
	}
	n.have = have
	return n.fastCompare()
}
