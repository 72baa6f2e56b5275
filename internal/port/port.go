// Package port takes ports that a killed process of ours may hold for a moment longer: a child that it was about to
// execute has them until it is executed. Start at Take.
package port

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// Patience is how long a port may be in use before that is an error.
const (
	Patience = 2 * time.Second
	pause    = 10 * time.Millisecond
)

// Take listens by the given function, again and again while the address is in use, until patience or ctx ends.
func Take[T any](ctx context.Context, patience time.Duration, listen func() (T, error)) (T, error) {
	for deadline := time.Now().Add(patience); ; {
		l, err := listen()
		if !errors.Is(err, unix.EADDRINUSE) || ctx.Err() != nil || !time.Now().Before(deadline) {
			return l, err
		}
		time.Sleep(pause)
	}
}
