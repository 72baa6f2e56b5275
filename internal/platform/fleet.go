package platform

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"time"

	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/hostlink"
	"spillway.dev/spillway/internal/httpapi"
	"spillway.dev/spillway/internal/identity"
	"spillway.dev/spillway/internal/port"
)

// control is the control plane as package hostlink sees it.
type control struct {
	*controller.Controller
	ctx   context.Context
	lease func() time.Duration // for how long a host may count on its groups; 0: this server does not lead
	log   *slog.Logger
}

var _ hostlink.Control = control{}

// Connect implements hostlink.Control.
func (c control) Connect(link host.Link) {
	c.Controller.Connect(link)
	if err := c.Remember(c.ctx, link.Describe()); err != nil && c.ctx.Err() == nil {
		c.log.Error("remember a host", "host", link.Describe().Name, "error", err)
	}
}

// Beat implements hostlink.Control.
func (c control) Beat(name string) time.Duration {
	c.Heard(name)
	return c.lease()
}

// fleetServer is where hosts connect.
type fleetServer struct {
	link     *hostlink.Server
	listener net.Listener
	api      *httpapi.Fleet
}

// openFleet listens for hosts. term is that of this server's leadership.
func openFleet(ctx context.Context, s *site, ctrl *controller.Controller, authority *identity.Authority, term int64) (*fleetServer, error) {
	listener, err := port.Take(ctx, port.Patience, func() (net.Listener, error) { return net.Listen("tcp", s.HostsListen) })
	if err != nil {
		return nil, fault.New(fault.Unavailable, "", "Hosts cannot be listened for on %s: %v. Choose another address with --hosts-listen.", s.HostsListen, err)
	}
	sign := func(name, uid, csr string) ([]byte, string, error) {
		cert, err := authority.SignHost([]byte(csr), name, hostlink.Identity{Name: name, UID: uid}.URI())
		if err != nil {
			return nil, "", err
		}
		serial, err := serialOf(cert)
		return cert, serial, err
	}
	f := &fleetServer{listener: listener}
	f.link = hostlink.NewServer(hostlink.ServerConfig{TLS: authority.HostTLS(), Log: s.Log, Every: s.Beat,
		Control: control{ctrl, ctx, func() time.Duration { return hostlink.Missed * s.Beat }, s.Log},
		Leads:   func() (int64, string, bool) { return term, "", true },
		Admit:   func(id hostlink.Identity) error { return ctrl.Admit(id.Name, id.UID) },
		Sign: func(ctx context.Context, id hostlink.Identity, csr []byte) ([]byte, error) {
			cert, serial, err := sign(id.Name, id.UID, string(csr))
			if err == nil {
				s.Log.Info("host certificate renewed", "host", id.Name, "serial", serial)
			}
			return cert, err
		}})
	block, _ := pem.Decode(authority.Certificate())
	fingerprint := hostlink.Fingerprint(block.Bytes)
	f.api = &httpapi.Fleet{Token: func(secret string) string { return hostlink.Token{Secret: secret, Fingerprint: fingerprint}.String() },
		Sign: sign, CheckName: hostlink.CheckName, Authority: string(authority.Certificate()), Servers: []string{endpointHost(listener.Addr().String())},
		Network: s.instance.CIDR.String(), Forget: f.link.Forget}
	return f, nil
}

func serialOf(certPEM []byte) (string, error) {
	block, _ := pem.Decode(certPEM)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("read the certificate: %w", err)
	}
	return cert.SerialNumber.Text(16), nil
}

// serve accepts hosts until ctx ends.
func (f *fleetServer) serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, f.link.GRPC().Stop)
	defer stop()
	if err := f.link.GRPC().Serve(f.listener); err != nil && ctx.Err() == nil {
		return fmt.Errorf("listen for hosts: %w", err)
	}
	return nil
}
