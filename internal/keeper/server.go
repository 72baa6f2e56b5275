package keeper

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/sandbox"
)

// Config is where a keeper lives.
type Config struct {
	Dir string // run directory, on a file system that a reboot empties; holds the socket and the records
	Log *slog.Logger
}

// Server is the keeper's state. Lock order: Server.mu before nothing; it is held for map work only, never for IO on
// the start path.
type Server struct {
	cfg      Config
	program  *os.File // sealed copy of our own binary, what inits are executed from
	version  string   // of the program
	listener *net.UnixListener

	starting sync.RWMutex // held for reading by parks and starts, for writing by an upgrade

	mu         sync.Mutex // guards the maps below
	slots      map[string]*slot
	containers map[string]*container
	watchers   map[*conn]struct{}
	reaper     *reaper
	fence      *fence

	starts, moves, processes atomic.Int64 // see Counters

	quit chan struct{}
}

// Socket is the keeper's address under a run directory.
func Socket(dir string) string { return filepath.Join(dir, "keeper.sock") }

// Serve runs a keeper until it is told to quit. It holds an exclusive lock on the directory: a second one fails.
func Serve(cfg Config) error {
	for _, sub := range []string{"", "containers", "fifo", "stage"} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, sub), 0o700); err != nil {
			return err
		}
	}
	lock, err := os.OpenFile(filepath.Join(cfg.Dir, "keeper.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("keeper of %s is running already", cfg.Dir)
	}
	program, err := sealSelf()
	if err != nil {
		return fmt.Errorf("seal own program: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	s := &Server{cfg: cfg, program: program, slots: map[string]*slot{}, containers: map[string]*container{},
		watchers: map[*conn]struct{}{}, reaper: newReaper(), quit: make(chan struct{})}
	if s.version, err = fileVersion(program); err != nil {
		return err
	}
	if s.fence, err = openFence(cfg.Dir, s.endFenced); err != nil {
		return err
	}
	terminals, err := s.inherit()
	if err != nil {
		return fmt.Errorf("take over from the earlier program: %w", err)
	}
	if err := s.adopt(terminals); err != nil {
		return fmt.Errorf("adopt containers: %w", err)
	}
	s.reaper.collect() // children of the earlier program that have ended meanwhile
	if s.listener == nil {
		if s.listener, err = listen(Socket(cfg.Dir)); err != nil {
			return err
		}
	}
	go func() {
		<-s.quit
		s.listener.Close()
	}()
	go func() { cfg.Log.Error("watch the lease", "error", s.fence.watch()) }()
	for {
		c, err := s.listener.AcceptUnix()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		go s.serve(&conn{UnixConn: c})
	}
}

// listen makes the socket, in place of an earlier keeper's.
func listen(path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	return l, os.Chmod(path, 0o600)
}

// seal copies a program into memory that nothing can change: what is executed inside a container's namespaces is
// never a file of the host.
func seal(program io.Reader) (*os.File, error) {
	fd, err := unix.MemfdCreate("spillway-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // kernels before 6.3 do not know the last flag
		fd, err = unix.MemfdCreate("spillway-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "spillway-init")
	if _, err := io.Copy(f, program); err != nil {
		return nil, err
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	return f, err
}

func sealSelf() (*os.File, error) {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	defer self.Close()
	return seal(self)
}

// conn is one connection; frames of several goroutines go out whole.
type conn struct {
	*net.UnixConn
	mu sync.Mutex // guards writes
}

func (c *conn) send(v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return sandbox.WriteFrame(c, body)
}

func (c *conn) frame(kind byte, body []byte) error {
	buf := make([]byte, 1+len(body))
	buf[0] = kind
	copy(buf[1:], body)
	c.mu.Lock()
	defer c.mu.Unlock()
	return sandbox.WriteFrame(c, buf)
}

// maxCalls bounds the calls of one connection that run at the same time.
const maxCalls = 256

func (s *Server) serve(c *conn) {
	defer c.Close()
	defer s.unwatch(c)
	var running sync.WaitGroup
	defer running.Wait()
	var calls atomic.Int64
	for {
		body, err := sandbox.ReadFrame(c)
		if err != nil {
			return
		}
		var q request
		if err := json.Unmarshal(body, &q); err != nil {
			return
		}
		switch {
		case q.Exec != nil:
			s.exec(c, q.Exec)
			return
		case q.Attach != nil:
			s.attach(c, q.Attach)
			return
		}
		if calls.Add(1) > maxCalls {
			_ = c.send(response{ID: q.ID, Error: &Error{Message: "too many calls at once"}})
			calls.Add(-1)
			continue
		}
		running.Go(func() {
			defer calls.Add(-1)
			r, err := s.call(c, &q)
			if err != nil {
				r.Error = asError(err)
			}
			r.ID = q.ID
			_ = c.send(r)
		})
	}
}

func asError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return &Error{Message: err.Error()}
}

func (s *Server) call(c *conn, q *request) (response, error) {
	switch {
	case q.Hello != nil:
		return response{Pid: os.Getpid(), Version: s.version, Counters: &Counters{s.starts.Load(), s.moves.Load(), s.processes.Load()}}, nil
	case q.Park != nil:
		s.starting.RLock()
		defer s.starting.RUnlock()
		pid, err := s.park(q.Park)
		return response{Pid: pid}, err
	case q.Label != nil:
		return response{}, s.label(q.Label)
	case q.Unpark != nil:
		return response{}, s.unpark(*q.Unpark)
	case q.Dismiss != nil:
		s.dismiss(*q.Dismiss)
		return response{}, nil
	case q.Start != nil:
		s.starting.RLock()
		defer s.starting.RUnlock()
		ct, err := s.start(q.Start)
		return response{Container: ct}, err
	case q.Signal != nil:
		return response{}, s.signal(q.Signal)
	case q.Lease != nil:
		return response{}, s.fence.renew(*q.Lease)
	case q.Forget != nil:
		return response{}, s.forget(*q.Forget)
	case q.List != nil:
		return s.list(), nil
	case q.Watch != nil:
		s.watch(c)
		return response{}, nil
	case q.Upgrade != nil:
		return response{}, s.upgrade(*q.Upgrade)
	case q.Quit != nil:
		return response{}, s.stop()
	}
	return response{}, fmt.Errorf("unknown call")
}

func (s *Server) list() response {
	s.mu.Lock()
	defer s.mu.Unlock()
	var r response
	for _, sl := range s.slots {
		r.Slots = append(r.Slots, sl.describe())
	}
	for _, ct := range s.containers {
		if !ct.isGuest() {
			r.Containers = append(r.Containers, ct.Container)
		}
	}
	return r
}

// watch sends every exit from now on; those before are in List.
func (s *Server) watch(c *conn) {
	s.mu.Lock()
	s.watchers[c] = struct{}{}
	s.mu.Unlock()
}

func (s *Server) unwatch(c *conn) {
	s.mu.Lock()
	delete(s.watchers, c)
	s.mu.Unlock()
}

func (s *Server) announce(ct Container) {
	s.mu.Lock()
	watchers := make([]*conn, 0, len(s.watchers))
	for c := range s.watchers {
		watchers = append(watchers, c)
	}
	s.mu.Unlock()
	for _, c := range watchers {
		_ = c.send(response{Event: &ct})
	}
}

// idle says which container still runs. s.mu is held.
func (s *Server) idle() error {
	for _, ct := range s.containers {
		if !ct.Exited && !ct.isGuest() {
			return fmt.Errorf("container %s is running", ct.ID)
		}
	}
	return nil
}

func (s *Server) stop() error {
	s.mu.Lock()
	err, slots := s.idle(), slices.Collect(maps.Values(s.slots))
	s.mu.Unlock()
	if err != nil {
		return err
	}
	for _, sl := range slots {
		s.endGuest(sl)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.idle(); err != nil {
		return err // started meanwhile
	}
	for _, sl := range s.slots {
		sl.release()
	}
	close(s.quit)
	return nil
}
