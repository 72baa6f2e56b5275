package agent

import (
	"context"
	"io"
	"net/netip"
	"os"
	"time"

	"spillway.dev/spillway/internal/converge"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/network"
)

// follow brings what has changed of a running group to its containers: nothing of it is restarted but a container
// whose image is another.
func (w *worker) follow(old *group.Group) {
	w.m.Follow(w.g)
	w.resize(old)
	if w.g.Spec.Grace() < old.Spec.Grace() {
		latest := time.Now().Add(w.g.Spec.Grace())
		for _, c := range w.m.Containers {
			if c.Phase == converge.Stopping && c.KillAt.After(latest) {
				c.KillAt = latest
			}
		}
	}
}

// resize changes the limits of containers that run.
func (w *worker) resize(old *group.Group) {
	if w.m.Slot == nil {
		return
	}
	before, now := groupLimits(&old.Spec), groupLimits(&w.g.Spec)
	var failed error
	if nested(&w.g.Spec) && before != now {
		failed = w.a.tree.Limit(w.m.Slot.ID, now)
	}
	for _, list := range [][]group.Container{w.g.Spec.InitContainers, w.g.Spec.Containers} {
		for i := range list {
			c := w.m.Container(list[i].Name)
			was := containerIn(&old.Spec, list[i].Name)
			if c == nil || was == nil || c.Phase != converge.Running || limits(was) == limits(&list[i]) {
				continue
			}
			if err := w.a.tree.Limit(cgroupOf(w.m.Slot.ID, w.position(c.Name), &w.g.Spec), limits(&list[i])); err != nil {
				failed = err
				w.m.Event(time.Now(), c.Name, group.Warning, "FailedResize", err.Error())
				continue
			}
			w.m.Event(time.Now(), c.Name, group.Normal, "ResizeCompleted", "Container resized in place")
		}
	}
	if failed != nil {
		w.log.Error("resize", "error", failed)
	}
}

func containerIn(s *group.Spec, name string) *group.Container {
	for _, list := range [][]group.Container{s.InitContainers, s.Containers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}

// Forward implements host.Link.
func (a *Agent) Forward(ctx context.Context, uid string, port int, s host.Streams) error {
	slot, err := inWorker(ctx, a, uid, func(w *worker) (converge.Slot, error) {
		if w.m.Slot == nil {
			return converge.Slot{}, fault.New(fault.Conflict, "ContainerGroupTransitioning", "The container group '%s' is not running.", w.g.Ref.Name)
		}
		return *w.m.Slot, nil
	})
	if err != nil {
		return err
	}
	netns, err := a.netns(ctx, slot.ID)
	if err != nil {
		return err
	}
	defer netns.Close()
	// As a program of the group sees itself: what listens on its loopback only is reached, too.
	conn, err := network.DialInside(ctx, netns, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(port)))
	if err != nil {
		return fault.New(fault.Unavailable, "", "Nothing answers on port %d of the container group: %v.", port, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	go func() {
		_, _ = io.Copy(conn, s.Stdin) // the caller has said all; the answer may still come
		_ = conn.CloseWrite()
	}()
	if _, err := io.Copy(s.Stdout, conn); err != nil && ctx.Err() == nil {
		return fault.New(fault.Unavailable, "", "The connection to port %d broke: %v.", port, err)
	}
	return nil
}

// netns opens the network namespace of a slot.
func (a *Agent) netns(ctx context.Context, slotID string) (*os.File, error) {
	slots, _, err := a.keeper.Load().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, s := range slots {
		if s.ID == slotID {
			return os.Open(s.Namespaces["net"])
		}
	}
	return nil, fault.New(fault.Conflict, "ContainerGroupTransitioning", "The container group's network is gone.")
}
