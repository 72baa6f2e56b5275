package keeper

import (
	"os"

	"golang.org/x/sys/unix"
)

// openPidfd opens a process so that its end wakes the runtime's poller.
func openPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// waitPidfd blocks until the process has ended. It works for processes that are not our children.
func waitPidfd(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		return err == nil && n > 0
	})
}

// exitOf asks the kernel how a process ended that is not our child. While it is a zombie its stat file says it, once
// its parent has reaped it the pidfd does (Linux 6.15). Older kernels may have nothing to say.
func exitOf(f *os.File, pid int, born uint64) (unix.WaitStatus, bool) {
	if st := processStat(pid); len(st) > statExitCode && st[statState] == "Z" && st.number(statStartTime) == born {
		return unix.WaitStatus(st.number(statExitCode)), true
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return 0, false
	}
	info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_EXIT}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.IoctlPidfdInfo(int(fd), &info) })
	if err != nil || failed != nil || info.Mask&unix.PIDFD_INFO_EXIT == 0 {
		return 0, false
	}
	return unix.WaitStatus(info.Exit_code), true
}
