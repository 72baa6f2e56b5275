package keeper

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// An upgrade executes another program in the keeper's place: the process, and with it every container's parent, stays
// the same. What a new keeper cannot find again by itself goes along as open descriptors.

// inheritance is what a keeper leaves to the program that takes its place.
type inheritance struct {
	Slots     []inheritedSlot `json:"slots"`
	Terminals map[string]int  `json:"terminals"` // container → descriptor of its terminal
	// Listener is the socket's: who connects meanwhile waits, and does not take the keeper for dead and start another.
	Listener int `json:"listener,omitempty"`
}

type inheritedSlot struct {
	ID       string          `json:"id"`
	Label    json.RawMessage `json:"label,omitempty"`
	Bare     bool            `json:"bare,omitempty"`
	NS       []int           `json:"ns"`
	PidNS    int             `json:"pidns,omitempty"`
	PausePid int             `json:"pausePid,omitempty"`
}

// inheritanceEnv names the descriptor that the inheritance is read from.
const inheritanceEnv = "SPILLWAY_KEEPER_INHERITANCE"

// ProgramVersion identifies a keeper's program by its content.
func ProgramVersion(program io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, program); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

func fileVersion(f *os.File) (string, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	return ProgramVersion(f)
}

// upgrade replaces this program by another one. On success it does not return: the caller sees its connection end.
func (s *Server) upgrade(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	program, err := seal(file)
	if err != nil {
		return fmt.Errorf("seal %s: %w", path, err)
	}
	s.starting.Lock() // waits for starts under way and lets no other begin; given back only on failure
	defer s.starting.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	left, keep := s.bequeath()
	if left.Listener, err = descriptor(s.listener); err != nil {
		return err
	}
	fd, err := memFile(left)
	if err != nil {
		return err
	}
	defer fd.Close()
	fds := []int{left.Listener, int(fd.Fd())}
	for _, f := range keep {
		fds = append(fds, int(f.Fd()))
	}
	syscall.ForkLock.Lock() // no child gets what is left to the next program
	defer syscall.ForkLock.Unlock()
	defer closeOnExec(fds, unix.FD_CLOEXEC)
	closeOnExec(fds, 0)
	for _, ct := range s.containers {
		if ct.log != nil && !ct.Exited {
			ct.log.close()
		}
	}
	env := append(os.Environ(), inheritanceEnv+"="+strconv.Itoa(int(fd.Fd())))
	err = syscall.Exec("/proc/self/fd/"+strconv.Itoa(int(program.Fd())), os.Args, env)
	return fmt.Errorf("execute %s: %w", path, err)
}

// bequeath gives up the parked slots, which cost nothing to make again, and lists what stays. s.mu is held.
func (s *Server) bequeath() (inheritance, []*os.File) {
	left := inheritance{Terminals: map[string]int{}}
	var keep []*os.File
	for id, sl := range s.slots {
		if sl.init != nil {
			delete(s.slots, id)
			sl.release()
			continue
		}
		in := inheritedSlot{ID: id, Label: sl.label, Bare: sl.bare, PausePid: sl.pausePid}
		for _, f := range sl.ns {
			in.NS, keep = append(in.NS, int(f.Fd())), append(keep, f)
		}
		if sl.pidns != nil {
			in.PidNS, keep = int(sl.pidns.Fd()), append(keep, sl.pidns)
		}
		left.Slots = append(left.Slots, in)
	}
	for id, ct := range s.containers {
		if ct.terminal != nil && !ct.Exited {
			left.Terminals[id], keep = int(ct.terminal.Fd()), append(keep, ct.terminal)
		}
	}
	return left, keep
}

// descriptor is a listener's own.
func descriptor(l *net.UnixListener) (number int, err error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = raw.Control(func(fd uintptr) { number = int(fd) })
	return number, err
}

// closeOnExec says whether descriptors go to the next program: 0, or not: FD_CLOEXEC.
func closeOnExec(fds []int, flag int) {
	for _, fd := range fds {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag) // fails for descriptors that are not open, and these are
	}
}

// memFile writes v as JSON into memory, to be read from the start.
func memFile(v any) (*os.File, error) {
	body, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("inheritance", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "inheritance")
	if _, err := f.Write(body); err != nil {
		return nil, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, err
}

// inherit takes over what an earlier program of this process has left. It gives the terminals for adopt.
func (s *Server) inherit() (map[string]*os.File, error) {
	text := os.Getenv(inheritanceEnv)
	if text == "" {
		return nil, nil
	}
	if err := os.Unsetenv(inheritanceEnv); err != nil {
		return nil, err
	}
	fd, err := strconv.Atoi(text)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "inheritance")
	defer f.Close()
	var left inheritance
	if err := json.NewDecoder(f).Decode(&left); err != nil {
		return nil, err
	}
	open := func(fd int, name string) *os.File {
		unix.CloseOnExec(fd)
		return os.NewFile(uintptr(fd), name)
	}
	for _, in := range left.Slots {
		sl := &slot{id: in.ID, label: in.Label, bare: in.Bare, pausePid: in.PausePid}
		for i, fd := range in.NS {
			sl.ns = append(sl.ns, open(fd, sharedNamespaces[i]))
		}
		if in.PidNS != 0 {
			sl.pidns = open(in.PidNS, "pid")
		}
		s.slots[in.ID] = sl
	}
	terminals := map[string]*os.File{}
	for id, fd := range left.Terminals {
		if err := unix.SetNonblock(fd, true); err != nil {
			return nil, err
		}
		terminals[id] = open(fd, "terminal")
	}
	if left.Listener != 0 {
		if s.listener, err = inheritListener(open(left.Listener, "listener")); err != nil {
			return nil, err
		}
	}
	s.cfg.Log.Info("upgraded in place", "slots", len(s.slots))
	return terminals, nil
}

func inheritListener(f *os.File) (*net.UnixListener, error) {
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("inherited listener: %w", err)
	}
	unixListener, ok := l.(*net.UnixListener)
	if !ok {
		return nil, fmt.Errorf("the inherited listener is one for %s", l.Addr().Network())
	}
	unixListener.SetUnlinkOnClose(true)
	return unixListener, nil
}
