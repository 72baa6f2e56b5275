package platform

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/hostlink"
	"spillway.dev/spillway/internal/httpapi"
	"spillway.dev/spillway/internal/identity"
	"spillway.dev/spillway/internal/port"
)

// leadership is what a server has while it leads.
type leadership struct {
	term  int64
	ctrl  *controller.Controller
	holds func() bool // nobody else can lead now
	ctx   context.Context
}

// fleet is the server's side of its hosts.
type fleet struct {
	authority *identity.Authority
	beat      time.Duration
	// lead is this server's leadership, nil when it has none; leader is where hosts find the one who has.
	lead   func() *leadership
	leader func() string
	// servers are where all servers listen for hosts.
	servers func() []string
	now     func() time.Time // the clock that people set
	log     *slog.Logger
	link    *hostlink.Server
}

var _ hostlink.Control = (*fleet)(nil)

// open makes the server that hosts connect to.
func (f *fleet) open() {
	f.link = hostlink.NewServer(hostlink.ServerConfig{Control: f, TLS: f.authority.HostTLS(), Log: f.log, Every: f.beat, Now: f.now, Servers: f.servers,
		Leads: func() (int64, string, bool) {
			if l := f.lead(); l != nil {
				return l.term, "", true
			}
			return 0, f.leader(), false
		},
		Admit: func(id hostlink.Identity) error {
			if l := f.lead(); l != nil {
				return l.ctrl.Admit(id.Name, id.UID)
			}
			return nil // it is told who leads, and nothing else
		},
		Sign: func(_ context.Context, id hostlink.Identity, csr []byte) ([]byte, error) {
			cert, serial, err := f.sign(id.Name, id.UID, string(csr))
			if err == nil {
				f.log.Info("host certificate renewed", "host", id.Name, "serial", serial)
			}
			return cert, err
		}})
}

// sign makes a host's certificate.
func (f *fleet) sign(name, uid, csr string) (certPEM []byte, serial string, err error) {
	certPEM, err = f.authority.SignHost([]byte(csr), name, hostlink.Identity{Name: name, UID: uid}.URI())
	if err != nil {
		return nil, "", err
	}
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, "", fmt.Errorf("read the certificate: %w", err)
	}
	return certPEM, cert.SerialNumber.Text(16), nil
}

// api is what the API needs so that hosts can join.
func (f *fleet) api(network string) *httpapi.Fleet {
	block, _ := pem.Decode(f.authority.Certificate())
	fingerprint := hostlink.Fingerprint(block.Bytes)
	return &httpapi.Fleet{Token: func(secret string) string { return hostlink.Token{Secret: secret, Fingerprint: fingerprint}.String() },
		Sign: f.sign, CheckName: hostlink.CheckName, Authority: string(f.authority.Certificate()), Servers: f.servers, Network: network, Forget: f.link.Forget}
}

// Connect implements hostlink.Control.
func (f *fleet) Connect(link host.Link, uid string) error {
	l := f.lead()
	if l == nil {
		return nil // its connection ends when this server knows that it does not lead
	}
	if err := l.ctrl.ConnectJoined(link, uid); err != nil {
		return err
	}
	if err := l.ctrl.Remember(l.ctx, link.Describe()); err != nil && fault.KindOf(err) != fault.NotFound && l.ctx.Err() == nil {
		f.log.Error("remember a host", "host", link.Describe().Name, "error", err)
	}
	return nil
}

// Disconnect implements hostlink.Control.
func (f *fleet) Disconnect(link host.Link, heard time.Time, why error) {
	if l := f.lead(); l != nil {
		l.ctrl.Disconnect(link, heard, why)
	}
}

// Report implements hostlink.Control.
func (f *fleet) Report(name string, s group.Status) {
	if l := f.lead(); l != nil {
		l.ctrl.Report(name, s)
	}
}

// Beat implements hostlink.Control.
func (f *fleet) Beat(name string) time.Duration {
	l := f.lead()
	if l == nil || !l.holds() {
		return 0
	}
	l.ctrl.Heard(name)
	return hostlink.Missed * f.beat
}

// joinOwn makes the machine that runs the servers a host like the others.
func (s *site) joinOwn(ctrl *controller.Controller) {
	name := s.name()
	s.underlay = reachedAt(s.HostsListen)
	s.changed = func() { ctrl.Heard(name) }
	s.hold = func(ctx context.Context, used []netip.Addr) ([]netip.Prefix, error) {
		err := ctrl.HoldBlocks(ctx, name, used)
		return ctrl.Blocks(name), err
	}
}

// reachedAt is the address by which other machines reach this one: that of the listener, or of the way to the world when it
// is any.
func reachedAt(listener string) netip.Addr {
	host, _, _ := net.SplitHostPort(listener)
	if ip, err := netip.ParseAddr(host); err == nil && !ip.IsUnspecified() {
		return ip.Unmap()
	}
	conn, err := net.Dial("udp4", "192.0.2.1:9") // for documentation: nothing is sent
	if err != nil {
		return netip.Addr{}
	}
	defer conn.Close()
	at, _ := netip.ParseAddrPort(conn.LocalAddr().String())
	return at.Addr()
}

// serve accepts hosts until ctx ends.
func (f *fleet) serve(ctx context.Context, listener net.Listener) error {
	stop := context.AfterFunc(ctx, f.link.GRPC().Stop)
	defer stop()
	if err := f.link.GRPC().Serve(listener); err != nil && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("listen for hosts: %w", err)
	}
	return nil
}

// take listens on an address of a flag.
func take(ctx context.Context, flag, addr string) (net.Listener, error) {
	l, err := port.Take(ctx, port.Patience, func() (net.Listener, error) { return net.Listen("tcp", addr) })
	if err != nil {
		return nil, fault.New(fault.Unavailable, "", "%s %s: %v. Choose another address.", flag, addr, err)
	}
	return l, nil
}
