package network

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
)

// Counters are bytes and packets as the group sees them.
type Counters struct{ RxBytes, TxBytes, RxPackets, TxPackets uint64 }

// Stats reads the counters of a slot's link. Errors: not-found when it has none.
func (n *Network) Stats(s Slot) (Counters, error) {
	name := n.plan.link(s.Index)
	l, err := n.route.LinkByName(name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return Counters{}, fault.New(fault.NotFound, "", "network link %s of slot %d is not there", name, s.Index)
	}
	if err != nil {
		return Counters{}, fmt.Errorf("read counters of %s: %w", name, err)
	}
	st := l.Attrs().Statistics // the host's end: what it receives, the group has sent
	c := Counters{RxBytes: st.TxBytes, TxBytes: st.RxBytes, RxPackets: st.TxPackets, TxPackets: st.RxPackets}
	// What goes around the stack to a group does not pass the host's end.
	if bytes, packets, err := n.received(uint32(l.Attrs().ParentIndex), int32(l.Attrs().NetNsID)); err == nil {
		c.RxBytes, c.RxPackets = max(c.RxBytes, bytes), max(c.RxPackets, packets)
	}
	return c, nil
}

// received is what a device in another namespace, known by its number here, has received.
func (n *Network) received(dev uint32, namespace int32) (bytes, packets uint64, err error) {
	n.rtMu.Lock()
	defer n.rtMu.Unlock()
	// The acknowledgement ends the answer.
	m := newMessage(unix.RTM_GETLINK, unix.NLM_F_ACK, linkHead(dev, 0)).u32(unix.IFLA_TARGET_NETNSID, uint32(namespace))
	err = n.rt.dump(m, func(body []byte) {
		if len(body) < unix.SizeofIfInfomsg {
			return
		}
		attributes(body[unix.SizeofIfInfomsg:], func(kind uint16, v []byte) {
			if kind == unix.IFLA_STATS64 && len(v) >= 24 { // packets received, sent; bytes received
				packets, bytes = binary.NativeEndian.Uint64(v), binary.NativeEndian.Uint64(v[16:])
			}
		})
	})
	if errors.Is(err, unix.Errno(0)) {
		err = nil
	}
	return bytes, packets, err
}
