package keeper

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A guest is one kernel of its own for all containers of a slot: the sandbox of a runtime that has such, with a first
// process that only waits. It is kept as a container is (record, pid file, adoption), but nobody is told of it. Its
// containers have no process on the host: the runtime's wait command tells their ends, its kill command signals them.

// GuestID names the guest of a slot, as the annotation of its containers does. No such id begins another one: runtimes
// take beginnings for the whole.
func GuestID(slot string) string { return slot + ".guest" }

func (ct *container) isGuest() bool { return ct.OCI != nil && ct.OCI.Guest == ct.ID }

func (ct *container) inGuest() bool {
	return ct.OCI != nil && ct.OCI.Guest != "" && ct.OCI.Guest != ct.ID
}

func errNoGuest(slot string) error {
	return &Error{Message: "slot " + slot + " has no guest", NoGuest: true}
}

// ensureGuest makes the slot's guest unless it has one that runs. A container may also join another one's.
func (s *Server) ensureGuest(sl *slot, q *Start) error {
	if q.OCI.Guest != GuestID(sl.id) {
		_, err := s.running(q.OCI.Guest)
		return err
	}
	sl.making.Lock()
	defer sl.making.Unlock()
	if !s.guestEnded(sl) {
		return nil
	}
	if q.GuestBundle == "" {
		return errNoGuest(sl.id)
	}
	o := *q.OCI
	o.Bundle, o.TTY = q.GuestBundle, false
	g := &container{Container: Container{ID: o.Guest, Slot: sl.id, OCI: &o}, exited: make(chan struct{})}
	s.mu.Lock()
	g.slotRecord = &slotRecord{Label: sl.label}
	s.mu.Unlock()
	if err := s.makeGuest(g); err != nil {
		closeFiles(g.pidfd)
		s.deleteOCI(g.OCI, g.ID)
		s.dropFiles(g.ID)
		return fmt.Errorf("guest of slot %s: %w", sl.id, err)
	}
	s.tendGuest(sl, g, s.reaper.wait(g.Pid))
	return nil
}

// makeGuest runs a guest. As with a container, the record is written before.
func (s *Server) makeGuest(g *container) error {
	if err := s.save(g); err != nil {
		return err
	}
	// gofail: var keeperGuestRecorded struct{}
	logPath := g.OCI.Bundle + "/runtime.log"
	argv := g.OCI.argv("--log", logPath, "run", "--detach", "--bundle", g.OCI.Bundle, "--pid-file", s.pidPath(g.ID), g.ID)
	if err := s.runtimeStep(argv, nil, logPath); err != nil {
		return err
	}
	// gofail: var keeperGuestMade struct{}
	pid, err := readPid(s.pidPath(g.ID))
	if err != nil {
		return err
	}
	if g.pidfd, err = openPidfd(pid); err != nil {
		return err
	}
	g.Pid, g.Birth, g.Started = pid, birth(pid), time.Now().UTC()
	return s.save(g)
}

// tendGuest makes a running guest the slot's, and removes what is left of it when it ends.
func (s *Server) tendGuest(sl *slot, g *container, end *ending) {
	s.mu.Lock()
	sl.guest, s.containers[g.ID] = g, g
	s.mu.Unlock()
	s.cfg.Log.Info("guest runs", "slot", sl.id, "pid", g.Pid)
	go func() {
		if end != nil {
			<-end.done
		} else if err := waitPidfd(g.pidfd); err != nil {
			s.cfg.Log.Error("wait for guest", "slot", sl.id, "error", err)
			return
		}
		s.deleteOCI(g.OCI, g.ID)
		s.mu.Lock()
		delete(s.containers, g.ID)
		sl.guest = nil
		g.pidfd.Close()
		s.mu.Unlock()
		s.dropFiles(g.ID)
		s.cfg.Log.Info("guest has ended", "slot", sl.id)
		close(g.exited)
	}()
}

// guestEnded says whether the slot's guest has ended; then nothing of it is left.
func (s *Server) guestEnded(sl *slot) bool {
	s.mu.Lock()
	g := sl.guest
	s.mu.Unlock()
	if g == nil {
		return true
	}
	if !ended(g.Pid, g.Birth) {
		return false
	}
	<-g.exited
	return true
}

// endGuest ends the slot's guest, if there is one, and waits until nothing of it is left.
func (s *Server) endGuest(sl *slot) {
	sl.making.Lock()
	defer sl.making.Unlock()
	s.mu.Lock()
	g := sl.guest
	if g != nil {
		_ = g.kill(unix.SIGKILL)
	}
	s.mu.Unlock()
	if g != nil {
		<-g.exited
	}
}

// adoptGuest takes over a guest of an earlier keeper with its slot, or removes what is left of it.
func (s *Server) adoptGuest(g *container) {
	if g.Pid == 0 {
		s.findPid(g)
	}
	pidfd, err := openPidfd(g.Pid)
	if err == nil && !ended(g.Pid, g.Birth) {
		g.pidfd = pidfd
		s.adoptSlot(g)
		if sl := s.slots[g.Slot]; sl != nil {
			s.tendGuest(sl, g, s.childEnd(g.Pid))
			return
		}
	}
	closeFiles(pidfd)
	s.deleteOCI(g.OCI, g.ID)
	s.dropFiles(g.ID)
}

// childEnd is the end of a process that may be our own child; nil when it is not.
func (s *Server) childEnd(pid int) *ending {
	if processStat(pid).number(statParent) != uint64(os.Getpid()) {
		return nil
	}
	return s.reaper.wait(pid) // after an upgrade
}

// ended says whether a process that was born then is no more.
func ended(pid int, born uint64) bool {
	st := processStat(pid)
	return len(st) == 0 || st[statState] == "Z" || st.number(statStartTime) != born
}

// Asking for the end of a container in a guest fails when the guest is gone or ending, or when the asking process is
// killed; for want of memory, say.
const (
	askAgain = 200 * time.Millisecond
	askTimes = 10
)

// waitInGuest waits for the end of a container in a guest. What the guest does not know is removed, so that it cannot
// run on unseen.
func (s *Server) waitInGuest(ct *container) (unix.WaitStatus, bool) {
	for tries := 0; tries < askTimes; {
		status, asked := s.askEnd(ct)
		if exitCode, ok := readEnd(status); ok {
			return unix.WaitStatus(exitCode << 8), true
		}
		if ended(ct.Pid, ct.Birth) {
			return 0, false
		}
		if asked {
			tries++
		}
		time.Sleep(askAgain)
	}
	s.cfg.Log.Error("the guest does not know its container", "container", ct.ID)
	s.deleteOCI(ct.OCI, ct.ID)
	return 0, false
}

// readEnd reads what a runtime's wait command says: an exit code, with 128 more for signals.
func readEnd(text []byte) (int, bool) {
	var end struct {
		ExitStatus *int `json:"exitStatus"`
	}
	if json.Unmarshal(text, &end) != nil || end.ExitStatus == nil || *end.ExitStatus < 0 || *end.ExitStatus > 255 {
		return 0, false
	}
	return *end.ExitStatus, true
}

// askEnd runs the runtime's wait command and gives what it says. asked is false when it was killed before it could. It
// dies with this process: the next keeper, or program of this one, asks again.
func (s *Server) askEnd(ct *container) (text []byte, asked bool) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, true
	}
	defer null.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, true
	}
	defer r.Close()
	argv := ct.OCI.argv("wait", ct.ID)
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{null.Fd(), w.Fd(), null.Fd()},
		Sys: &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}})
	w.Close()
	if err != nil {
		return nil, true
	}
	s.processes.Add(1)
	end := s.reaper.wait(pid)
	text, _ = io.ReadAll(io.LimitReader(r, 4096))
	<-end.done
	return text, !end.status.Signaled()
}

// endPatience is how long the end of a container may take to be heard of after a signal found nobody.
const endPatience = 2 * time.Second

// signalInGuest sends a signal to a container's first process.
func (s *Server) signalInGuest(ct *container, number int) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	status, err := s.command(ct.OCI.argv("kill", ct.ID, strconv.Itoa(number)), []*os.File{null, null, null})
	if err != nil {
		return err
	}
	if code, _ := exitCode(status); code == 0 {
		return nil
	}
	select {
	case <-ct.exited:
		return nil
	case <-time.After(endPatience):
		return fmt.Errorf("container %s: the runtime could not send it signal %d", ct.ID, number)
	}
}
