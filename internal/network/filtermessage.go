package network

import (
	"encoding/binary"
	"strconv"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// This file is what the kernel is told of programs at devices.

// hook is where a device's packets meet programs.
type hook uint32

// As parents of filters: TC_H_CLSACT with TC_H_MIN_INGRESS and TC_H_MIN_EGRESS.
const (
	clsact  = 0xffff_fff1
	ingress = hook(0xffff_fff2)
	egress  = hook(0xffff_fff3)
)

const (
	// filterPriority tells our filters from others at a device that is not ours alone.
	filterPriority = 20_797

	bpfFD, bpfName, bpfFlags, bpfID = 6, 7, 8, 11 // TCA_BPF_…
	bpfDirect                       = 1           // TCA_BPF_FLAG_ACT_DIRECT: the program says what becomes of a packet

	tcHeadLen = 20
)

// tcHead is struct tcmsg.
func tcHead(dev, handle, parent, info uint32) []byte {
	b := make([]byte, tcHeadLen)
	binary.NativeEndian.PutUint32(b[4:], dev)
	binary.NativeEndian.PutUint32(b[8:], handle)
	binary.NativeEndian.PutUint32(b[12:], parent)
	binary.NativeEndian.PutUint32(b[16:], info)
	return b
}

// hooks gives a device places for programs.
func hooks(dev uint32) *message {
	m := newMessage(unix.RTM_NEWQDISC, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, tcHead(dev, 0xffff_0000, clsact, 0))
	m.fine = []unix.Errno{unix.EEXIST}
	return m.text(unix.TCA_KIND, "clsact")
}

// withoutHooks removes them, with all programs.
func withoutHooks(dev uint32) *message {
	m := newMessage(unix.RTM_DELQDISC, 0, tcHead(dev, 0xffff_0000, clsact, 0)).removal(unix.RTM_DELQDISC)
	m.fine = append(m.fine, unix.EINVAL) // no hooks are there
	return m
}

// filterInfo is priority and protocol of our filters.
func filterInfo() uint32 {
	return filterPriority<<16 | uint32(binary.NativeEndian.Uint16([]byte{0x08, 0x00}))
}

// filterHandle tells this instance's filters from those of others at the same device.
func (p plan) filterHandle() uint32 {
	id, _ := strconv.ParseUint(p.instance, 16, 16) // checked when the plan was made
	return 1<<16 | uint32(id)
}

// filter puts a program at a device's hook, instead of the one that this instance has there.
func (p plan) filter(dev uint32, at hook, program *ebpf.Program) *message {
	m := newMessage(unix.RTM_NEWTFILTER, unix.NLM_F_ACK|unix.NLM_F_CREATE, tcHead(dev, p.filterHandle(), uint32(at), filterInfo()))
	m.text(unix.TCA_KIND, "bpf")
	return m.nest(unix.TCA_OPTIONS, func() {
		m.u32(bpfFD, uint32(program.FD())).text(bpfName, p.table).u32(bpfFlags, bpfDirect)
	})
}

// withoutFilter takes it off.
func (p plan) withoutFilter(dev uint32, at hook) *message {
	m := newMessage(unix.RTM_DELTFILTER, 0, tcHead(dev, p.filterHandle(), uint32(at), filterInfo())).removal(unix.RTM_DELTFILTER)
	m.fine = append(m.fine, unix.EINVAL, unix.EOPNOTSUPP) // no hooks are there
	return m.text(unix.TCA_KIND, "bpf")
}
