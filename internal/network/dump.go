package network

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dumpBuffer is the most that the kernel sends in one piece of a list. For each piece it walks the set from its
// beginning, so pieces should be few.
const dumpBuffer = 32 << 10

// dump asks for a list and gives the body of every message of it. Errors: netlink.ErrDumpInterrupted when the list
// changed meanwhile; what was given then is worth nothing.
func (s *socket) dump(m *message, each func(body []byte)) error {
	s.seq++
	binary.NativeEndian.PutUint32(m.b[0:], uint32(len(m.b)))
	binary.NativeEndian.PutUint32(m.b[8:], s.seq)
	if err := unix.Sendto(s.fd, m.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to kernel: %w", err)
	}
	if len(s.buf) < dumpBuffer {
		s.buf = make([]byte, dumpBuffer)
	}
	interrupted := false
	for {
		n, _, err := unix.Recvfrom(s.fd, s.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive from kernel: %w", err)
		}
		for b := s.buf[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			size := int(binary.NativeEndian.Uint32(b))
			if size < unix.NLMSG_HDRLEN || size > len(b) {
				return errors.New("receive from kernel: a message is cut off")
			}
			kind, flags, seq := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:])
			body := b[unix.NLMSG_HDRLEN:size]
			b = b[min((size+3)&^3, len(b)):]
			if seq != s.seq {
				continue // of a dump that was given up
			}
			interrupted = interrupted || flags&unix.NLM_F_DUMP_INTR != 0
			switch {
			case kind == unix.NLMSG_DONE && interrupted:
				return netlink.ErrDumpInterrupted
			case kind == unix.NLMSG_DONE:
				return nil
			case kind == unix.NLMSG_ERROR && len(body) >= 4:
				return fmt.Errorf("kernel refuses to list: %w", unix.Errno(-int32(binary.NativeEndian.Uint32(body))))
			}
			each(body)
		}
	}
}

// attributes walks over a list of attributes.
func attributes(b []byte, each func(kind uint16, value []byte)) {
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return
		}
		each(binary.NativeEndian.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:size])
		b = b[min((size+3)&^3, len(b)):]
	}
}

// dumpSet gives every entry of a set of the table, over a socket that nobody else uses meanwhile.
func (n *Network) dumpSet(s *socket, set string) ([]element, error) {
	return whole(func() ([]element, error) {
		m := newMessage(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETSETELEM, unix.NLM_F_DUMP, []byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0})
		m.text(unix.NFTA_SET_ELEM_LIST_TABLE, n.plan.table).text(unix.NFTA_SET_ELEM_LIST_SET, set)
		var out []element
		err := s.dump(m, func(body []byte) {
			if len(body) < 4 {
				return
			}
			attributes(body[4:], func(kind uint16, list []byte) {
				if kind == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
					attributes(list, func(_ uint16, entry []byte) { out = append(out, decodeEntry(set, entry)) })
				}
			})
		})
		if err != nil {
			return nil, fmt.Errorf("read set %s of table %s: %w", set, n.plan.table, err)
		}
		return out, nil
	})
}

// decodeEntry reads one entry of a set.
func decodeEntry(set string, entry []byte) element {
	e := element{set: set}
	value := func(to *string) func(uint16, []byte) {
		return func(kind uint16, v []byte) {
			if kind == unix.NFTA_DATA_VALUE {
				*to = string(v)
			}
		}
	}
	attributes(entry, func(kind uint16, v []byte) {
		switch kind {
		case unix.NFTA_SET_ELEM_KEY:
			attributes(v, value(&e.key))
		case unix.NFTA_SET_ELEM_DATA:
			attributes(v, value(&e.value))
		}
	})
	return e
}
