package runtime_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/runtime"
	"spillway.dev/spillway/internal/sandbox"
)

// dying is a keeper that dies of each start, before anything runs.
type dying struct{}

func (dying) Park(context.Context, keeper.Park) (int, error) { return 0, keeper.ErrGone }
func (dying) Forget(context.Context, string) error           { return keeper.ErrGone }
func (dying) Start(context.Context, keeper.Start) (keeper.Container, error) {
	return keeper.Container{}, keeper.ErrGone
}
func (dying) Exec(context.Context, keeper.ExecRequest, host.Streams) (int, error) {
	return 0, keeper.ErrGone
}
func (dying) List(context.Context) ([]keeper.Slot, []keeper.Container, error) {
	return []keeper.Slot{{ID: "s1"}}, nil, nil
}

// TestStartIsTakenUpAgain begins the same run again after its keeper has died: the root of the first attempt is still
// mounted, as nobody knows at first whether the run has begun.
func TestStartIsTakenUpAgain(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("root is missing")
	}
	dir, image := t.TempDir(), t.TempDir()
	tree, err := cgroup.Open("spillway-" + filepath.Base(dir) + "-again")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := tree.Remove(""); err != nil {
			t.Error(err)
		}
	}()
	rt := runtime.NewOCI(runtime.OCIConfig{Path: "/none"}, func() runtime.Keeper { return dying{} }, tree)
	r := &runtime.Run{ID: "a", Slot: "s1", Layers: []string{image}, Dir: filepath.Join(dir, "a"), Process: sandbox.Process{Args: []string{"/bin/sh"}, Dir: "/"}}
	defer func() { _ = unix.Unmount(filepath.Join(r.Dir, "rootfs"), unix.MNT_DETACH) }()
	for attempt := range 3 {
		if _, err := rt.Start(t.Context(), r); !errors.Is(err, keeper.ErrGone) {
			t.Fatalf("attempt %d: Start = %v, want only that the keeper is gone", attempt+1, err)
		}
	}
}
