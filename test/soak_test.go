package test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
	vocabulary "spillway.dev/spillway/internal/group"
)

// The soak runs for SPILLWAY_SOAK (a duration, default soakTime) from SPILLWAY_SEED (default: the clock).
const (
	soakTime  = 20 * time.Second
	soakUsers = 3                       // callers at the same time
	soakCalm  = 1500 * time.Millisecond // longest time between two kills
)

// soak is a platform under random use and random kills.
type soak struct {
	*sweep
	mu     sync.Mutex // guards what follows
	groups map[string]*soaked
	notes  []string
}

// soaked is what a caller knows of a group of its own.
type soaked struct {
	acknowledged bool // its creation
	deleted      bool // its deletion was asked for
	touched      bool // it was stopped or started: how often its programs ran is not fixed
	down         bool // its stop was acknowledged, and no start was asked for since
}

func TestSoak(t *testing.T) {
	t.Parallel()
	length, seed := soakTime, uint64(time.Now().UnixNano())
	if text := os.Getenv("SPILLWAY_SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("SPILLWAY_SOAK: %v", err)
		}
	}
	if text := os.Getenv("SPILLWAY_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SPILLWAY_SEED: %v", err)
		}
	}
	t.Logf("SPILLWAY_SEED=%d", seed)
	s := &soak{sweep: newSweep(t), groups: map[string]*soaked{}}
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	var users sync.WaitGroup
	for user := range soakUsers {
		users.Go(func() { s.use(ctx, rand.New(rand.NewPCG(seed, uint64(user)))) })
	}
	kills := s.kill(ctx, rand.New(rand.NewPCG(seed, 1000)))
	users.Wait()
	s.verify()
	t.Logf("%d groups, %d kills", len(s.groups), kills)
	if t.Failed() {
		for _, note := range s.notes {
			t.Log(note)
		}
	}
}

func (s *soak) note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.notes = append(s.notes, time.Now().Format("15:04:05.000 ")+fmt.Sprintf(format, args...))
}

// kill ends server or keeper at random times, and brings the server back.
func (s *soak) kill(ctx context.Context, r *rand.Rand) int {
	kills := 0
	for ctx.Err() == nil {
		time.Sleep(time.Duration(r.Int64N(int64(soakCalm))))
		keeper := s.keeperPid()
		which := r.IntN(3)
		s.note("kill %s", []string{"server", "keeper", "both"}[which])
		if which > 0 && keeper != 0 {
			_ = syscall.Kill(keeper, syscall.SIGKILL)
		}
		if which != 1 {
			if err := s.signal(syscall.SIGKILL); err != nil {
				s.Error(err)
				return kills
			}
			if err := s.restart(); err != nil {
				s.Errorf("start after a kill: %v", err)
				return kills
			}
		}
		kills++
	}
	return kills
}

// restart starts the server without changing the client under its users' hands.
func (s *soak) restart() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.up()
}

// api is the client of the server that runs now.
func (s *soak) api() *client.Client {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.client
}

// use does random things with groups of its own.
func (s *soak) use(ctx context.Context, r *rand.Rand) {
	var mine []string
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		switch n := r.IntN(10); {
		case n < 4 && len(mine) < 4 || len(mine) == 0:
			mine = append(mine, s.make(call, r))
		case n < 7:
			i := r.IntN(len(mine))
			s.delete(call, mine[i])
			mine = slices.Delete(mine, i, i+1)
		default:
			s.toggle(call, mine[r.IntN(len(mine))], r.IntN(2) == 0)
		}
		cancel()
		time.Sleep(time.Duration(r.IntN(150)) * time.Millisecond)
	}
}

func (s *soak) make(ctx context.Context, r *rand.Rand) string {
	n := name("soak")
	script := sleeper
	if r.IntN(3) == 0 {
		script = "sleep 0." + strconv.Itoa(r.IntN(10)) + "; exit 3"
	}
	g := &soaked{}
	s.mu.Lock()
	s.groups[n] = g
	s.mu.Unlock()
	_, err := s.api().PutGroup(ctx, "", n, s.body(n, script))
	s.note("put %s: %v", n, err)
	g.acknowledged = err == nil
	return n
}

func (s *soak) delete(ctx context.Context, n string) {
	s.groups0(n).deleted = true
	err := s.api().DeleteGroup(ctx, "", n, false)
	s.note("delete %s: %v", n, err)
}

func (s *soak) groups0(n string) *soaked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.groups[n]
}

func (s *soak) toggle(ctx context.Context, n string, stop bool) {
	g := s.groups0(n)
	g.touched = true
	if stop {
		err := s.api().Stop(ctx, "", n)
		s.note("stop %s: %v", n, err)
		g.down = g.down || err == nil
		return
	}
	g.down = false
	s.note("start %s: %v", n, s.api().Start(ctx, "", n))
}

// verify looks at everything that was done, once nobody disturbs any more.
func (s *soak) verify() {
	s.check("the soak")
	for n, g := range s.groups {
		s.verifyOne(n, g)
	}
	for n := range s.groups {
		s.remove(n)
	}
	s.same(s.before)
	s.check("the end")
}

func (s *soak) verifyOne(n string, g *soaked) {
	_, err := s.client.GetGroup(s.Context(), "", n)
	if err != nil {
		if g.acknowledged && !g.deleted || fault.KindOf(err) != fault.NotFound {
			s.Errorf("the acknowledged group %s is not there: %v", n, err)
		}
		return
	}
	if g.deleted {
		return // the deletion may not have been acknowledged; it is removed below
	}
	if g.down { // one that had ended by itself stays what it was
		s.await(n, "the stop", func(g *client.Group) bool { return vocabulary.State(g.State()).Ended() })
	}
	if g.touched {
		return
	}
	s.await(n, "a state of rest", func(g *client.Group) bool { return g.State() == "Running" || g.State() == "Failed" })
	for _, c := range []string{"a", "b"} {
		waitFor(s.T, "a run of "+n, func() bool { return s.executions(n, c) > 0 })
		if times := s.executions(n, c); times != 1 {
			s.Errorf("container %s of %s has run %d times, want once", c, n, times)
		}
	}
}
