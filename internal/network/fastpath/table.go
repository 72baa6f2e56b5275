package fastpath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/cilium/ebpf"
)

// table is a map of the kernel's that only this process changes, so that what it holds is known.
type table[K, V comparable] struct {
	m       *ebpf.Map
	changed *bool
	have    map[K]V
	key     func(K) []byte
	value   func(V) []byte
}

func newTable[K, V comparable](m *ebpf.Map, changed *bool, key func(K) []byte, value func(V) []byte) table[K, V] {
	return table[K, V]{m, changed, map[K]V{}, key, value}
}

func (t *table[K, V]) drop(k K) error {
	if _, ok := t.have[k]; !ok {
		return nil
	}
	*t.changed = true
	if err := t.m.Delete(t.key(k)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("take %v out: %w", k, err)
	}
	delete(t.have, k)
	return nil
}

func (t *table[K, V]) put(k K, v V) error {
	if old, ok := t.have[k]; ok && old == v {
		return nil
	}
	*t.changed = true
	if err := t.m.Put(t.key(k), t.value(v)); err != nil {
		return fmt.Errorf("put %v in: %w", k, err)
	}
	t.have[k] = v
	return nil
}

// keep takes out what is not wanted, or not so.
func (t *table[K, V]) keep(want map[K]V) error {
	var errs []error
	for k, v := range t.have {
		if w, ok := want[k]; !ok || w != v {
			errs = append(errs, t.drop(k))
		}
	}
	return errors.Join(errs...)
}

// fill puts in what is wanted.
func (t *table[K, V]) fill(want map[K]V) error {
	var errs []error
	for k, v := range want {
		errs = append(errs, t.put(k, v))
	}
	return errors.Join(errs...)
}

func number(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }

func address(a netip.Addr) []byte { return a.AsSlice() }

// Keys and values as the programs read them.

func (g Group) bytes() []byte {
	b := append(number(g.Ifindex), number(g.Network)...)
	b = append(append(b, g.Inside[:]...), g.Outside[:]...)
	return append(b, number(g.MTU)...)
}

func (h Home) bytes() []byte { return append(number(h.Network), address(h.Addr)...) }

func prefixBytes(p netip.Prefix) []byte {
	return append(number(uint32(p.Bits())), address(p.Addr())...)
}

// idBytes is a VXLAN id as it is in a packet.
func idBytes(id uint32) []byte { return binary.BigEndian.AppendUint32(nil, id<<8) }

// peerAt is a peer with the ends of the way to it.
type peerAt struct {
	from, at netip.Addr
	Peer
}

// bytes has the sum of what is the same in the outer header of all packets to a peer.
func (p peerAt) bytes() []byte {
	head := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protocolUDP, 0, 0}
	head = append(append(head, address(p.from)...), address(p.at)...)
	var sum uint32
	for ; len(head) > 0; head = head[2:] {
		sum += uint32(binary.NativeEndian.Uint16(head))
	}
	return slices.Concat(number(p.Ifindex), number(sum), number(p.MTU), address(p.Next))
}
