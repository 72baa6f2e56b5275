package seccomp

import (
	"encoding/base64"
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// judge runs a compiled filter as the kernel would.
func judge(t *testing.T, filter []byte, call string, args ...uint64) uint32 {
	t.Helper()
	number, ok := numbers[call]
	if !ok {
		t.Skipf("no call %s on this architecture", call)
	}
	data := make([]byte, 64)
	binary.NativeEndian.PutUint32(data, number)
	binary.NativeEndian.PutUint32(data[offsetArch:], auditArch)
	for i, a := range args {
		binary.NativeEndian.PutUint64(data[offsetArgs+8*i:], a)
	}
	var acc uint32
	for pc := 0; pc < len(filter)/8; pc++ {
		at := filter[pc*8:]
		code, jt, jf, k := binary.NativeEndian.Uint16(at), at[2], at[3], binary.NativeEndian.Uint32(at[4:])
		branch := func(yes bool) {
			if yes {
				pc += int(jt)
			} else {
				pc += int(jf)
			}
		}
		switch code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = binary.NativeEndian.Uint32(data[k:])
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= k
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(k)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			branch(acc == k)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			branch(acc > k)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			branch(acc >= k)
		case unix.BPF_RET | unix.BPF_K:
			return k
		default:
			t.Fatalf("instruction %d has code %#x", pc, code)
		}
	}
	t.Fatal("filter ran over its end")
	return 0
}

const (
	allow  = uint32(unix.SECCOMP_RET_ALLOW)
	eperm  = uint32(unix.SECCOMP_RET_ERRNO | unix.EPERM)
	enosys = uint32(unix.SECCOMP_RET_ERRNO | unix.ENOSYS)
)

func TestDefaultProfile(t *testing.T) {
	filter, err := Compile(Default())
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		call string
		args []uint64
		want uint32
	}{
		{"read", nil, allow}, {"openat", nil, allow}, {"execve", nil, allow}, {"futex", nil, allow}, {"statx", nil, allow},
		{"mount", nil, eperm}, {"unshare", nil, eperm}, {"bpf", nil, eperm}, {"init_module", nil, eperm},
		{"keyctl", nil, eperm}, {"io_uring_setup", nil, eperm}, {"userfaultfd", nil, eperm}, {"setns", nil, eperm},
		{"kexec_load", nil, eperm}, {"perf_event_open", nil, eperm}, {"open_by_handle_at", nil, eperm},
		{"clone3", nil, enosys},
		{"clone", []uint64{uint64(unix.SIGCHLD)}, allow},
		{"clone", []uint64{unix.CLONE_NEWUSER}, eperm},
		{"clone", []uint64{unix.CLONE_NEWNS | unix.CLONE_VM}, eperm},
		{"socket", []uint64{unix.AF_INET}, allow}, {"socket", []uint64{unix.AF_VSOCK}, eperm},
		{"socket", []uint64{1<<32 | unix.AF_VSOCK}, allow},
		{"personality", []uint64{0xffffffff}, allow}, {"personality", []uint64{0x0040000}, eperm},
	}
	for _, tt := range tests {
		if got := judge(t, filter, tt.call, tt.args...); got != tt.want {
			t.Errorf("%s(%v) = %#x, want %#x", tt.call, tt.args, got, tt.want)
		}
	}
}

func TestTenantProfileOnlyNarrows(t *testing.T) {
	parse := func(json string) []byte {
		p, err := Parse(base64.StdEncoding.EncodeToString([]byte(json)))
		if err != nil {
			t.Fatal(err)
		}
		filter, err := Compile(p)
		if err != nil {
			t.Fatal(err)
		}
		return filter
	}
	wide := parse(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["mount","read","clone"],"action":"SCMP_ACT_ALLOW"}]}`)
	open := parse(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir"],"action":"SCMP_ACT_ERRNO"}]}`)
	tests := []struct {
		filter []byte
		call   string
		args   []uint64
		want   uint32
	}{
		{wide, "read", nil, allow}, {wide, "mount", nil, eperm}, {wide, "write", nil, eperm},
		{wide, "clone", []uint64{unix.CLONE_NEWUSER}, eperm}, {wide, "clone", []uint64{0}, allow},
		{open, "mkdir", nil, eperm}, {open, "read", nil, allow}, {open, "mount", nil, eperm},
	}
	for _, tt := range tests {
		if got := judge(t, tt.filter, tt.call, tt.args...); got != tt.want {
			t.Errorf("%s(%v) = %#x, want %#x", tt.call, tt.args, got, tt.want)
		}
	}
	for _, bad := range []string{"%", "", base64.StdEncoding.EncodeToString([]byte(`{"defaultAction":"SCMP_ACT_TRACE"}`))} {
		if _, err := Parse(bad); err == nil {
			t.Errorf("Parse(%q) took it", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW","args":[{"index":1,"value":3,"op":"SCMP_CMP_LE"}]}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		p, err := Parse(base64.StdEncoding.EncodeToString(body))
		if err != nil {
			return
		}
		filter, err := Compile(p)
		if err != nil {
			t.Fatal(err)
		}
		if judge(t, filter, "mount") == allow {
			t.Fatalf("profile %s allows mount", body)
		}
	})
}
