package keeper

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// adopt takes over the containers of an earlier keeper: by their records, each proved by pid and start time. Slots
// come back through the containers that live in them; those without are gone with the namespaces they held.
func (s *Server) adopt(terminals map[string]*os.File) error {
	dir := filepath.Join(s.cfg.Dir, "containers")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if strings.HasSuffix(e.Name(), ".pid") {
			continue // of a container, see startOCI
		}
		if !ok {
			_ = os.Remove(filepath.Join(dir, e.Name())) // a record that was never finished
			continue
		}
		body, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		var rec record
		if err := json.Unmarshal(body, &rec); err != nil || rec.ID != id {
			s.cfg.Log.Error("unreadable container record", "container", id, "error", err)
			s.dropFiles(id)
			continue
		}
		s.adoptOne(&rec, terminals[id])
	}
	return nil
}

func (s *Server) adoptOne(rec *record, terminal *os.File) {
	ct := &container{Container: rec.Container, Cgroups: rec.Cgroups, slotRecord: rec.SlotRecord, exited: make(chan struct{})}
	if ct.isGuest() {
		s.adoptGuest(ct)
		return
	}
	ct.log = &logger{dir: ct.LogDir, limit: ct.LogFile, files: ct.LogMax, pending: map[byte][]byte{}}
	s.containers[ct.ID] = ct
	if ct.Exited {
		close(ct.exited)
		return
	}
	if ct.Pid == 0 && ct.OCI != nil {
		s.findPid(ct)
	}
	if neverBegun(ct) {
		delete(s.containers, ct.ID)
		s.dropFiles(ct.ID)
		return
	}
	pidfd, err := openPidfd(ct.Pid)
	if err != nil || birth(ct.Pid) != ct.Birth {
		closeFiles(pidfd)
		s.lost(ct)
		return
	}
	ct.pidfd = pidfd
	if ct.Fenced && s.fence.ended() {
		ct.endOfLease()
	}
	s.adoptSlot(ct)
	if !ct.TTY {
		for _, stream := range []byte{streamOut, streamErr} {
			reader, err := openPipe(s.fifo(ct.ID, string(rune(stream))))
			if err != nil {
				s.cfg.Log.Error("reopen output", "container", ct.ID, "error", err)
				continue
			}
			ct.pumps.Go(func() { ct.pump(reader, stream) })
		}
	}
	if ct.Stdin {
		ct.stdin, _ = os.OpenFile(s.fifo(ct.ID, "in"), os.O_WRONLY|unix.O_NONBLOCK, 0)
	}
	if terminal != nil {
		ct.terminal = terminal
		ct.pumps.Go(func() { ct.pumpTerminal() })
	}
	s.cfg.Log.Info("adopted container", "container", ct.ID, "pid", ct.Pid)
	var end *ending
	if !ct.inGuest() {
		end = s.childEnd(ct.Pid)
	}
	go s.await(ct, end)
}

// findPid reads the pid of a container whose keeper died while an OCI runtime was starting it. The runtime may still be
// at work; when it leaves no pid, or fails, nothing was started.
func (s *Server) findPid(ct *container) {
	path := s.pidPath(ct.ID)
	commands, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range commands {
		body, _ := os.ReadFile(file)
		if !slices.Contains(strings.Split(string(body), "\x00"), path) {
			continue
		}
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		pidfd, err := openPidfd(pid)
		if err != nil {
			continue
		}
		born := birth(pid)
		if pidfd.SetReadDeadline(time.Now().Add(runtimePatience)) == nil && waitPidfd(pidfd) == nil {
			if status, known := exitOf(pidfd, pid, born); known && status != 0 {
				_ = os.Remove(path)
			}
		}
		pidfd.Close()
	}
	ct.Pid, _ = readPid(path)
	ct.Birth, ct.Started = birth(ct.Pid), time.Now().UTC()
}

// runtimePatience is how long an OCI runtime may take to finish a start whose keeper was killed.
const runtimePatience = 2 * time.Second

// neverBegun says whether a keeper died between a container's record and its start: the init was told nothing, and
// ends by itself. To call that an end of the container would be an invention.
func neverBegun(ct *container) bool {
	if ct.OCI != nil {
		return ct.Pid == 0
	}
	if ct.Layer == "" {
		return false
	}
	begun := func() bool {
		_, err := os.Lstat(ct.Layer)
		return err == nil
	}
	if begun() {
		return false
	}
	if pidfd, err := openPidfd(ct.Pid); err == nil {
		if birth(ct.Pid) == ct.Birth {
			_ = unix.Kill(ct.Pid, unix.SIGKILL)
			_ = waitPidfd(pidfd)
		}
		closeFiles(pidfd)
	}
	return !begun()
}

// lost marks a container that ended while no keeper watched: its exit code is nobody's to invent.
func (s *Server) lost(ct *container) {
	ct.LeaseLost = ct.LeaseLost || ct.Fenced && s.fence.ended()
	s.endOthers(ct)
	ct.Exited, ct.Finished = true, time.Now().UTC()
	close(ct.exited)
	if err := s.save(ct); err != nil {
		s.cfg.Log.Error("save exit", "container", ct.ID, "error", err)
	}
}

// adoptSlot puts a slot together again from the namespaces of a container that lives in it.
func (s *Server) adoptSlot(ct *container) {
	if _, ok := s.slots[ct.Slot]; ok {
		return
	}
	ns, err := openNamespaces(ct.Pid, sharedNamespaces...)
	if err != nil {
		s.cfg.Log.Error("adopt slot", "slot", ct.Slot, "error", err)
		return
	}
	sl := &slot{id: ct.Slot, ns: ns, bare: ct.OCI != nil}
	if r := ct.slotRecord; r != nil {
		sl.label = r.Label
		if r.PausePid != 0 && birth(r.PausePid) == r.PauseBirth {
			if pidns, err := openNamespaces(r.PausePid, "pid"); err == nil {
				sl.pausePid, sl.pidns = r.PausePid, pidns[0]
			}
		}
	}
	s.slots[ct.Slot] = sl
}
