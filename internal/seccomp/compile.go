// Package seccomp turns system call profiles into filters for the kernel.
//
// Profiles are the OCI runtime specification's, so that the same one serves our own init (as compiled bytes) and OCI
// runtimes (as JSON). Everything here is pure. Start at Compile and Default.
package seccomp

import (
	"encoding/binary"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data.
const (
	offsetNumber = 0
	offsetArch   = 4
	offsetArgs   = 16
)

// maxInstructions is the kernel's limit on one filter (BPF_MAXINSNS).
const maxInstructions = 4096

// program is a filter under construction.
type program []unix.SockFilter

func (p *program) add(code uint16, k uint32, jt, jf uint8) {
	*p = append(*p, unix.SockFilter{Code: code, K: k, Jt: jt, Jf: jf})
}

func (p *program) load(offset uint32) { p.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset, 0, 0) }
func (p *program) ret(action uint32)  { p.add(unix.BPF_RET|unix.BPF_K, action, 0, 0) }

// jump compares the loaded value; jt and jf are the instructions to skip.
func (p *program) jump(op uint16, k uint32, jt, jf uint8) {
	p.add(unix.BPF_JMP|op|unix.BPF_K, k, jt, jf)
}

// Compile makes the bytes that the kernel takes: an array of struct sock_filter in this machine's byte order. Names
// that this architecture does not have are skipped, as OCI runtimes do.
func Compile(profile *specs.LinuxSeccomp) ([]byte, error) {
	fallback, err := action(profile.DefaultAction, profile.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("defaultAction: %w", err)
	}
	var p program
	p.load(offsetArch)
	p.jump(unix.BPF_JEQ, auditArch, 1, 0)
	p.ret(unix.SECCOMP_RET_KILL_PROCESS)
	p.load(offsetNumber)
	if foreignBit != 0 {
		// Calls of another ABI on the same architecture (x32) share its audit value.
		p.jump(unix.BPF_JGE, foreignBit, 0, 1)
		p.ret(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS))
	}
	plain, guarded, err := sortRules(profile)
	if err != nil {
		return nil, err
	}
	for _, verdict := range sortedKeys(plain) {
		for _, r := range ranges(plain[verdict]) {
			p.jump(unix.BPF_JGE, r[0], 0, 2)
			p.jump(unix.BPF_JGT, r[1], 1, 0)
			p.ret(verdict)
		}
	}
	for _, number := range sortedKeys(guarded) {
		if err := p.guard(number, guarded[number], fallback); err != nil {
			return nil, err
		}
	}
	p.ret(fallback)
	if len(p) > maxInstructions {
		return nil, fmt.Errorf("profile needs %d instructions, the kernel takes %d", len(p), maxInstructions)
	}
	out := make([]byte, 0, len(p)*8)
	for _, i := range p {
		out = binary.NativeEndian.AppendUint16(out, i.Code)
		out = append(out, i.Jt, i.Jf)
		out = binary.NativeEndian.AppendUint32(out, i.K)
	}
	return out, nil
}

// rule is one set of conditions on a call's arguments.
type rule struct {
	verdict uint32
	args    []specs.LinuxSeccompArg
}

// sortRules splits a profile into calls with a fixed verdict and calls whose arguments count. A fixed verdict wins.
func sortRules(profile *specs.LinuxSeccomp) (map[uint32][]uint32, map[uint32][]rule, error) {
	fixed := map[uint32]uint32{}
	guarded := map[uint32][]rule{}
	for i, s := range profile.Syscalls {
		verdict, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, nil, fmt.Errorf("syscalls[%d].action: %w", i, err)
		}
		for _, name := range s.Names {
			number, ok := numbers[name]
			if !ok {
				continue
			}
			if len(s.Args) == 0 {
				fixed[number] = verdict
			} else {
				guarded[number] = append(guarded[number], rule{verdict, s.Args})
			}
		}
	}
	plain := map[uint32][]uint32{}
	for number, verdict := range fixed {
		plain[verdict] = append(plain[verdict], number)
		delete(guarded, number)
	}
	return plain, guarded, nil
}

// guard adds the rules of one call whose arguments count.
func (p *program) guard(number uint32, rules []rule, fallback uint32) error {
	var body program
	for _, r := range rules {
		checks, err := conditions(r.args)
		if err != nil {
			return err
		}
		body = append(body, checks...)
		body.ret(r.verdict)
	}
	body.ret(fallback)
	// A jump over the whole body, which may be longer than a conditional jump reaches.
	p.jump(unix.BPF_JEQ, number, 1, 0)
	p.add(unix.BPF_JMP|unix.BPF_JA, uint32(len(body)), 0, 0)
	*p = append(*p, body...)
	// The body has loaded arguments.
	return nil
}

// conditions compares arguments; when one does not hold, it jumps behind the return that follows the last.
func conditions(args []specs.LinuxSeccompArg) (program, error) {
	var blocks []program
	for _, a := range args {
		if a.Index > 5 {
			return nil, fmt.Errorf("argument index %d: calls have 6", a.Index)
		}
		block, err := condition(a)
		if err != nil {
			return nil, err
		}
		blocks = append(blocks, block)
	}
	// Resolve the placeholder "fail" jumps: to just behind this rule's return.
	var all program
	for _, b := range blocks {
		all = append(all, b...)
	}
	for i := range all {
		target := uint8(len(all) - i) // instructions to skip to land behind the return
		if all[i].Jt == fail {
			all[i].Jt = target
		}
		if all[i].Jf == fail {
			all[i].Jf = target
		}
	}
	if len(all) >= fail {
		return nil, fmt.Errorf("%d conditions on one call are too many", len(args))
	}
	return all, nil
}

// fail marks a jump to the end of a rule, before its distance is known.
const fail = 0xff

// condition compares one 64-bit argument in two halves.
func condition(a specs.LinuxSeccompArg) (program, error) {
	low, high := uint32(offsetArgs+8*a.Index), uint32(offsetArgs+8*a.Index+4)
	if !littleEndian {
		low, high = high, low
	}
	vl, vh := uint32(a.Value), uint32(a.Value>>32)
	var p program
	switch a.Op {
	case specs.OpEqualTo:
		p.load(high)
		p.jump(unix.BPF_JEQ, vh, 0, fail)
		p.load(low)
		p.jump(unix.BPF_JEQ, vl, 0, fail)
	case specs.OpNotEqual:
		p.load(high)
		p.jump(unix.BPF_JEQ, vh, 0, 2)
		p.load(low)
		p.jump(unix.BPF_JEQ, vl, fail, 0)
	case specs.OpMaskedEqual:
		p.load(high)
		p.add(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, vh, 0, 0)
		p.jump(unix.BPF_JEQ, uint32(a.ValueTwo>>32), 0, fail)
		p.load(low)
		p.add(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, vl, 0, 0)
		p.jump(unix.BPF_JEQ, uint32(a.ValueTwo), 0, fail)
	case specs.OpGreaterThan, specs.OpGreaterEqual:
		op := uint16(unix.BPF_JGT)
		if a.Op == specs.OpGreaterEqual {
			op = unix.BPF_JGE
		}
		p.load(high)
		p.jump(unix.BPF_JGT, vh, 3, 0)
		p.jump(unix.BPF_JEQ, vh, 0, fail)
		p.load(low)
		p.jump(op, vl, 0, fail)
	case specs.OpLessThan, specs.OpLessEqual:
		op := uint16(unix.BPF_JGE)
		if a.Op == specs.OpLessEqual {
			op = unix.BPF_JGT
		}
		p.load(high)
		p.jump(unix.BPF_JGT, vh, fail, 0)
		p.jump(unix.BPF_JEQ, vh, 0, 2)
		p.load(low)
		p.jump(op, vl, fail, 0)
	default:
		return nil, fmt.Errorf("operator %q is not known", a.Op)
	}
	return p, nil
}

func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	number := uint32(unix.EPERM)
	if errno != nil {
		number = uint32(*errno) & unix.SECCOMP_RET_DATA
	}
	switch a {
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | number, nil
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	}
	return 0, fmt.Errorf("action %q is not supported; use SCMP_ACT_ALLOW, ERRNO, KILL, KILL_PROCESS, TRAP or LOG", a)
}

// ranges joins neighbouring numbers.
func ranges(list []uint32) [][2]uint32 {
	slices.Sort(list)
	var out [][2]uint32
	for _, n := range list {
		if len(out) > 0 && out[len(out)-1][1]+1 >= n {
			out[len(out)-1][1] = n
			continue
		}
		out = append(out, [2]uint32{n, n})
	}
	return out
}

func sortedKeys[V any](m map[uint32]V) []uint32 {
	keys := make([]uint32, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
