package keeper

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/sandbox"
)

// console is a socket over which an OCI runtime hands the master of a terminal.
type console struct {
	*net.UnixListener
	path string
}

func newConsole(path string) (*console, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for a terminal: %w", err)
	}
	return &console{l, path}, nil
}

// terminalPatience is how long a runtime that has finished may take until its terminal is seen.
const terminalPatience = 2 * time.Second

// accept gives the terminal of a runtime that has finished its work.
func (c *console) accept() (*os.File, error) {
	if err := c.SetDeadline(time.Now().Add(terminalPatience)); err != nil {
		return nil, err
	}
	from, err := c.AcceptUnix()
	if err != nil {
		return nil, fmt.Errorf("the runtime sent no terminal: %w", err)
	}
	defer from.Close()
	head, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := from.ReadMsgUnix(head, oob)
	if err != nil {
		return nil, fmt.Errorf("read terminal: %w", err)
	}
	return receivedFile(oob[:n])
}

// threeNulls are the standard streams of a runtime whose container has a terminal.
func threeNulls() ([]*os.File, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	return []*os.File{null, null, null}, err
}

// execOCITerminal runs a command with a terminal. The runtime is told to leave: only so do all of them hand the
// terminal over, and the command becomes our child.
func (s *Server) execOCITerminal(ct *container, p *sandbox.Process, spec string, ours *streams) (*ending, func(), error) {
	c, err := newConsole(spec + ".sock")
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	files, err := threeNulls()
	if err != nil {
		return nil, nil, err
	}
	defer files[0].Close()
	pidFile, logPath := spec+".pid", spec+".log"
	defer func() { _, _ = os.Remove(pidFile), os.Remove(logPath) }()
	argv := ct.OCI.argv("exec", "--process", spec, "--detach", "--console-socket", c.path, "--pid-file", pidFile, ct.ID)
	argv = append([]string{argv[0], "--log", logPath}, argv[1:]...)
	if err := s.runtimeStep(argv, files, logPath); err != nil {
		return nil, nil, err
	}
	pid, err := readPid(pidFile)
	if err != nil {
		return nil, nil, err
	}
	end := s.reaper.wait(pid)
	kill := func() { _ = unix.Kill(pid, unix.SIGKILL) }
	master, err := c.accept()
	if err != nil {
		kill()
		return nil, nil, err
	}
	// Not every runtime heeds the size in the command's specification.
	resize(master, binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, p.Rows), p.Cols))
	ours.stdin, ours.stdout, ours.terminal = master, master, master
	return end, kill, nil
}

// adoptEnded takes a container whose first process has ended before it was looked at: a runtime that leaves once it
// has started a program leaves a moment in which that happens.
func (s *Server) adoptEnded(ct *container, pid int, err error) error {
	if !errors.Is(err, unix.ESRCH) {
		return err
	}
	s.mu.Lock()
	ct.Pid, ct.Started = pid, time.Now().UTC()
	s.containers[ct.ID] = ct
	s.mu.Unlock()
	return s.save(ct)
}
