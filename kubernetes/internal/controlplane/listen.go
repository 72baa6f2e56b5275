package controlplane

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	apinet "k8s.io/apimachinery/pkg/util/net"
)

// chooseAdvertised picks the address at which pods reach the API, when none is given: the one it listens on, or the
// machine's own when that is loopback, where pods find only themselves.
func chooseAdvertised(cfg *Config) error {
	if cfg.Advertise.IsValid() {
		return nil
	}
	host, _, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return fmt.Errorf("--listen %q: %w", cfg.Listen, err)
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return fmt.Errorf("--listen %q: the host must be an address", cfg.Listen)
	}
	if !addr.IsLoopback() && !addr.IsUnspecified() {
		cfg.Advertise = addr
		return nil
	}
	own, err := apinet.ChooseHostInterface()
	if err != nil {
		return fmt.Errorf("this machine has no address at which pods reach the API: give one with --advertise-address (%w)", err)
	}
	cfg.Advertise, _ = netip.AddrFromSlice(own)
	cfg.Advertise = cfg.Advertise.Unmap()
	return nil
}

// listen opens the API's listener, and says where it listens of the addresses that were asked for. When pods are to
// reach it at another address or port than Listen's, it listens at both, and the API server counts the latter as its
// own: what it once told pods of itself must stay true over a kill, after which it does not look at its port again.
func listen(cfg *Config) (all net.Listener, asked string, err error) {
	first, err := net.Listen("tcp", cfg.Listen)
	if err != nil {
		return nil, "", fmt.Errorf("the API cannot listen on %s: %w", cfg.Listen, err)
	}
	addr := first.Addr().(*net.TCPAddr)
	port := cfg.AdvertisePort
	if port == 0 {
		port = addr.Port
	}
	if !cfg.Advertise.IsValid() || port == addr.Port && (addr.IP.IsUnspecified() || addr.IP.Equal(cfg.Advertise.AsSlice())) {
		return first, addr.String(), nil
	}
	second, err := net.ListenTCP("tcp", &net.TCPAddr{IP: cfg.Advertise.AsSlice(), Port: port})
	if err != nil {
		return nil, "", errors.Join(fmt.Errorf("the API cannot listen on %s port %d: %w", cfg.Advertise, port, err), first.Close())
	}
	return join(second, first), addr.String(), nil
}

// joined accepts from several listeners; its address is the first one's.
type joined struct {
	net.Listener
	all    []net.Listener
	conns  chan net.Conn
	failed chan error
	closed chan struct{}
	once   sync.Once
}

func join(all ...net.Listener) net.Listener {
	j := &joined{Listener: all[0], all: all, conns: make(chan net.Conn), failed: make(chan error, len(all)), closed: make(chan struct{})}
	for _, l := range all {
		go j.accept(l)
	}
	return j
}

func (j *joined) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			j.failed <- err
			return
		}
		select {
		case j.conns <- c:
		case <-j.closed:
			c.Close()
			return
		}
	}
}

// Accept gives the next connection of any of the listeners.
func (j *joined) Accept() (net.Conn, error) {
	select {
	case c := <-j.conns:
		return c, nil
	case err := <-j.failed:
		return nil, err
	case <-j.closed:
		return nil, net.ErrClosed
	}
}

// Close closes all of them.
func (j *joined) Close() error {
	var errs []error
	j.once.Do(func() {
		close(j.closed)
		for _, l := range j.all {
			errs = append(errs, l.Close())
		}
	})
	return errors.Join(errs...)
}
