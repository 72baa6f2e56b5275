package platform

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/keeper"
)

// State is what can be seen of the platform of a data directory from outside.
type State struct {
	Exists     bool // a platform was started here once
	PID        int  // of the one that runs; 0: none
	Keeper     bool // a keeper answers
	Containers int  // that the keeper holds
	Parked     int  // slots whose init waits
}

// Inspect looks at the platform of a data directory and changes nothing. Errors: fs.ErrPermission.
func Inspect(ctx context.Context, dir string) (State, error) {
	inst, err := readInstance(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err != nil {
		return State{}, err
	}
	s := State{Exists: true, PID: runningPID(dir)}
	k, err := keeper.Dial(inst.runDir(), func(keeper.Container) {})
	if err != nil {
		return s, nil // nobody answers: that is the answer
	}
	defer k.Close()
	slots, containers, err := k.List(ctx)
	if err != nil {
		return s, nil
	}
	s.Keeper = true
	for _, sl := range slots {
		if sl.Parked {
			s.Parked++
		}
	}
	for _, c := range containers {
		if !c.Exited {
			s.Containers++
		}
	}
	return s, nil
}

// runningPID is the process that holds the lock of a data directory, 0 when none does.
func runningPID(dir string) int {
	f, err := os.Open(filepath.Join(dir, "up.lock"))
	if err != nil {
		return 0
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return 0
	}
	return pidOf(dir)
}
