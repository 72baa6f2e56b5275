package platform

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

// TestElectorateAsksWhenItMust: who leads is asked again when another may, and not for each request.
func TestElectorateAsksWhenItMust(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked, leads := 0, "one"
		e := &electorate{fresh: leaderFresh, self: serverPlace{ID: "self"}, log: slog.New(slog.DiscardHandler), ask: func(context.Context) (string, error) {
			asked++
			return `{"id":"` + leads + `"}`, nil
		}}
		is := func(when, want string, asks int) {
			t.Helper()
			before := asked
			place, ok := e.leader(t.Context())
			if place.ID != want || ok != (want != "") || asked-before != asks {
				t.Errorf("%s: %q leads (%v), asked %d times, want %q and %d", when, place.ID, ok, asked-before, want, asks)
			}
		}
		is("at first", "one", 1)
		is("at once", "one", 0)
		time.Sleep(leaderFresh)
		is("later", "one", 1)

		changes, broken := make(chan struct{}), make(chan error)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- e.follow(ctx, func(ctx context.Context, changed func()) error {
				changed()
				for {
					select {
					case <-changes:
						changed()
					case err := <-broken:
						return err
					case <-ctx.Done():
						return ctx.Err()
					}
				}
			})
		}()
		synctest.Wait()
		is("when changes begin to be told", "one", 1)
		time.Sleep(leaderTold / 2)
		is("while nothing is told", "one", 0)
		leads = "two"
		changes <- struct{}{}
		synctest.Wait()
		is("when a change was told", "two", 1)
		time.Sleep(leaderTold)
		is("after a long silence", "two", 1)

		leads = "three"
		broken <- errors.New("the store is gone")
		synctest.Wait()
		is("when nothing will be told", "three", 1)
		time.Sleep(leaderFresh)
		leads = "self"
		is("when it leads itself", "", 1)
		is("when it leads itself, again", "", 1)
		time.Sleep(2 * time.Second)
		leads = "four"
		is("told of again", "four", 1)
		time.Sleep(leaderTold / 2)
		is("told of again, later", "four", 0)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
