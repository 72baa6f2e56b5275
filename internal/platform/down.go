package platform

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/network"
	"spillway.dev/spillway/internal/nodeless"
	"spillway.dev/spillway/internal/volume"
)

// stopPatience is how long a platform gets to stop.
const stopPatience = 10 * time.Second

// Down stops the platform of a data directory; groups go on. It says whether one was running.
func Down(ctx context.Context, dir string) (bool, error) {
	f, err := os.OpenFile(filepath.Join(dir, "up.lock"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		return false, nil
	}
	pid := pidOf(dir)
	if pid <= 0 {
		return false, fmt.Errorf("the platform of %s left no process id", dir)
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil && err != unix.ESRCH {
		return false, fmt.Errorf("stop process %d: %w", pid, err)
	}
	for deadline := time.Now().Add(stopPatience); time.Now().Before(deadline) && ctx.Err() == nil; {
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return true, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return true, fault.New(fault.Unavailable, "", "The platform (process %d) did not stop within %s.", pid, stopPatience)
}

// made is what a platform puts into its data directory.
var made = []string{"agent", "etcd", "images", "store.key", "client.json", "ca.crt", "ca.key", "keeper.log", "instance.json", "up.lock", "up.log", "kubernetes", hostFile, pairFile}

// Purge removes everything that the stopped platform of a data directory has made on this machine, groups and data
// included. It is idempotent.
func Purge(ctx context.Context, dir string, log *slog.Logger) error {
	inst, err := readInstance(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	tree, err := cgroup.Open("spillway-" + inst.ID)
	if err != nil {
		return err
	}
	if err := endKeeper(ctx, inst.runDir(), tree); err != nil {
		return fmt.Errorf("end containers: %w", err)
	}
	all := []error{tree.Remove(""), network.Purge(ctx, network.Config{Instance: inst.ID, CIDR: inst.CIDR, Log: log}),
		nodeless.Purge(inst.ID), purgeMounts(ctx, dir, log), removeRunDir(inst.runDir())}
	if err := errors.Join(all...); err != nil {
		return err
	}
	_ = os.Remove("/run/spillway") // when this was the last platform
	for _, name := range made {
		all = append(all, os.RemoveAll(filepath.Join(dir, name)))
	}
	return errors.Join(all...)
}

// removeRunDir lets go of the run directory's own file system, however often it is mounted, and removes it.
func removeRunDir(dir string) error {
	return errors.Join(unmountAll(dir), os.RemoveAll(dir))
}

// unmountAll lets go of whatever is mounted on a path, however often.
func unmountAll(path string) error {
	for {
		switch err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
		case nil:
		case unix.EINVAL, unix.ENOENT:
			return nil
		default:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

func purgeMounts(ctx context.Context, dir string, log *slog.Logger) error {
	volumes := filepath.Join(dir, "agent", "volumes")
	err := volume.New(volume.Config{Log: log}).Sync(ctx, volumes, nil)
	runs, _ := filepath.Glob(filepath.Join(dir, "agent", "runs", "*", "rootfs"))
	for _, path := range append(runs, volumes) {
		if u := unmountAll(path); u != nil {
			err = errors.Join(err, u)
		}
	}
	return err
}

// endKeeper kills every container, and then the keeper.
func endKeeper(ctx context.Context, runDir string, tree *cgroup.Tree) error {
	k, err := keeper.Dial(runDir, func(keeper.Container) {})
	if err != nil {
		// No keeper: what may be left is in the cgroups.
		return tree.Kill("")
	}
	defer k.Close()
	for deadline := time.Now().Add(stopPatience); ; {
		slots, containers, err := k.List(ctx)
		if err != nil {
			return err
		}
		for _, c := range containers {
			if !c.Exited {
				_ = k.Signal(ctx, c.ID, int(unix.SIGKILL))
				continue
			}
			if err := k.Forget(ctx, c.ID); err != nil {
				return err
			}
		}
		if len(containers) == 0 {
			for _, s := range slots {
				if err := k.Unpark(ctx, s.ID); err != nil {
					return err
				}
			}
			return k.Quit(ctx)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d containers did not end", len(containers))
		}
		time.Sleep(5 * time.Millisecond)
	}
}
