package keeper

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/wholefile"
)

// A fenced container runs only while its host has a lease: until then nobody else runs it. The agent hands each lease
// on; when one ends, fenced containers are killed here, whatever has become of the agent. The end of the lease is in
// memory and in a file, so that the death of a keeper does not extend it. A reboot empties the file's directory, and
// ends the containers too.

// Boottime is the clock of leases: it goes on while the machine sleeps, and nobody sets it.
func Boottime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 1<<63 - 1 // without a clock every lease has ended
	}
	return time.Duration(t.Nano())
}

// fence is the lease of a host.
type fence struct {
	path string
	now  func() time.Duration
	// kill ends what may not run beyond the lease. It is called with mu held.
	kill func()

	mu    sync.Mutex // guards what follows; taken before Server.mu
	until time.Duration
	gaps  int      // how often kill was called: what has begun before is not of the newest lease
	alarm *os.File // rings at until; nil in tests
}

func fencePath(dir string) string { return filepath.Join(dir, "lease.json") }

// openFence reads the lease of an earlier keeper. One that cannot be read has ended.
func openFence(dir string, kill func()) (*fence, error) {
	f := &fence{path: fencePath(dir), now: Boottime, kill: kill}
	if body, err := os.ReadFile(f.path); err == nil && json.Unmarshal(body, &f.until) != nil {
		f.until = 0
	}
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make the alarm of the lease: %w", err)
	}
	f.alarm = os.NewFile(uintptr(fd), "lease")
	return f, f.set()
}

// set sets the alarm. mu is held, or f is nobody else's yet.
func (f *fence) set() error {
	if f.alarm == nil || f.until == 0 {
		return nil
	}
	raw, err := f.alarm.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(f.until))}, nil)
	})
	if err != nil {
		return err
	}
	return failed
}

// watch ends what is fenced whenever the lease does.
func (f *fence) watch() error {
	var rings [8]byte
	for {
		if _, err := f.alarm.Read(rings[:]); err != nil {
			return err
		}
		f.mu.Lock()
		f.check()
		f.mu.Unlock()
	}
}

// check ends what is fenced if the lease has ended, and says so. mu is held.
func (f *fence) check() (ended bool) {
	if f.now() < f.until {
		return false
	}
	f.gaps++
	f.kill()
	return true
}

// renew takes over a lease. What has run while there was none is ended first: it may run elsewhere by now.
func (f *fence) renew(until time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if until <= f.until {
		return nil
	}
	f.check()
	// Written first: a keeper that dies in between leaves a lease that was given, too.
	body, err := json.Marshal(until)
	if err == nil {
		err = wholefile.Write(f.path, body)
	}
	if err != nil {
		return fmt.Errorf("write the lease: %w", err)
	}
	f.until = until
	return f.set()
}

// enter begins a start that was decided under a lease, and gives what holds is asked with. That a newer lease has come
// meanwhile does not help: the one who decided knew nothing of it.
func (f *fence) enter(until time.Duration) (gap int, ok bool, err error) {
	if f.now() >= until {
		return 0, false, nil
	}
	if err := f.renew(until); err != nil {
		return 0, false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gaps, true, nil
}

// holds says whether there was a lease all the time since enter.
func (f *fence) holds(gap int) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.gaps == gap && f.now() < f.until
}

func (f *fence) ended() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now() >= f.until
}

// errLeaseLost is why a fenced container is not started.
func errLeaseLost(id string) error {
	return &Error{Message: "container " + id + " is fenced, and the host has no lease", LeaseLost: true}
}

// enter begins the start of a container that may be fenced.
func (s *Server) enter(q *Start) (gap int, err error) {
	if q.Lease == 0 {
		return 0, nil
	}
	gap, ok, err := s.fence.enter(q.Lease)
	if err == nil && !ok {
		err = errLeaseLost(q.ID)
	}
	return gap, err
}

// endFenced kills all fenced containers, at once: of those that are being started register finds out.
func (s *Server) endFenced() {
	s.mu.Lock()
	defer s.mu.Unlock()
	killed := 0
	for _, ct := range s.containers {
		if ct.Fenced && !ct.Exited && ct.pidfd != nil {
			ct.endOfLease()
			killed++
		}
	}
	if killed > 0 {
		s.cfg.Log.Warn("the lease has ended: killed what is fenced", "containers", killed)
	}
}

// endOfLease kills a container whose lease has ended; of one in a guest, the guest. Server.mu is held.
func (ct *container) endOfLease() {
	ct.LeaseLost = true
	_ = ct.kill(unix.SIGKILL) // the only failure is that it has ended
}
