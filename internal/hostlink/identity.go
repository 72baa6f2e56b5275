package hostlink

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Identity is who a host's certificate says it is.
type Identity struct {
	Name   string // of the host
	UID    string // one per joining: a host that was removed and joins again is another
	Serial string // of the certificate
}

// scheme of the one URI that a host's certificate carries.
const scheme = "spillway"

// URI is what a certificate says of the host.
func (i Identity) URI() *url.URL {
	return &url.URL{Scheme: scheme, Host: "host", Path: "/" + i.Name + "/" + i.UID}
}

// nameRule is what a host may be called: a DNS label, as it becomes part of names, keys and tables.
var nameRule = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

// CheckName says whether a host may be called so.
func CheckName(name string) error {
	if !nameRule.MatchString(name) {
		return fmt.Errorf("host name %q: must be 1 to 63 lower-case letters, digits, dots and dashes, with a letter or digit at both ends", clean(name, 80))
	}
	return nil
}

// IdentityOf reads a certificate that the platform's authority has signed.
func IdentityOf(cert *x509.Certificate) (Identity, error) {
	if len(cert.URIs) != 1 || cert.URIs[0].Scheme != scheme || cert.URIs[0].Host != "host" {
		return Identity{}, errors.New("the certificate is not a host's")
	}
	name, uid, ok := strings.Cut(strings.TrimPrefix(cert.URIs[0].Path, "/"), "/")
	if !ok || uid == "" || CheckName(name) != nil {
		return Identity{}, errors.New("the certificate names no host")
	}
	return Identity{Name: name, UID: uid, Serial: cert.SerialNumber.Text(16)}, nil
}

// identityOf reads the certificate of a call's peer, which TLS has verified.
func identityOf(ctx context.Context) (Identity, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Identity{}, errors.New("the caller is unknown")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return Identity{}, errors.New("the caller shows no certificate of this platform")
	}
	return IdentityOf(info.State.VerifiedChains[0][0])
}

// callerAddr is the address that a call has come from: nobody completes a handshake from another's.
func callerAddr(ctx context.Context) netip.Addr {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return netip.Addr{}
	}
	at, err := netip.ParseAddrPort(p.Addr.String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap()
}
