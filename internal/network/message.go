package network

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// message is one netlink message in the making: header, then attributes that may nest.
type message struct {
	b    []byte
	fine []unix.Errno // answers that say that there was nothing to do
}

func newMessage(kind uint16, flags uint16, head []byte) *message {
	m := &message{b: make([]byte, unix.NLMSG_HDRLEN, 256)}
	binary.NativeEndian.PutUint16(m.b[4:], kind)
	binary.NativeEndian.PutUint16(m.b[6:], flags|unix.NLM_F_REQUEST)
	m.b = append(m.b, head...)
	return m
}

// removal makes of the message that adds a thing the one that removes it. What is not there is no error.
func (m *message) removal(kind uint16) *message {
	binary.NativeEndian.PutUint16(m.b[4:], kind)
	binary.NativeEndian.PutUint16(m.b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	m.fine = []unix.Errno{unix.ENOENT, unix.ESRCH, unix.ENODEV, unix.EADDRNOTAVAIL}
	return m
}

// attr appends an attribute.
func (m *message) attr(kind uint16, value []byte) *message {
	m.b = binary.NativeEndian.AppendUint16(m.b, uint16(4+len(value)))
	m.b = binary.NativeEndian.AppendUint16(m.b, kind)
	m.b = append(m.b, value...)
	m.pad()
	return m
}

func (m *message) u32(kind uint16, v uint32) *message {
	return m.attr(kind, binary.NativeEndian.AppendUint32(nil, v))
}

// text appends a zero-terminated string.
func (m *message) text(kind uint16, s string) *message { return m.attr(kind, append([]byte(s), 0)) }

// nest appends an attribute whose value fill writes.
func (m *message) nest(kind uint16, fill func()) *message {
	at := len(m.b)
	m.b = append(m.b, 0, 0, 0, 0)
	fill()
	binary.NativeEndian.PutUint16(m.b[at:], uint16(len(m.b)-at))
	binary.NativeEndian.PutUint16(m.b[at+2:], kind|unix.NLA_F_NESTED)
	return m
}

// raw appends bytes that are no attribute (a header inside a nest).
func (m *message) raw(b []byte) { m.b = append(m.b, b...) }

func (m *message) pad() {
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
}

// socket is a netlink socket for changes: requests of one call go out in one datagram, the kernel carries them out
// before the send returns, and the acknowledgements are read. Not safe for concurrent use.
type socket struct {
	fd     int
	family int
	seq    uint32
	sent   atomic.Int64 // datagrams with changes, for counting what a start costs
	buf    []byte
}

// dial opens a socket in the network namespace of the calling thread.
func dial(family int) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, family)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket %d: %w", family, err)
	}
	s := &socket{fd: fd, family: family, buf: make([]byte, 16<<10)}
	// Acknowledgements without a copy of the request; and no wait for ever if the kernel sends none.
	unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20)
	// A change goes out whole: thousands of entries at once must fit.
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20)
	if family == unix.NETLINK_ROUTE { // the kernel filters lists by what is asked
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 30}); err != nil {
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	return s, nil
}

// close may be called again: the number of a closed socket is soon another's.
func (s *socket) close() error {
	if s.fd < 0 {
		return nil
	}
	err := unix.Close(s.fd)
	s.fd = -1
	return err
}

// do sends messages and waits for the answer to each. For nftables they are one transaction: all or none.
func (s *socket) do(msgs ...*message) error {
	if len(msgs) == 0 {
		return nil
	}
	if s.family == unix.NETLINK_NETFILTER {
		msgs = batch(msgs)
	}
	first := s.seq + 1
	var out []byte
	want := map[uint32]*message{}
	for _, m := range msgs {
		s.seq++
		binary.NativeEndian.PutUint32(m.b[0:], uint32(len(m.b)))
		binary.NativeEndian.PutUint32(m.b[8:], s.seq)
		if flags := binary.NativeEndian.Uint16(m.b[6:]); flags&unix.NLM_F_ACK != 0 {
			want[s.seq] = m
		}
		out = append(out, m.b...)
	}
	s.sent.Add(1)
	if err := unix.Sendto(s.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to kernel: %w", err)
	}
	return s.receive(first, want)
}

// maxAnswers is how many messages go out at once: the answers to all of them must fit the socket.
const maxAnswers = 200

// doMany sends any number of messages that need not be carried out together, and stops at the first part that fails.
func (s *socket) doMany(msgs []*message) error {
	for part := range slices.Chunk(msgs, maxAnswers) {
		if err := s.do(part...); err != nil {
			return err
		}
	}
	return nil
}

// receive reads until every wanted acknowledgement is there. The first error wins; an error for a message that wanted
// none (the frame of a batch) ends the whole batch.
func (s *socket) receive(first uint32, want map[uint32]*message) error {
	var failed error
	for len(want) > 0 {
		n, _, err := unix.Recvfrom(s.fd, s.buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive from kernel: %w", err)
		}
		for b := s.buf[:n]; len(b) >= unix.NLMSG_HDRLEN+4; {
			size := int(binary.NativeEndian.Uint32(b))
			kind, seq := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint32(b[8:])
			if kind == unix.NLMSG_ERROR && seq >= first {
				code := -int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:]))
				m := want[seq]
				if code != 0 && failed == nil && (m == nil || !slices.Contains(m.fine, unix.Errno(code))) {
					failed = fmt.Errorf("kernel refuses change %d: %w", seq-first, unix.Errno(code))
				}
				if code != 0 && m == nil {
					return failed
				}
				delete(want, seq)
			}
			if size = (size + 3) &^ 3; size < unix.NLMSG_HDRLEN || size > len(b) {
				break
			}
			b = b[size:]
		}
	}
	return failed
}

// batch frames nftables messages as one transaction.
func batch(msgs []*message) []*message {
	head := []byte{unix.AF_UNSPEC, 0, 0, unix.NFNL_SUBSYS_NFTABLES}
	out := make([]*message, 0, len(msgs)+2)
	out = append(out, newMessage(unix.NFNL_MSG_BATCH_BEGIN, 0, head))
	out = append(out, msgs...)
	return append(out, newMessage(unix.NFNL_MSG_BATCH_END, 0, head))
}
