package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// run gives up what the program must not have and executes it on this thread. It is called inside the container's
// root. On success it does not return.
func (p *Process) run(stdio []int, control *os.File) error {
	if len(p.Args) == 0 {
		return &execError{ExitCannotStart, "no command: neither the image nor the container names one"}
	}
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	r := root{fd}
	who, err := lookUpUser(p.User, r.readFile("/etc/passwd"), r.readFile("/etc/group"))
	if err != nil {
		return err
	}
	if p.NonRoot && who.uid == 0 {
		return errRoot
	}
	if p.TTY {
		if stdio, err = openTerminal(p, who.uid, control); err != nil {
			return err
		}
	}
	for i, from := range stdio {
		if err := unix.Dup3(from, i, 0); err != nil {
			return fmt.Errorf("stdio %d: %w", i, err)
		}
	}
	env := p.environment(who)
	if err := p.enterDir(r); err != nil {
		return err
	}
	// From here on nothing is open but the three standard streams and the control socket, which exec closes.
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close descriptors: %w", err)
	}
	if err := p.dropPrivileges(who, append(p.Groups, who.groups...)); err != nil {
		return err
	}
	return p.exec(env)
}

func (p *Process) environment(who user) []string {
	env := p.Env
	has := func(name string) bool {
		for _, e := range env {
			if strings.HasPrefix(e, name+"=") {
				return true
			}
		}
		return false
	}
	if !has("PATH") {
		env = append(env, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	}
	if !has("HOME") {
		env = append(env, "HOME="+who.home)
	}
	if p.TTY && !has("TERM") {
		env = append(env, "TERM=xterm")
	}
	return env
}

// enterDir changes to the working directory, making it when the image lacks it. A path that ends in /proc is refused:
// a descriptor there could lead out of the root.
func (p *Process) enterDir(r root) error {
	dir := path.Clean("/" + p.Dir)
	if dir == "/proc" || strings.HasPrefix(dir, "/proc/") {
		return &execError{ExitCannotStart, fmt.Sprintf("working directory %q: must not be in /proc", clip(p.Dir))}
	}
	fd, err := r.mkdirAll(dir)
	if err != nil {
		return &execError{ExitCannotStart, fmt.Sprintf("working directory %q: %v", clip(p.Dir), err)}
	}
	defer unix.Close(fd)
	return unix.Fchdir(fd)
}

// dropPrivileges changes user, groups and capabilities of this thread, then closes the way back. The raw calls are on
// purpose: the runtime's wrappers would stop all threads to change each, and only this one executes the program.
func (p *Process) dropPrivileges(who user, groups []uint32) error {
	raw := func(what string, nr, a, b, c uintptr) error {
		if _, _, e := unix.RawSyscall(nr, a, b, c); e != 0 {
			return fmt.Errorf("%s: %w", what, e)
		}
		return nil
	}
	if !p.NoNewPrivs {
		// Without no_new_privs only a privileged thread may set a filter.
		if err := installFilter(p.Seccomp); err != nil {
			return err
		}
	}
	for capability := range uintptr(64) {
		if p.Caps&(1<<capability) != 0 {
			continue
		}
		if _, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, capability, 0); e == unix.EINVAL {
			break // past the kernel's last capability
		} else if e != 0 {
			return fmt.Errorf("drop capability %d: %w", capability, e)
		}
	}
	var list uintptr
	if len(groups) > 0 {
		list = uintptr(unsafe.Pointer(&groups[0]))
	}
	keep := who.uid == 0
	steps := []struct {
		what        string
		nr, a, b, c uintptr
	}{
		{"set groups", unix.SYS_SETGROUPS, uintptr(len(groups)), list, 0},
		{"set group", unix.SYS_SETRESGID, uintptr(who.gid), uintptr(who.gid), uintptr(who.gid)},
		{"set user", unix.SYS_SETRESUID, uintptr(who.uid), uintptr(who.uid), uintptr(who.uid)},
	}
	for _, s := range steps {
		if err := raw(s.what, s.nr, s.a, s.b, s.c); err != nil {
			return err
		}
	}
	unix.Umask(0o022)
	var caps uint64
	if keep {
		caps = p.Caps
	}
	if p.Privileged {
		var err error
		if caps, err = present(caps); err != nil {
			return err
		}
	}
	if err := setCaps(caps); err != nil {
		return err
	}
	if p.NoNewPrivs {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("no new privileges: %w", err)
		}
		return installFilter(p.Seccomp)
	}
	return nil
}

func setCaps(caps uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	data := [2]unix.CapUserData{
		{Effective: uint32(caps), Permitted: uint32(caps)},
		{Effective: uint32(caps >> 32), Permitted: uint32(caps >> 32)},
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}

// installFilter puts the compiled system call filter on this thread.
func installFilter(filter []byte) error {
	const instruction = 8 // bytes of a struct sock_filter
	if len(filter) == 0 {
		return nil
	}
	prog := unix.SockFprog{Len: uint16(len(filter) / instruction), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))}
	_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return fmt.Errorf("set system call filter: %w", e)
	}
	return nil
}

// exec looks the program up as execvp does and executes it.
func (p *Process) exec(env []string) error {
	name := p.Args[0]
	if strings.Contains(name, "/") {
		return execFailure(name, unix.Exec(name, p.Args, env))
	}
	var denied error
	for _, e := range env {
		list, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for dir := range strings.SplitSeq(list, ":") {
			if dir == "" {
				dir = "."
			}
			err := unix.Exec(dir+"/"+name, p.Args, env)
			if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
				denied = err
			}
		}
	}
	if denied != nil {
		return execFailure(name, denied)
	}
	return &execError{ExitNotFound, fmt.Sprintf("exec %q: not found in $PATH", clip(name))}
}
