package keeper

import (
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// reaper collects every child of this process, also those that an OCI runtime left to us, and hands the outcome to
// whoever waits for that pid. One goroutine serves all.
type reaper struct {
	mu      sync.Mutex // guards the maps
	waiters map[int]*ending
	early   map[int]outcome // children that ended before anyone asked
}

type outcome struct {
	status unix.WaitStatus
	at     time.Time
}

// earlyFor is how long an outcome that nobody has asked for is kept: the time between a fork and its registration.
const earlyFor = time.Minute

func newReaper() *reaper {
	r := &reaper{waiters: map[int]*ending{}, early: map[int]outcome{}}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	go func() {
		for range signals {
			r.collect()
		}
	}()
	return r
}

func (r *reaper) collect() {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			break
		}
		r.mu.Lock()
		if e, ok := r.waiters[pid]; ok {
			e.status = status
			close(e.done)
			delete(r.waiters, pid)
		} else {
			r.early[pid] = outcome{status, time.Now()}
		}
		r.mu.Unlock()
	}
	r.mu.Lock()
	for pid, o := range r.early {
		if time.Since(o.at) > earlyFor {
			delete(r.early, pid)
		}
	}
	r.mu.Unlock()
}

// ending is the end of a child: status may be read once done is closed.
type ending struct {
	done   chan struct{}
	status unix.WaitStatus
}

// wait gives the end of a child, which any number may wait for. It is asked once per pid.
func (r *reaper) wait(pid int) *ending {
	e := &ending{done: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	if o, ok := r.early[pid]; ok {
		delete(r.early, pid)
		e.status = o.status
		close(e.done)
	} else {
		r.waiters[pid] = e
	}
	return e
}

// exitCode is what a shell would say of a status.
func exitCode(status unix.WaitStatus) (code, sig int) {
	if status.Signaled() {
		return 128 + int(status.Signal()), int(status.Signal())
	}
	return status.ExitStatus(), 0
}

// birth is the start time of a process in clock ticks since boot, 0 when there is none.
func birth(pid int) uint64 { return processStat(pid).number(statStartTime) }

// stat is the fields of a process's stat file behind its name.
type stat []string

// Fields of proc(5), counted from the third: the second is a name in parentheses that may hold anything.
const (
	statState     = 3 - 3
	statParent    = 4 - 3
	statStartTime = 22 - 3
	statExitCode  = 52 - 3
)

func processStat(pid int) stat {
	body, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil
	}
	text := string(body)
	return strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
}

func (s stat) number(field int) uint64 {
	if len(s) <= field {
		return 0
	}
	n, _ := strconv.ParseUint(s[field], 10, 64)
	return n
}
