package keeper

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// command runs an OCI runtime and waits for it. Its children, the containers, become ours.
func (s *Server) command(argv []string, files []*os.File) (unix.WaitStatus, error) {
	attr := &syscall.ProcAttr{Env: os.Environ(), Sys: &syscall.SysProcAttr{Setsid: true}}
	for _, f := range files {
		attr.Files = append(attr.Files, f.Fd())
	}
	pid, err := syscall.ForkExec(argv[0], argv, attr)
	if err != nil {
		return 0, fmt.Errorf("run %s: %w", argv[0], err)
	}
	s.processes.Add(1)
	end := s.reaper.wait(pid)
	<-end.done
	return end.status, nil
}

func (o *OCI) argv(args ...string) []string {
	return append(append([]string{o.Runtime, "--root", o.Root}, o.Args...), args...)
}

// startOCI runs a container with an OCI runtime, in one call of it. The record is written before, without a pid; what
// dies in between leaves the runtime's pid file, which tells it.
func (s *Server) startOCI(ct *container, q *Start, sl *slot) error {
	if ct.inGuest() {
		if err := s.ensureGuest(sl, q); err != nil {
			return err
		}
	}
	ends, err := s.openStreams(ct)
	if err != nil {
		return err
	}
	files := make([]*os.File, len(ends))
	for i, f := range ends {
		files[i] = f.(*os.File)
	}
	defer closeFiles(files...)
	if err := s.save(ct); err != nil {
		return err
	}
	logPath := filepath.Join(q.OCI.Bundle, "runtime.log")
	args := []string{"run", "--detach", "--bundle", q.OCI.Bundle, "--pid-file", s.pidPath(ct.ID)}
	var tty *console
	if ct.TTY {
		if tty, err = newConsole(s.pidPath(ct.ID) + ".sock"); err != nil {
			return err
		}
		defer tty.Close()
		args, files = append(args, "--console-socket", tty.path), nil
	}
	argv := q.OCI.argv(append(args, ct.ID)...)
	argv = append([]string{argv[0], "--log", logPath}, argv[1:]...)
	if err := s.runtimeStep(argv, files, logPath); err != nil {
		s.deleteOCI(q.OCI, ct.ID)
		if q.OCI.Guest == GuestID(sl.id) && s.guestEnded(sl) {
			return errNoGuest(sl.id) // that was why
		}
		return err
	}
	if tty != nil {
		if ct.terminal, err = tty.accept(); err != nil {
			s.deleteOCI(q.OCI, ct.ID)
			return err
		}
		ct.pumps.Go(func() { ct.pumpTerminal() })
	}
	pid, err := readPid(s.pidPath(ct.ID))
	if err == nil {
		err = s.register(ct, pid)
	}
	if err != nil {
		err = s.adoptEnded(ct, pid, err)
	}
	if err != nil {
		s.deleteOCI(q.OCI, ct.ID)
		return fmt.Errorf("container %s: %w", ct.ID, err)
	}
	s.starts.Add(1)
	if ct.inGuest() {
		go s.await(ct, nil) // the pid is the guest's
	} else {
		go s.await(ct, s.reaper.wait(pid))
	}
	return nil
}

func (s *Server) pidPath(id string) string { return filepath.Join(s.cfg.Dir, "containers", id+".pid") }

func readPid(path string) (int, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(text)))
}

// runtimeStep runs one command of an OCI runtime; what it logged becomes the error.
func (s *Server) runtimeStep(argv []string, files []*os.File, logPath string) error {
	if files == nil {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer null.Close()
		files = []*os.File{null, null, null}
	}
	status, err := s.command(argv, files)
	if err != nil {
		return err
	}
	code, _ := exitCode(status)
	if code == 0 {
		return nil
	}
	message := lastLine(logPath)
	failure := &Error{Message: message, ExitCode: 128}
	switch {
	case strings.Contains(message, "not found") || strings.Contains(message, "o such file"):
		failure.ExitCode = 127
	case strings.Contains(message, "ermission denied"):
		failure.ExitCode = 126
	}
	return failure
}

// lastLine is the end of a runtime's log, bounded: part of it is the tenant's.
func lastLine(path string) string {
	const most = 512
	body, err := os.ReadFile(path)
	if err != nil || len(bytes.TrimSpace(body)) == 0 {
		return "the OCI runtime failed and said nothing"
	}
	lines := bytes.Split(bytes.TrimSpace(body), []byte("\n"))
	text := strings.ToValidUTF8(string(lines[len(lines)-1]), "?")
	if len(text) > most {
		text = text[:most] + "…"
	}
	return text
}

func (s *Server) deleteOCI(o *OCI, id string) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer null.Close()
	_, _ = s.command(o.argv("delete", "--force", id), []*os.File{null, null, null})
}

// execOCI runs a command in a container of an OCI runtime.
func (s *Server) execOCI(ct *container, q *ExecRequest, ends []*os.File, ours *streams) (*ending, func(), error) {
	spec, err := os.CreateTemp(s.cfg.Dir, "exec-*.json")
	if err != nil {
		return nil, nil, err
	}
	_, err = spec.Write(q.OCISpec)
	spec.Close()
	if err != nil {
		os.Remove(spec.Name())
		return nil, nil, fmt.Errorf("write process of container %s: %w", ct.ID, err)
	}
	if q.Process.TTY {
		defer os.Remove(spec.Name())
		return s.execOCITerminal(ct, &q.Process, spec.Name(), ours)
	}
	argv := ct.OCI.argv("exec", "--process", spec.Name())
	attr := &syscall.ProcAttr{Env: os.Environ(), Sys: &syscall.SysProcAttr{Setsid: true}}
	for _, f := range ends {
		attr.Files = append(attr.Files, f.Fd())
	}
	argv = append(argv, ct.ID)
	pid, err := syscall.ForkExec(argv[0], argv, attr)
	if err != nil {
		os.Remove(spec.Name())
		return nil, nil, fmt.Errorf("run %s: %w", argv[0], err)
	}
	end := s.reaper.wait(pid)
	go func() {
		<-end.done
		os.Remove(spec.Name())
	}()
	kill := func() { _ = unix.Kill(pid, unix.SIGTERM) }
	return end, kill, nil
}
