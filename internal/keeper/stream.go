package keeper

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/sandbox"
)

// running finds a container that can be joined.
func (s *Server) running(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ct, ok := s.containers[id]
	if !ok || ct.Exited || ct.pidfd == nil {
		return nil, &Error{Message: "container " + id + " is not running", NotFound: true}
	}
	return ct, nil
}

// exec runs a command in a container. The connection is the command's life: when it closes, the command is killed.
func (s *Server) exec(c *conn, q *ExecRequest) {
	code, err := s.execute(c, q)
	e := exit{Code: code}
	if err != nil {
		e.Error = asError(err)
	}
	body, _ := json.Marshal(e)
	_ = c.frame(frameExit, body)
}

func (s *Server) execute(c *conn, q *ExecRequest) (int, error) {
	ct, err := s.running(q.ID)
	if err != nil {
		return 0, err
	}
	ends, ours, err := pipes(q.Process.TTY, q.Stdin)
	if err != nil {
		return 0, err
	}
	defer closeFiles(ours.stdin, ours.stdout, ours.stderr)
	var end *ending
	var kill func()
	if ct.OCI != nil {
		end, kill, err = s.execOCI(ct, q, ends, ours)
	} else {
		end, kill, err = s.execOurs(ct, q, ends, ours)
	}
	closeFiles(ends...)
	if err != nil {
		return 0, err
	}
	go c.feed(ours, kill)
	var copying sync.WaitGroup
	copying.Go(func() { c.drain(ours.stdout, frameStdout) })
	copying.Go(func() { c.drain(ours.stderr, frameStderr) })
	<-end.done
	copying.Wait()
	code, _ := exitCode(end.status)
	return code, nil
}

// streams are our ends of a command's standard streams. With a terminal stdin and stdout are its master.
type streams struct {
	stdin, stdout, stderr, terminal *os.File
}

// pipes makes the pipes of a command: the ends for it, in order, and ours.
func pipes(tty, stdin bool) ([]*os.File, *streams, error) {
	ours := &streams{}
	if tty {
		return nil, ours, nil
	}
	var ends []*os.File
	fail := func(err error) ([]*os.File, *streams, error) {
		closeFiles(append(ends, ours.stdin, ours.stdout, ours.stderr)...)
		return nil, nil, err
	}
	if stdin {
		r, w, err := os.Pipe()
		if err != nil {
			return fail(err)
		}
		ends, ours.stdin = append(ends, r), w
	} else {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return fail(err)
		}
		ends = append(ends, null)
	}
	for _, end := range []**os.File{&ours.stdout, &ours.stderr} {
		r, w, err := os.Pipe()
		if err != nil {
			return fail(err)
		}
		*end = r
		ends = append(ends, w)
	}
	return ends, ours, nil
}

func (s *Server) execOurs(ct *container, q *ExecRequest, ends []*os.File, ours *streams) (*ending, func(), error) {
	pidns, err := openNamespaces(ct.Pid, "pid")
	if err != nil {
		return nil, nil, err
	}
	defer pidns[0].Close()
	in, err := s.spawn(spawning{mode: sandbox.ModeExec, pidns: pidns[0], cgroups: ct.Cgroups})
	if err != nil {
		return nil, nil, err
	}
	body, err := json.Marshal(sandbox.Exec{Pid: ct.Pid, Process: q.Process})
	if err != nil {
		in.kill()
		return nil, nil, err
	}
	fds := make([]int, 0, 4)
	for _, f := range ends {
		fds = append(fds, int(f.Fd()))
	}
	var master *os.File
	raw, err := ct.pidfd.SyscallConn()
	if err == nil {
		var told error
		err = raw.Control(func(fd uintptr) { told = in.tell(body, append(fds, int(fd))...) })
		err = errors.Join(err, told)
	}
	if err == nil {
		master, err = awaitExec(in)
	}
	if err != nil {
		in.kill()
		return nil, nil, err
	}
	in.control.Close()
	if master != nil {
		ours.stdin, ours.stdout, ours.terminal = master, master, master
	}
	return in.end, func() { _ = unix.Kill(in.pid, unix.SIGKILL) }, nil
}

// feed carries what the caller sends to the command, and ends the command when the caller is gone.
func (c *conn) feed(to *streams, kill func()) {
	for {
		body, err := sandbox.ReadFrame(c)
		if err != nil {
			kill()
			return
		}
		if len(body) == 0 {
			continue
		}
		switch body[0] {
		case frameStdin:
			if to.stdin != nil {
				_, _ = to.stdin.Write(body[1:])
			}
		case frameEOF:
			if to.stdin != nil && to.terminal == nil {
				to.stdin.Close()
			}
		case frameResize:
			resize(to.terminal, body[1:])
		}
	}
}

func resize(terminal *os.File, size []byte) {
	if terminal == nil || len(size) != 4 {
		return
	}
	raw, err := terminal.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ,
			&unix.Winsize{Row: binary.BigEndian.Uint16(size), Col: binary.BigEndian.Uint16(size[2:])})
	})
}

// drain copies output to the caller until there is no more. A terminal whose other end is closed answers EIO.
func (c *conn) drain(from *os.File, kind byte) {
	if from == nil {
		return
	}
	buf := make([]byte, readSize)
	for {
		n, err := from.Read(buf)
		if n > 0 && c.frame(kind, buf[:n]) != nil {
			// The caller is gone; feed sees it too and kills the command.
			_, _ = io.Copy(io.Discard, from)
			return
		}
		if err != nil {
			return
		}
	}
}

// attach connects the caller to a running container's streams, from now on.
func (s *Server) attach(c *conn, q *AttachRequest) {
	ct, err := s.running(q.ID)
	if err != nil {
		body, _ := json.Marshal(exit{Error: asError(err)})
		_ = c.frame(frameExit, body)
		return
	}
	sub := &subscriber{frames: make(chan []byte, subscriberQueue)}
	ct.subs.Store(sub, struct{}{})
	defer ct.subs.Delete(sub)
	gone := make(chan struct{})
	go func() {
		c.feed(&streams{stdin: firstFile(ct.terminal, ct.stdin), terminal: firstFile(ct.terminal, ct.stdin)}, func() {})
		close(gone)
	}()
	for {
		select {
		case frame := <-sub.frames:
			if c.frame(frame[0], frame[1:]) != nil {
				return
			}
		case <-gone:
			return
		case <-ct.exited:
			s.sendExit(c, ct, sub)
			return
		}
	}
}

// sendExit sends what is still queued, then how the container ended.
func (s *Server) sendExit(c *conn, ct *container, sub *subscriber) {
	for {
		select {
		case frame := <-sub.frames:
			if c.frame(frame[0], frame[1:]) != nil {
				return
			}
			continue
		default:
		}
		break
	}
	s.mu.Lock()
	var e exit
	if ct.ExitCode != nil {
		e.Code = *ct.ExitCode
	}
	s.mu.Unlock()
	body, _ := json.Marshal(e)
	_ = c.frame(frameExit, body)
}

func firstFile(files ...*os.File) *os.File {
	for _, f := range files {
		if f != nil {
			return f
		}
	}
	return nil
}

// pumpTerminal copies a terminal's output into the log and to whoever is attached.
func (ct *container) pumpTerminal() {
	buf := make([]byte, 4096)
	for {
		n, err := ct.terminal.Read(buf)
		if n > 0 {
			ct.output(streamOut, buf[:n])
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}
