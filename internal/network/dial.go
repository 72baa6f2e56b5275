package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// DialInside connects to an address as seen from inside a network namespace.
func DialInside(ctx context.Context, ns *os.File, to netip.AddrPort) (*net.TCPConn, error) {
	type result struct {
		conn *net.TCPConn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			done <- result{nil, fmt.Errorf("open own namespace: %w", err)}
			return
		}
		defer unix.Close(home)
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			runtime.UnlockOSThread()
			done <- result{nil, fmt.Errorf("enter namespace: %w", err)}
			return
		}
		// The socket belongs to the namespace of the thread that makes it; an address needs no resolver.
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp4", to.String())
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread() // else the goroutine ends locked, and its thread with it
		}
		tcp, _ := conn.(*net.TCPConn)
		done <- result{tcp, err}
	}()
	r := <-done
	return r.conn, r.err
}
