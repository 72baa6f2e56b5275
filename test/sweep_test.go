package test

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
)

// The places where a process is killed, by what is going on there.
var (
	createPoints = []string{"commitBefore", "commitAfter", "claimTaken", "claimJoined", "claimBeforeRecord", "volumeBeforeMount", "volumesMade",
		"startBeforeKeeper", "startBeforeRecord", "startAfterRecord", "saveBefore", "poolBeforePark", "poolParked", "attachLinked", "attachConfigured", "poolAttached"}
	stopPoints = []string{"stopBeforeSignal", "cleanBefore", "cleanAfter", "releaseBefore", "slotUnparked", "slotDetached", "releaseBeforeVolumes",
		"volumesUnmounted", "releaseAfter"}
	deletePoints      = []string{"stopBeforeSignal", "cleanAfter", "slotUnparked", "releaseAfter", "forgetBefore", "forgetAfter", "goneBeforeForget", "removeBefore", "removeAfter"}
	pullPoints        = []string{"pullLeased", "pullFetching", "pullUnpacked", "pullRecorded"}
	addressPoints     = []string{"addressStored", "routesBefore", "routesRuled"}
	addressGonePoints = []string{"addressRemoved", "routesBefore", "routesRuled"}
	networkPoints     = []string{"networkStored"}
	evictionPoints    = []string{"evictBefore", "evictAfter", "moveBefore", "moveAfter"}
	// Of several hosts; internal/network arms them itself.
	overlayPoints      = []string{"overlayFenced", "overlayUnruled", "overlayMade", "overlayRouted", "fastLinked", "fastHooked", "fastFenced"}
	recoveryPoints     = []string{"adoptMiddle", "sweepMiddle"}
	keeperCreatePoints = []string{"keeperParked", "keeperStartRecorded", "keeperStartExecuted"}
	keeperDeletePoints = []string{"keeperExitSeen", "keeperExitSaved", "keeperForgetting", "keeperUnparking"}
	keeperGuestPoints  = []string{"keeperGuestRecorded", "keeperGuestMade"}
)

// sweep is a platform with a group that must not notice anything.
type sweep struct {
	*armed
	resident, since, before string
}

func newSweep(t *testing.T, env ...string) *sweep {
	t.Helper()
	s := &sweep{armed: startArmed(t, env...)}
	s.resident = s.create("resident", []M{container("c", sleeper), container("d", sleeper)}, M{"restartPolicy": "Always", "volumes": []M{{"name": "memory", "emptyDir": M{"medium": "Memory"}}}})
	s.since = starts(s.running(s.resident))
	s.settle(s.holdings(), "")
	s.before = s.tally()
	return s
}

// check looks whether the resident is as it was.
func (s *sweep) check(point string) {
	s.Helper()
	g := s.running(s.resident)
	if now := starts(g); now != s.since || restarts(g, 0)+restarts(g, 1) != 0 {
		s.Fatalf("after a kill at %s the resident's runs began %q, before %q", point, now, s.since)
	}
}

// once checks that a group runs, and that each of its programs has been executed exactly once.
func (s *sweep) once(point, n string) {
	s.Helper()
	g := s.running(n)
	for i, c := range []string{"a", "b"} {
		waitFor(s.T, "a run of "+n+" after a kill at "+point, func() bool { return s.executions(n, c) > 0 })
		if times := s.executions(n, c); times != 1 || restarts(g, i) != 0 {
			s.Errorf("after a kill at %s container %s has run %d times (%d restarts), want once", point, c, times, restarts(g, i))
		}
	}
}

func (s *sweep) drop(point, n string) {
	s.Helper()
	s.remove(n)
	s.same(s.before)
	s.check(point)
	if s.Failed() {
		s.FailNow()
	}
}

func TestKillsDuringCreate(t *testing.T) {
	t.Parallel()
	s := newSweep(t)
	for _, point := range createPoints {
		n := name("create")
		acknowledged := s.strike(point, func(ctx context.Context) error {
			_, err := s.client.PutGroup(ctx, "", n, s.body(n, sleeper))
			return err
		})
		_, err := s.client.GetGroup(t.Context(), "", n)
		if acknowledged && err != nil {
			t.Fatalf("after a kill at %s the acknowledged group is not there: %v", point, err)
		}
		if err == nil {
			s.once(point, n)
		}
		s.drop(point, n)
	}
}

func TestKillsDuringStop(t *testing.T) {
	t.Parallel()
	s := newSweep(t)
	for _, point := range stopPoints {
		n := name("stop")
		s.put(n, s.body(n, sleeper))
		s.once(point, n)
		s.strike(point, func(ctx context.Context) error { return s.client.Stop(ctx, "", n) })
		g := s.awaitState(n, "Stopped")
		for i := range g.Properties.Containers {
			if restarts(g, i) != 0 {
				t.Errorf("after a kill at %s container %d was restarted", point, i)
			}
		}
		s.once0(point, n)
		s.drop(point, n)
	}
}

// once0 is once for a group that does not run any more.
func (s *sweep) once0(point, n string) {
	s.Helper()
	for _, c := range []string{"a", "b"} {
		if times := s.executions(n, c); times != 1 {
			s.Errorf("after a kill at %s container %s has run %d times, want once", point, c, times)
		}
	}
}

func TestKillsDuringDelete(t *testing.T) {
	t.Parallel()
	s := newSweep(t)
	for _, point := range deletePoints {
		n := name("delete")
		s.put(n, s.body(n, sleeper))
		s.once(point, n)
		acknowledged := s.strike(point, func(ctx context.Context) error { return s.client.DeleteGroup(ctx, "", n, false) })
		if acknowledged {
			waitFor(t, "the deletion after a kill at "+point, func() bool {
				_, err := s.client.GetGroup(t.Context(), "", n)
				return fault.KindOf(err) == fault.NotFound
			})
		}
		s.drop(point, n)
	}
}

func TestKillsDuringPull(t *testing.T) {
	t.Parallel()
	s := newSweep(t)
	registry := newRegistry(t, false)
	for i, point := range pullPoints {
		img, err := busyboxImage(entry{path: "pulled", body: strings.Repeat("x", 1<<i)})
		ref := registry.push(t, "sweep/image:"+itoa(i), img, err)
		n := name("pull")
		body := s.body(n, sleeper)
		for _, c := range body["properties"].(M)["containers"].([]M) {
			c["properties"].(M)["image"] = ref
		}
		acknowledged := s.strike(point, func(ctx context.Context) error {
			_, err := s.client.PutGroup(ctx, "", n, body)
			return err
		})
		if !acknowledged {
			t.Fatalf("the group was not acknowledged before its pull reached %s", point)
		}
		s.once(point, n)
		s.drop(point, n)
	}
}

func TestKillsDuringRecovery(t *testing.T) {
	t.Parallel()
	s := newSweep(t)
	for _, point := range recoveryPoints {
		n := name("recover")
		s.put(n, s.body(n, sleeper))
		s.once(point, n)
		if err := s.signal(9); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- s.up("GOFAIL_FAILPOINTS=" + point + "=sleep(600000)") }()
		if !s.reached(point) {
			t.Fatalf("nobody came to %s", point)
		}
		if err := s.signal(9); err != nil {
			t.Fatal(err)
		}
		<-done
		if err := s.up(); err != nil {
			t.Fatal(err)
		}
		s.once(point, n)
		s.drop(point, n)
	}
}

func TestKillsOfTheKeeperDuringCreate(t *testing.T) {
	t.Parallel()
	s := newSweep(t)
	for _, point := range keeperCreatePoints {
		n := name("keeper")
		s.strike(point, func(ctx context.Context) error {
			_, err := s.client.PutGroup(ctx, "", n, s.body(n, sleeper))
			return err
		})
		s.once(point, n)
		s.drop(point, n)
	}
}

func TestKillsOfTheKeeperDuringDelete(t *testing.T) {
	t.Parallel()
	s := newSweep(t)
	for _, point := range keeperDeletePoints {
		n := name("keeper")
		s.put(n, s.body(n, sleeper))
		s.once(point, n)
		s.strike(point, func(ctx context.Context) error { return s.client.DeleteGroup(ctx, "", n, false) })
		waitFor(t, "the deletion after a kill at "+point, func() bool {
			_, err := s.client.GetGroup(t.Context(), "", n)
			return fault.KindOf(err) == fault.NotFound
		})
		s.once0(point, n)
		s.drop(point, n)
	}
}

// TestKeeperDiesTwice kills the keeper that has just replaced one, while the agent waits to look the machine over.
func TestKeeperDiesTwice(t *testing.T) {
	t.Parallel()
	s := newSweep(t)
	n, point := name("twice"), "startBeforeKeeper" // whoever looks the machine over waits for starts
	s.armFor(point, 3*time.Second)
	s.put(n, s.body(n, sleeper))
	if !s.reached(point) {
		t.Fatalf("nobody came to %s", point)
	}
	for range 2 {
		old := s.keeperPid()
		if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the next keeper", func() bool { now := s.keeperPid(); return now != 0 && now != old })
	}
	s.armFor(point, 0)
	s.once("both kills", n)
	s.drop("both kills", n)
}

func TestKillsWhenContainersEnd(t *testing.T) {
	t.Parallel()
	s := newSweep(t)
	for _, point := range []string{"keeperExitSeen", "keeperExitSaved", "saveBefore", "cleanBefore", "cleanAfter", "releaseAfter"} {
		n := name("exit")
		s.strike(point, func(ctx context.Context) error {
			_, err := s.client.PutGroup(ctx, "", n, s.body(n, "sleep 0.2; exit 4"))
			return err
		})
		g := s.await(n, "the end", func(g *client.Group) bool { return g.State() == "Failed" || g.State() == "Succeeded" })
		if g.State() != "Failed" {
			t.Errorf("after a kill at %s the group is %s, want Failed: an exit code was invented", point, g.State())
		}
		s.once0(point, n)
		s.drop(point, n)
	}
}
