package agent

import (
	"context"
	"io"
	"net"
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
	var failed error
	if shared := nested(&w.g.Spec) || guested(&w.g.Spec); shared && groupLimits(&old.Spec) != groupLimits(&w.g.Spec) {
		failed = w.a.tree.Limit(w.m.Slot.ID, w.groupLimits())
	}
	for _, list := range [][]group.Container{w.g.Spec.InitContainers, w.g.Spec.Containers} {
		for i := range list {
			c := w.m.Container(list[i].Name)
			was := containerIn(&old.Spec, list[i].Name)
			if c == nil || was == nil || c.Phase != converge.Running || limits(was) == limits(&list[i]) {
				continue
			}
			err := failed // of all that share a guest
			if !guested(&w.g.Spec) {
				err = w.a.tree.Limit(cgroupOf(w.m.Slot.ID, w.position(c.Name), &w.g.Spec), w.limits(&list[i]))
			}
			if err != nil {
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
	d, err := inWorker(ctx, a, uid, func(w *worker) (door, error) {
		if w.m.Slot == nil {
			return door{}, fault.New(fault.Conflict, "ContainerGroupTransitioning", "The container group '%s' is not running.", w.g.Ref.Name)
		}
		return door{*w.m.Slot, w.g.Spec.Isolation == group.IsolationGVisor}, nil
	})
	if err != nil {
		return err
	}
	conn, err := a.dial(ctx, d, uint16(port))
	if fault.KindOf(err) == fault.Conflict {
		return err
	}
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

// door is where a group is reached.
type door struct {
	slot  converge.Slot
	guest bool // it has a kernel of its own
}

// dial connects to a port of a group as its programs see themselves: what listens on its loopback only is reached, too.
// A guest kernel has a loopback that the host cannot enter; there it is what listens on the group's address.
func (a *Agent) dial(ctx context.Context, d door, port uint16) (*net.TCPConn, error) {
	if d.guest {
		addr, err := netip.ParseAddr(d.slot.IP)
		if err != nil {
			return nil, err
		}
		from := &net.TCPAddr{IP: a.cfg.Network.Gateway().AsSlice()} // which finds groups of virtual networks, too
		conn, err := (&net.Dialer{LocalAddr: from}).DialContext(ctx, "tcp4", netip.AddrPortFrom(addr, port).String())
		tcp, _ := conn.(*net.TCPConn)
		return tcp, err
	}
	netns, err := a.netns(ctx, d.slot.ID)
	if err != nil {
		return nil, err
	}
	defer netns.Close()
	return network.DialInside(ctx, netns, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port))
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
