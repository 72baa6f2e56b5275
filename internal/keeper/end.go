package keeper

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// drainTime is how long output may still come after the first process has ended, from others that hold the pipes.
const drainTime = 200 * time.Millisecond

// await records how a container ended and tells everyone.
func (s *Server) await(ct *container, end *ending) {
	status, known, err := s.outcome(ct, end)
	if err != nil {
		s.cfg.Log.Error("wait for container", "container", ct.ID, "error", err)
		return
	}
	// gofail: var keeperExitSeen struct{}
	finished := time.Now().UTC()
	s.endOthers(ct)
	drained := make(chan struct{})
	go func() { ct.pumps.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(drainTime):
	}
	ct.log.close()
	s.mu.Lock()
	ct.Exited, ct.Finished = true, finished
	if known {
		code, sig := exitCode(status)
		ct.ExitCode, ct.Signal = &code, sig
	}
	closeFiles(ct.pidfd, ct.stdin, ct.terminal)
	event := ct.Container
	s.mu.Unlock()
	if err := s.save(ct); err != nil {
		s.cfg.Log.Error("save exit", "container", ct.ID, "error", err)
	}
	// gofail: var keeperExitSaved struct{}
	close(ct.exited)
	s.announce(event)
}

// outcome waits for a container's end.
func (s *Server) outcome(ct *container, end *ending) (status unix.WaitStatus, known bool, err error) {
	switch {
	case ct.inGuest():
		status, known = s.waitInGuest(ct)
		return status, known, nil
	case end != nil:
		<-end.done
		return end.status, true, nil
	}
	if err := waitPidfd(ct.pidfd); err != nil {
		return 0, false, err
	}
	status, known = exitOf(ct.pidfd, ct.Pid, ct.Birth)
	return status, known, nil
}

func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

func (s *Server) signal(q *Signal) error {
	s.mu.Lock()
	ct, ok := s.containers[q.ID]
	if !ok {
		s.mu.Unlock()
		return &Error{Message: "container " + q.ID + " does not exist", NotFound: true}
	}
	if ct.inGuest() && !ct.Exited && ct.Pid != 0 {
		s.mu.Unlock()
		return s.signalInGuest(ct, q.Number)
	}
	defer s.mu.Unlock()
	if ct.Exited || ct.pidfd == nil {
		return nil
	}
	err := ct.kill(unix.Signal(q.Number))
	if err == unix.ESRCH {
		return nil
	}
	return err
}

func (ct *container) kill(sig unix.Signal) error {
	raw, err := ct.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
	return errors.Join(err, failed)
}

// forget drops an ended container; one that runs is refused.
func (s *Server) forget(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	s.mu.Lock()
	ct, ok := s.containers[id]
	if ok && !ct.Exited {
		s.mu.Unlock()
		return fmt.Errorf("container %s is running", id)
	}
	delete(s.containers, id)
	s.mu.Unlock()
	// gofail: var keeperForgetting struct{}
	if ok && ct.OCI != nil {
		s.deleteOCI(ct.OCI, id)
	}
	s.dropFiles(id)
	return nil
}

func (s *Server) dropFiles(id string) {
	for _, path := range []string{s.recordPath(id), s.recordPath(id) + ".new", s.pidPath(id), s.fifo(id, "in"), s.fifo(id, string(rune(streamOut))), s.fifo(id, string(rune(streamErr)))} {
		_ = os.Remove(path)
	}
}
