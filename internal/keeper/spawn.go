package keeper

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/sandbox"
)

// spawning says how an init is born.
type spawning struct {
	mode    string
	clone   uintptr    // CLONE_NEW* flags
	join    []*os.File // namespaces that the init joins by itself
	pidns   *os.File   // process namespace to be born in
	cgroups []string
	v2      bool
}

// child is an init that has not yet become anything.
type child struct {
	pid     int
	control *net.UnixConn
	end     *ending
}

// spawn starts our own sealed program as an init and puts it into its cgroups. No process but the init is started.
func (s *Server) spawn(o spawning) (*child, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours := os.NewFile(uintptr(pair[0]), "control")
	defer ours.Close()
	theirs := pair[1]
	defer unix.Close(theirs)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	files := []uintptr{null.Fd(), null.Fd(), null.Fd(), uintptr(theirs)}
	for _, f := range o.join {
		files = append(files, f.Fd())
	}
	attr := &syscall.ProcAttr{
		// One processor and no collector: it lives for a millisecond of work.
		Env:   []string{"GOMAXPROCS=1", "GOGC=off"},
		Files: files,
		Sys:   &syscall.SysProcAttr{Cloneflags: o.clone, Setsid: true},
	}
	if o.v2 && len(o.cgroups) == 1 {
		dir, err := os.Open(o.cgroups[0])
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(dir.Fd())
	}
	program := "/proc/self/fd/" + strconv.Itoa(int(s.program.Fd()))
	argv := []string{"spillway-init", o.mode, filepath.Join(s.cfg.Dir, "stage"), strconv.Itoa(len(o.join))}
	pid, err := forkIn(o.pidns, program, argv, attr)
	if err != nil {
		return nil, fmt.Errorf("start init: %w", err)
	}
	c := &child{pid: pid, end: s.reaper.wait(pid)}
	if !attr.Sys.UseCgroupFD {
		if err := enterCgroups(pid, o.cgroups); err != nil {
			c.kill()
			return nil, err
		}
	}
	conn, err := net.FileConn(ours)
	if err != nil {
		c.kill()
		return nil, err
	}
	c.control = conn.(*net.UnixConn)
	return c, nil
}

// enterCgroups moves a process into one cgroup per hierarchy, back to back: only the first move waits for the
// kernel's grace period.
func enterCgroups(pid int, dirs []string) error {
	text := []byte(strconv.Itoa(pid))
	for _, dir := range dirs {
		f, err := os.OpenFile(filepath.Join(dir, "cgroup.procs"), os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("enter cgroup: %w", err)
		}
		_, err = f.Write(text)
		f.Close()
		if err != nil {
			return fmt.Errorf("enter cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// forkIn starts a program, in another process namespace when one is given. That is an attribute of the calling
// thread's future children only.
func forkIn(pidns *os.File, program string, argv []string, attr *syscall.ProcAttr) (int, error) {
	if pidns == nil {
		return syscall.ForkExec(program, argv, attr)
	}
	own, err := os.Open("/proc/self/ns/pid")
	if err != nil {
		return 0, err
	}
	defer own.Close()
	runtime.LockOSThread()
	if err := unix.Setns(int(pidns.Fd()), unix.CLONE_NEWPID); err != nil {
		runtime.UnlockOSThread()
		return 0, fmt.Errorf("enter process namespace: %w", err)
	}
	pid, forkErr := syscall.ForkExec(program, argv, attr)
	if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWPID); err == nil {
		// Otherwise the thread stays locked and ends with this goroutine.
		runtime.UnlockOSThread()
	}
	return pid, forkErr
}

// begin tells the init that it is in its cgroups, and waits until it is prepared.
func (c *child) begin(ready sandbox.Ready) error {
	body, err := json.Marshal(ready)
	if err != nil {
		return err
	}
	if err := c.tell(body); err != nil {
		return err
	}
	return c.ready()
}

// ready waits until the init says that it is prepared.
func (c *child) ready() error {
	body, err := sandbox.ReadFrame(c.control)
	if err != nil {
		return fmt.Errorf("init ended before it was ready: %w", err)
	}
	return failureOf(body)
}

func (c *child) kill() {
	_ = unix.Kill(c.pid, unix.SIGKILL)
	<-c.end.done
	if c.control != nil {
		c.control.Close()
	}
}

// tell sends a message with descriptors.
func (c *child) tell(body []byte, fds ...int) error {
	frame := make([]byte, 4+len(body))
	frame[0], frame[1], frame[2], frame[3] = byte(len(body)>>24), byte(len(body)>>16), byte(len(body)>>8), byte(len(body))
	copy(frame[4:], body)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	// The head goes with the descriptors, the rest behind it: a stream may split anywhere else.
	if _, _, err := c.control.WriteMsgUnix(frame[:4], rights, nil); err != nil {
		return err
	}
	_, err := c.control.Write(frame[4:])
	return err
}
