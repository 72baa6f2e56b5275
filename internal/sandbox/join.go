package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// execute joins the namespaces of a running container and becomes a command there. The keeper has started this
// process in the container's process namespace already, which a process cannot change for itself.
func execute(control *os.File) error {
	var request Exec
	stdio, err := receive(control, &request)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	// The container's first process was opened by the keeper and came as the last descriptor.
	if len(stdio) == 0 {
		return fmt.Errorf("no descriptor of the container's process")
	}
	pidfd := stdio[len(stdio)-1]
	stdio = stdio[:len(stdio)-1]
	// A mount namespace can be joined only by a thread whose root and working directory are its own.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare working directory: %w", err)
	}
	const all = unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP
	if err := unix.Setns(pidfd, all); err != nil {
		return fmt.Errorf("join container: %w", err)
	}
	return request.Process.run(stdio, control)
}

// openTerminal makes a terminal in the container's own devpts, sends its master to the keeper and gives the three
// standard streams. Nothing in the container can stand in for it: the master is opened without following links and
// must belong to devpts.
func openTerminal(p *Process, uid uint32, control *os.File) ([]int, error) {
	const ptmxMajor, ptmxMinor = 5, 2
	master, err := unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open terminal: %w", err)
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := errors.Join(unix.Fstat(master, &st), unix.Fstatfs(master, &fs)); err != nil {
		return nil, err
	}
	if fs.Type != unix.DEVPTS_SUPER_MAGIC || unix.Major(st.Rdev) != ptmxMajor || unix.Minor(st.Rdev) != ptmxMinor {
		return nil, fmt.Errorf("open terminal: /dev/pts/ptmx is not a terminal multiplexer")
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock terminal: %w", err)
	}
	slave, err := openPeer(master)
	if err != nil {
		return nil, fmt.Errorf("open terminal's other end: %w", err)
	}
	if p.Rows > 0 && p.Cols > 0 {
		_ = unix.IoctlSetWinsize(slave, unix.TIOCSWINSZ, &unix.Winsize{Row: p.Rows, Col: p.Cols})
	}
	_ = unix.Fchown(slave, int(uid), -1)
	// The first byte of a frame head is always 0; 1 announces a terminal.
	if err := unix.Sendmsg(int(control.Fd()), []byte{1}, unix.UnixRights(master), nil, 0); err != nil {
		return nil, fmt.Errorf("hand over terminal: %w", err)
	}
	unix.Close(master)
	if _, err := unix.Setsid(); err != nil && err != unix.EPERM {
		return nil, fmt.Errorf("new session: %w", err)
	}
	if err := unix.IoctlSetInt(slave, unix.TIOCSCTTY, 0); err != nil {
		return nil, fmt.Errorf("set controlling terminal: %w", err)
	}
	return []int{slave, slave, slave}, nil
}

// tiocgptpeer is TIOCGPTPEER of asm-generic/ioctls.h: opens a terminal's slave from its master, without a path.
const tiocgptpeer = 0x5441

func openPeer(master int) (int, error) {
	fd, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(master), tiocgptpeer, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if e != 0 {
		return -1, e
	}
	return int(fd), nil
}
