package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/sandbox"
)

// container is one run of a container: its record, its process and its streams.
type container struct {
	Container           // Server.mu guards the record
	Cgroups    []string // where commands executed in it go
	log        *logger
	pumps      sync.WaitGroup
	subs       sync.Map // *subscriber → struct{}
	pidfd      *os.File
	stdin      *os.File
	terminal   *os.File // master, when it has one
	exited     chan struct{}
	slotRecord *slotRecord
	gap        int // of a fenced one, see fence.enter
}

// slotRecord is what a container's file keeps of its slot, so that a new keeper can put the slot together again.
type slotRecord struct {
	Label      json.RawMessage `json:"label,omitempty"`
	PausePid   int             `json:"pausePid,omitempty"`
	PauseBirth uint64          `json:"pauseBirth,omitempty"`
}

// record is the file of one container in the run directory.
type record struct {
	Container
	Cgroups    []string    `json:"cgroups,omitempty"`
	SlotRecord *slotRecord `json:"slotRecord,omitempty"`
}

func (s *Server) recordPath(id string) string {
	return filepath.Join(s.cfg.Dir, "containers", id+".json")
}

// save writes the record. It is not synced: the run directory does not outlive the machine's boot, and neither do
// the containers.
func (s *Server) save(ct *container) error {
	body, err := json.Marshal(record{ct.Container, ct.Cgroups, ct.slotRecord})
	if err != nil {
		return err
	}
	path := s.recordPath(ct.ID)
	if err := os.WriteFile(path+".new", body, 0o600); err != nil {
		return fmt.Errorf("write record of container %s: %w", ct.ID, err)
	}
	return os.Rename(path+".new", path)
}

// start runs a container. The record is written before the program can run, so that a new keeper finds it.
func (s *Server) start(q *Start) (*Container, error) {
	if err := checkID(q.ID); err != nil {
		return nil, err
	}
	if q.Spec == nil && q.OCI == nil {
		return nil, fmt.Errorf("container %s: neither a spec nor an OCI bundle", q.ID)
	}
	gap, err := s.enter(q)
	if err != nil {
		return nil, err
	}
	sl, parked, err := s.claim(q)
	if err != nil {
		return nil, err
	}
	ct := &container{
		Container: Container{ID: q.ID, Slot: q.Slot, Label: q.Label, LogDir: q.LogDir, LogFile: q.LogFile, LogMax: q.LogMax,
			Stdin: q.Stdin, OCI: q.OCI, HostPID: q.HostPID, Fenced: q.Lease != 0, TTY: q.Spec != nil && q.Spec.Process.TTY || q.OCI != nil && q.OCI.TTY},
		Cgroups: q.Cgroups,
		exited:  make(chan struct{}),
		gap:     gap,
	}
	s.mu.Lock()
	ct.slotRecord = &slotRecord{Label: sl.label, PausePid: sl.pausePid, PauseBirth: birthOf(sl.pausePid)}
	s.mu.Unlock()
	if q.Spec != nil {
		ct.Layer = q.Spec.Upper
	}
	if q.OCI != nil {
		err = s.startOCI(ct, q, sl)
		if parked != nil {
			go parked.kill() // an OCI runtime brings its own init; the end of ours must not compete with its start
		}
	} else {
		err = s.startParked(ct, q, sl, parked)
	}
	if err != nil {
		s.dropFiles(q.ID)
		s.mu.Lock()
		delete(s.containers, q.ID)
		s.mu.Unlock()
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	described := ct.Container
	return &described, nil
}

func birthOf(pid int) uint64 {
	if pid == 0 {
		return 0
	}
	return birth(pid)
}

// claim takes the slot's waiting init and reserves the container's id.
func (s *Server) claim(q *Start) (*slot, *child, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl, ok := s.slots[q.Slot]
	if !ok {
		return nil, nil, &Error{Message: "slot " + q.Slot + " does not exist", NotFound: true}
	}
	if _, ok := s.containers[q.ID]; ok {
		return nil, nil, fmt.Errorf("container %s exists", q.ID)
	}
	if q.OCI != nil && q.OCI.Guest == GuestID(q.Slot) && q.GuestBundle == "" && sl.guest == nil {
		return nil, nil, errNoGuest(q.Slot)
	}
	if q.Relabel != nil {
		sl.label = q.Relabel
	}
	s.containers[q.ID] = &container{Container: Container{ID: q.ID, Slot: q.Slot}}
	parked := sl.init
	sl.init = nil
	return sl, parked, nil
}

// startParked hands the spec to the waiting init, or to a new one when the slot's is in use.
func (s *Server) startParked(ct *container, q *Start, sl *slot, in *child) error {
	var err error
	if in == nil || q.unlikeParked() {
		if in != nil {
			go in.kill() // it is in a process namespace of its own, or has another skeleton
		}
		if in, err = s.joiner(q, sl); err != nil {
			return err
		}
	}
	ends, err := s.openStreams(ct)
	if err != nil {
		in.kill()
		return err
	}
	defer closeAll(ends...)
	body, err := json.Marshal(q.Spec)
	if err != nil {
		in.kill()
		return err
	}
	if err := s.register(ct, in.pid); err != nil {
		in.kill()
		return err
	}
	// gofail: var keeperStartRecorded struct{}
	fds := make([]int, len(ends))
	for i, f := range ends {
		fds[i] = int(f.(*os.File).Fd())
	}
	if err = in.tell(body, fds...); err == nil {
		ct.terminal, err = awaitExec(in)
	}
	if err != nil {
		in.kill()
		closeAll(ends...) // the pumps end when the last writer is gone
		ct.pumps.Wait()
		ct.log.close()
		return err
	}
	// gofail: var keeperStartExecuted struct{}
	in.control.Close()
	if ct.terminal != nil {
		ct.pumps.Go(func() { ct.pumpTerminal() })
	}
	s.starts.Add(1)
	go s.await(ct, in.end)
	return nil
}

// unlikeParked says whether a container needs another init than one that was parked in advance. That one sees the
// host's mounts as they were then, unless the host shares them.
func (q *Start) unlikeParked() bool {
	return q.ProcessesOf != "" || q.HostPID || q.Spec.Privileged || q.Spec.HostIPC ||
		slices.ContainsFunc(q.Spec.Mounts, func(m sandbox.Mount) bool { return m.Host })
}

// joiner makes an init for a container beside others: a process and mount namespace of its own, the rest the slot's.
func (s *Server) joiner(q *Start, sl *slot) (*child, error) {
	o := spawning{mode: sandbox.ModePark, clone: unix.CLONE_NEWNS, join: sl.ns, cgroups: q.Cgroups, v2: q.V2}
	switch {
	case q.ProcessesOf != "":
		pidns, err := s.processesOf(q.ProcessesOf)
		if err != nil {
			return nil, err
		}
		defer pidns.Close()
		o.pidns = pidns
	case sl.pidns != nil:
		o.pidns = sl.pidns
	case q.HostPID:
	default:
		o.clone |= unix.CLONE_NEWPID
	}
	in, err := s.spawn(o)
	if err != nil {
		return nil, err
	}
	if !q.V2 {
		s.moves.Add(int64(len(q.Cgroups)))
	}
	if err := in.begin(sandbox.Ready{Cgroups: q.Cgroups, Privileged: q.Spec.Privileged, HostIPC: q.Spec.HostIPC}); err != nil {
		in.kill()
		return nil, err
	}
	return in, nil
}

// processesOf opens the process namespace of a container.
func (s *Server) processesOf(id string) (*os.File, error) {
	s.mu.Lock()
	ct := s.containers[id]
	gone := ct == nil || ct.Exited || ct.pidfd == nil
	pid := 0
	if !gone {
		pid = ct.Pid
	}
	s.mu.Unlock()
	if gone {
		return nil, &Error{Message: "container " + id + " does not run: its processes cannot be joined", ExitCode: 128}
	}
	ns, err := openNamespaces(pid, "pid")
	if err != nil {
		return nil, err
	}
	return ns[0], nil
}

// openStreams makes the container's pipes, starts reading ours and gives the ends for the container: stdin, stdout,
// stderr. With a terminal there are none.
func (s *Server) openStreams(ct *container) ([]io.Closer, error) {
	ct.log = &logger{dir: ct.LogDir, limit: ct.LogFile, files: ct.LogMax, pending: map[byte][]byte{}}
	if ct.TTY {
		return nil, nil
	}
	var ends []io.Closer
	stdin, err := os.OpenFile(os.DevNull, os.O_RDONLY, 0)
	if ct.Stdin {
		stdin.Close()
		stdin, err = openBoth(s.fifo(ct.ID, "in"))
	}
	if err != nil {
		return nil, err
	}
	ends = append(ends, stdin)
	if ct.Stdin {
		if ct.stdin, err = os.OpenFile(s.fifo(ct.ID, "in"), os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
			closeAll(ends...)
			return nil, err
		}
	}
	for _, stream := range []byte{streamOut, streamErr} {
		path := s.fifo(ct.ID, string(rune(stream)))
		reader, err := openPipe(path)
		if err != nil {
			closeAll(ends...)
			return nil, err
		}
		writer, err := openBoth(path)
		if err != nil {
			closeAll(append(ends, reader)...)
			return nil, err
		}
		ends = append(ends, writer)
		ct.pumps.Go(func() { ct.pump(reader, stream) })
	}
	return ends, nil
}

// openBoth opens a named pipe for reading and writing, blocking: what a container's program expects of its streams.
func openBoth(path string) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// register makes the container known under its pid and writes its record.
func (s *Server) register(ct *container, pid int) error {
	pidfd, err := openPidfd(pid)
	if err != nil {
		return err
	}
	ct.pidfd = pidfd
	s.mu.Lock()
	ct.Pid, ct.Birth, ct.Started = pid, birth(pid), time.Now().UTC()
	s.containers[ct.ID] = ct
	s.mu.Unlock()
	// From here on the end of a lease finds it.
	if ct.Fenced && !s.fence.holds(ct.gap) {
		return errLeaseLost(ct.ID)
	}
	return s.save(ct)
}

// awaitExec waits until the init has become the program (its end of the socket closes) or says why not. A terminal's
// master may come first.
func awaitExec(in *child) (*os.File, error) {
	var terminal *os.File
	for {
		head := make([]byte, 1)
		oob := make([]byte, unix.CmsgSpace(4))
		n, oobn, _, _, err := in.control.ReadMsgUnix(head, oob)
		if err != nil || n == 0 {
			return terminal, nil
		}
		if head[0] == 1 {
			if terminal, err = receivedFile(oob[:oobn]); err != nil {
				return nil, err
			}
			continue
		}
		rest := make([]byte, 3)
		if _, err := io.ReadFull(in.control, rest); err != nil {
			return terminal, err
		}
		body := make([]byte, int(rest[0])<<16|int(rest[1])<<8|int(rest[2]))
		if _, err := io.ReadFull(in.control, body); err != nil {
			return terminal, err
		}
		if terminal != nil {
			terminal.Close()
		}
		return nil, failureOf(body)
	}
}

func receivedFile(oob []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("terminal without a descriptor")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("terminal without a descriptor")
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

func failureOf(body []byte) error {
	var f sandbox.Failure
	if err := json.Unmarshal(body, &f); err != nil {
		return err
	}
	if f.Message == "" {
		return nil
	}
	return &Error{Message: f.Message, ExitCode: f.ExitCode}
}
