package keeper

import (
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/sandbox"
)

// slot is a set of namespaces that the containers of one group share, held by descriptors: they live as long as the
// keeper or one of their containers does, without any process that only waits.
type slot struct {
	id    string
	label json.RawMessage
	bare  bool
	ns    []*os.File // network, IPC, UTS
	init  *child     // parked, nil once it has become a container
	pause *child     // first process of a shared process namespace
	// pausePid stands for pause after an adoption.
	pausePid int
	pidns    *os.File // the shared process namespace

	making sync.Mutex // held while the guest is made or ended; taken before Server.mu
	guest  *container // running in it, nil when there is none; Server.mu guards it
}

var sharedNamespaces = []string{"net", "ipc", "uts"}

func (sl *slot) describe() Slot {
	d := Slot{ID: sl.id, Label: sl.label, Bare: sl.bare, Pause: sl.pausePid}
	if sl.init != nil {
		d.Parked, d.Pid = true, sl.init.pid
	}
	if len(sl.ns) == len(sharedNamespaces) {
		d.Namespaces = map[string]string{}
		for i, name := range sharedNamespaces {
			d.Namespaces[name] = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), sl.ns[i].Fd())
		}
	}
	return d
}

// release lets go of a slot's processes and namespaces.
func (sl *slot) release() {
	if sl.init != nil {
		sl.init.kill()
		sl.init = nil
	}
	if sl.pause != nil {
		sl.pause.kill()
		sl.pause = nil
	} else if sl.pausePid != 0 {
		_ = unix.Kill(sl.pausePid, unix.SIGKILL)
	}
	for _, f := range append(sl.ns, sl.pidns) {
		if f != nil {
			f.Close()
		}
	}
	sl.ns, sl.pidns = nil, nil
}

// newShared are the flags of the namespaces that a slot has of its own.
func (q *Park) newShared() uintptr {
	flags := uintptr(unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS)
	if q.HostNetwork {
		flags &^= unix.CLONE_NEWNET | unix.CLONE_NEWUTS
	}
	if q.HostIPC {
		flags &^= unix.CLONE_NEWIPC
	}
	return flags
}

func (s *Server) park(q *Park) (int, error) {
	if err := checkID(q.Slot); err != nil {
		return 0, err
	}
	s.mu.Lock()
	_, exists := s.slots[q.Slot]
	s.mu.Unlock()
	if exists {
		return 0, fmt.Errorf("slot %s exists", q.Slot)
	}
	o := spawning{mode: sandbox.ModePark, clone: q.newShared() | unix.CLONE_NEWNS | unix.CLONE_NEWPID, cgroups: q.Cgroups, v2: q.V2}
	if q.Pause || q.Bare {
		o.mode = sandbox.ModePause
	}
	c, err := s.spawn(o)
	if err != nil {
		return 0, err
	}
	sl := &slot{id: q.Slot, label: q.Label, bare: q.Bare}
	if sl.ns, err = openNamespaces(c.pid, sharedNamespaces...); err != nil {
		c.kill()
		return 0, err
	}
	if err := c.begin(sandbox.Ready{Cgroups: q.Cgroups}); err != nil {
		c.kill()
		sl.release()
		return 0, err
	}
	switch {
	case q.Pause:
		pidns, err := openNamespaces(c.pid, "pid")
		if err != nil {
			c.kill()
			return 0, err
		}
		sl.pause, sl.pausePid, sl.pidns = c, c.pid, pidns[0]
	case q.Bare:
		c.kill() // the descriptors hold the namespaces
	default:
		sl.init = c
		go s.watchParked(sl, c)
	}
	// gofail: var keeperParked struct{}
	s.mu.Lock()
	s.slots[q.Slot] = sl
	s.mu.Unlock()
	return c.pid, nil
}

// watchParked forgets an init that dies while it waits, so that a start falls back to a new one.
func (s *Server) watchParked(sl *slot, c *child) {
	<-c.end.done
	s.mu.Lock()
	defer s.mu.Unlock()
	if sl.init == c && s.slots[sl.id] == sl {
		sl.init = nil
		c.control.Close()
		s.cfg.Log.Warn("parked init ended", "slot", sl.id, "status", int(c.end.status))
	}
}

func openNamespaces(pid int, names ...string) ([]*os.File, error) {
	var files []*os.File
	for _, name := range names {
		f, err := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/" + name)
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func (s *Server) label(q *Label) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	sl, ok := s.slots[q.Slot]
	if !ok {
		return &Error{Message: "slot " + q.Slot + " does not exist", NotFound: true}
	}
	sl.label = q.Label
	return nil
}

func (s *Server) unpark(id string) error {
	s.mu.Lock()
	sl, ok := s.slots[id]
	for _, ct := range s.containers {
		if ct.Slot == id && !ct.Exited && !ct.isGuest() {
			s.mu.Unlock()
			return fmt.Errorf("slot %s: container %s is running", id, ct.ID)
		}
	}
	delete(s.slots, id)
	s.mu.Unlock()
	// gofail: var keeperUnparking struct{}
	if ok {
		s.endGuest(sl)
		sl.release()
	}
	return nil // unparking twice is fine
}

// dismiss ends what waits in a slot, init or guest; the slot's namespaces stay.
func (s *Server) dismiss(id string) {
	s.mu.Lock()
	var waiting *child
	sl, ok := s.slots[id]
	if ok {
		waiting, sl.init = sl.init, nil
	}
	s.mu.Unlock()
	if waiting != nil {
		waiting.kill()
	}
	if ok {
		s.endGuest(sl)
	}
}

// maxID bounds ids: they are file names.
const maxID = 128

// checkID accepts what the agent makes: letters, digits, dot, dash, underscore.
func checkID(id string) error {
	if id == "" || len(id) > maxID || id[0] == '.' {
		return fmt.Errorf("id %q is not allowed", id)
	}
	for _, r := range id {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
		default:
			return fmt.Errorf("id %q is not allowed", id)
		}
	}
	return nil
}
