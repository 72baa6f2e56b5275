package keeper

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// watched is a fence with a clock of the test's, and no alarm: watch's part is played by check.
func watched(t *testing.T, dir string, now *time.Duration, kills *int) *fence {
	t.Helper()
	f, err := openFence(dir, func() { *kills++ })
	if err != nil {
		t.Fatal(err)
	}
	if err := f.alarm.Close(); err != nil {
		t.Fatal(err)
	}
	f.alarm, f.now = nil, func() time.Duration { return *now }
	return f
}

func TestFence(t *testing.T) {
	dir, now, kills := t.TempDir(), 100*time.Second, 0
	f := watched(t, dir, &now, &kills)
	renew := func(f *fence, until time.Duration, want int) {
		t.Helper()
		if err := f.renew(until); err != nil || kills != want {
			t.Errorf("renew(%s) at %s = %v after %d kills, want %d", until, now, err, kills, want)
		}
	}
	enter := func(f *fence, until time.Duration, want bool) int {
		t.Helper()
		gap, ok, err := f.enter(until)
		if err != nil || ok != want {
			t.Errorf("enter(%s) at %s = %t, %v, want %t", until, now, ok, err, want)
		}
		return gap
	}
	if !f.ended() {
		t.Error("there is a lease before the first")
	}
	enter(f, 99*time.Second, false)
	renew(f, 106*time.Second, 1)
	gap := enter(f, 106*time.Second, true)
	now += 5 * time.Second
	renew(f, 111*time.Second, 1)
	renew(f, 108*time.Second, 1)
	if !f.holds(gap) {
		t.Error("a start under a lease that was renewed in time is refused")
	}
	now += 6 * time.Second
	if f.holds(gap) || !f.ended() {
		t.Error("the lease has not ended at its end")
	}
	// The next one comes late: what has run so far is killed, what was begun before does not count.
	renew(f, 117*time.Second, 2)
	if f.holds(gap) {
		t.Error("a start from before a gap is let through")
	}
	gap = enter(f, 117*time.Second, true)
	if !f.holds(gap) {
		t.Error("a start under the new lease is refused")
	}
	now += time.Second
	enter(f, 111*time.Second, false) // decided under the old one
}

func TestFenceOfADeadKeeper(t *testing.T) {
	dir, now, kills := t.TempDir(), 100*time.Second, 0
	if err := watched(t, dir, &now, &kills).renew(106 * time.Second); err != nil {
		t.Fatal(err)
	}
	if next := watched(t, dir, &now, &kills); next.ended() {
		t.Error("the next keeper does not know the lease")
	}
	now += 6 * time.Second
	if next := watched(t, dir, &now, &kills); !next.ended() {
		t.Error("the next keeper has extended the lease")
	}
	now -= 6 * time.Second
	if err := os.WriteFile(filepath.Join(dir, "lease.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if next := watched(t, dir, &now, &kills); !next.ended() {
		t.Error("a lease that cannot be read counts")
	}
}
