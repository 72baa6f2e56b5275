package fleet

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

var seeds = flag.Int("seeds", 1000, "how many seeds are tried")

// TestFleet breaks a simulated fleet by many seeds. SPILLWAY_SEED=N tries one alone, and tells what has happened.
func TestFleet(t *testing.T) {
	first, n := uint64(1), *seeds
	if text := os.Getenv("SPILLWAY_SEED"); text != "" {
		var err error
		if first, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
		n = 1
	}
	if testing.Short() {
		n = min(n, 50)
	}
	for i := range n {
		seed := first + uint64(i)
		synctest.Test(t, func(t *testing.T) { play(t, seed) })
		if t.Failed() {
			t.Fatalf("SPILLWAY_SEED=%d", seed)
		}
	}
}

// script is one run: what it knows, and where its chances come from.
type script struct {
	*testing.T
	*Fleet
	rng          *rand.Rand
	known, maybe map[string]bool
	made, bad    int // groups; looks in a row that found something wrong
	heal         []func()
}

func play(t *testing.T, seed uint64) {
	f, err := New(seed, 4)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := &script{T: t, Fleet: f, rng: rand.New(rand.NewPCG(seed, 0)), known: map[string]bool{}, maybe: map[string]bool{}}
	s.pass(time.Second)
	for range 4 {
		for range 1 + s.rng.IntN(3) {
			s.harm()
			s.use()
			s.pass(time.Duration(s.rng.IntN(int(3 * time.Second))))
		}
		for _, undo := range slices.Backward(s.heal) {
			undo()
		}
		s.heal = nil
		s.note("healed")
		s.whole()
		if t.Failed() {
			break
		}
	}
	if t.Failed() {
		for _, line := range f.Notes() {
			t.Log(line)
		}
	}
}

// pass lets time pass, and looks all the while.
func (s *script) pass(d time.Duration) {
	const step = 50 * time.Millisecond
	for ; d > 0 && !s.Failed(); d -= step {
		time.Sleep(step)
		if wrong := s.Always(); wrong == nil {
			s.bad = 0
		} else if s.bad++; s.bad > 3 { // a message may be on its way
			s.note("%v", wrong)
			s.Error(wrong)
		}
	}
}

// whole waits until the fleet has healed.
func (s *script) whole() {
	var wrong error
	for range 600 {
		s.pass(100 * time.Millisecond)
		if wrong = s.Whole(s.known, s.maybe); wrong == nil || s.Failed() {
			break
		}
	}
	if wrong != nil {
		s.note("%v", wrong)
		s.Errorf("a minute after everything was healed: %v", wrong)
	}
	for _, v := range s.views() { // whatever became of them is known now
		if name := v.Group.Ref.Name; s.maybe[name] {
			s.known[name] = true
		}
	}
	clear(s.maybe)
}

// use creates, deletes and stops groups, and tells lies.
func (s *script) use() {
	for range 1 + s.rng.IntN(5) {
		s.create()
	}
	names := slices.Sorted(maps.Keys(s.known))
	for range s.rng.IntN(3) {
		if len(names) == 0 {
			break
		}
		name := names[s.rng.IntN(len(names))]
		ref := group.Ref{Subscription: subscription, ResourceGroup: resourceGroup, Name: name}
		if s.rng.IntN(3) == 0 {
			_, err := s.lead().ctrl.Stop(context.Background(), ref)
			s.note("stop %s: %v", name, err)
			continue
		}
		_, err := s.lead().ctrl.Delete(context.Background(), ref, nil)
		s.note("delete %s: %v", name, err)
		if delete(s.known, name); err != nil && fault.KindOf(err) != fault.NotFound {
			s.maybe[name] = true
		}
		names = slices.Sorted(maps.Keys(s.known))
	}
	s.lie()
}

func (s *script) create() {
	s.made++
	name := fmt.Sprintf("g%d", s.made)
	spec := group.Spec{RestartPolicy: group.RestartAlways, SKU: "Standard", Containers: []group.Container{
		{Name: "main", Image: "busybox", Requests: group.Resources{MilliCPU: s.cores(), Memory: 1 << 28}}}}
	switch s.rng.IntN(5) {
	case 0:
		spec.Failover = group.FailoverFenced
	case 1:
		spec.Labels = map[string]string{"app": apart}
		spec.Placement = &group.Placement{AntiAffinity: []group.Affinity{{Topology: group.TopologyHost, Match: []group.Expression{{Key: "app", Operator: group.In, Values: []string{apart}}}}}}
	case 2:
		spec.Priority = group.PrioritySpot
	}
	_, err := s.lead().ctrl.Put(context.Background(), group.Ref{Subscription: subscription, ResourceGroup: resourceGroup, Name: name}, &arm.Request{Location: "local", Spec: spec})
	s.note("create %s (%d, %s %s %v): %v", name, spec.Containers[0].Requests.MilliCPU, spec.Failover, spec.Priority, spec.Labels, err)
	if err == nil {
		s.known[name] = true
	} else if fault.KindOf(err) != fault.Conflict {
		s.maybe[name] = true
	}
}

// cores are few, as a rule, so that there is room when hosts are away; some groups want much and have to wait.
func (s *script) cores() int64 {
	if s.rng.IntN(8) == 0 {
		return 2500
	}
	return int64(100 + 100*s.rng.IntN(5))
}

// lie has a host report of another's group: nothing may come of it.
func (s *script) lie() {
	for _, v := range s.lead().ctrl.List(controller.Filter{}) {
		if v.Group.Host == "" || v.Status == nil {
			continue
		}
		liar := s.hosts[s.rng.IntN(len(s.hosts))].name
		forged := *v.Status
		forged.Epoch, forged.IP = v.Group.Epoch, "192.0.2.250"
		if liar != v.Group.Host {
			forged.State, forged.Gone, forged.IP = group.Failed, true, v.Status.IP
		}
		s.lead().ctrl.Report(liar, forged)
		if liar == v.Group.Host {
			defer s.lead().ctrl.Report(liar, *v.Status) // it harms itself alone; enough of it
		}
		now, err := s.lead().ctrl.Get(v.Group.Ref)
		if err == nil && now.Status != nil && (now.Status.Gone || now.Status.IP == "192.0.2.250") {
			s.note("lie of %s about %s", liar, v.Group.Ref.Name)
			s.Errorf("host %s lied about %s on %s, and was believed: %+v", liar, v.Group.Ref.Name, v.Group.Host, now.Status)
		}
		return
	}
}

// harm breaks one thing.
func (s *script) harm() {
	n := s.hosts[s.rng.IntN(len(s.hosts))]
	did := func(what string, undo func()) {
		s.note("%s %s", n.name, what)
		if undo != nil {
			s.heal = append(s.heal, func() { s.note("%s: over: %s", n.name, what); undo() })
		}
	}
	switch s.rng.IntN(9) {
	case 0:
		n.stopped.Store(true)
		did("agent stopped", func() { n.stopped.Store(false) })
	case 1:
		n.cutUp.Store(true)
		did("not heard", func() { n.cutUp.Store(false) })
	case 2:
		n.cutDown.Store(true)
		did("does not hear", func() { n.cutDown.Store(false) })
	case 3:
		n.cutUp.Store(true)
		n.cutDown.Store(true)
		did("cut off", func() { n.cutUp.Store(false); n.cutDown.Store(false) })
	case 4:
		n.mu.Lock()
		c := n.conn
		n.mu.Unlock()
		if c != nil {
			c.close(errors.New("agent killed"))
		}
		did("agent killed", nil)
	case 5:
		n.boot()
		n.mu.Lock()
		c := n.conn
		n.mu.Unlock()
		if c != nil {
			c.close(errors.New("machine booted"))
		}
		did("machine booted", nil)
	case 6:
		s.Kill()
		did("(the leader killed)", nil)
		s.succeed()
	case 7:
		held := s.Hold()
		did("(the leader stopped)", func() { held.held.Store(false) })
		s.succeed()
	case 8:
		if _, err := s.lead().ctrl.Cordon(context.Background(), n.name, true); err == nil {
			did("cordoned", func() { _, _ = s.lead().ctrl.Cordon(context.Background(), n.name, false) })
		}
	}
}

// succeed has another server lead, after the time that an election takes.
func (s *script) succeed() {
	time.Sleep(2 * time.Second)
	if err := s.Elect(); err != nil {
		s.Fatal(err)
	}
	s.note("another leads")
}
