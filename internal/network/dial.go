package network

import (
	"context"
	"net"
	"net/netip"
	"os"
)

// DialInside connects to an address as seen from inside a network namespace.
func DialInside(ctx context.Context, ns *os.File, to netip.AddrPort) (*net.TCPConn, error) {
	return inside(ns, func() (*net.TCPConn, error) {
		// The socket belongs to the namespace of the thread that makes it; an address needs no resolver.
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp4", to.String())
		tcp, _ := conn.(*net.TCPConn)
		return tcp, err
	})
}
