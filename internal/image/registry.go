package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

// dockerHub is what Docker's registry is called by people; by machines it is hubServer.
const (
	dockerHub = "docker.io"
	hubServer = "registry-1.docker.io"
)

// hosts says where a registry's images are: its mirrors first, then itself. used is set when credentials were given out.
func (s *Store) hosts(creds []group.RegistryCredential, used *atomic.Bool) docker.RegistryHosts {
	return func(registry string) ([]docker.RegistryHost, error) {
		var out []docker.RegistryHost
		for _, mirror := range s.cfg.Mirrors[registry] {
			u, err := url.Parse(mirror)
			if err != nil || u.Host == "" {
				return nil, fault.New(fault.Invalid, "", "mirror %q of registry %s is not a URL: write https://HOST", mirror, registry)
			}
			h := s.endpoint(u.Host, u.Scheme, creds, used)
			h.Path = strings.TrimSuffix(u.Path, "/") + "/v2"
			out = append(out, h)
		}
		server := registry
		if registry == dockerHub {
			server = hubServer
		}
		return append(out, s.endpoint(server, "", creds, used)), nil
	}
}

// endpoint is one server. Loopback registries may have TLS with any certificate or none; others need good TLS unless
// they are listed as plain.
func (s *Store) endpoint(server, scheme string, creds []group.RegistryCredential, used *atomic.Bool) docker.RegistryHost {
	transport := newTransport()
	var trip http.RoundTripper = transport
	switch {
	case scheme == "" && slices.Contains(s.cfg.PlainHTTP, server):
		scheme = "http"
	case scheme == "" && isLoopback(server):
		scheme = "https"
		transport.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} // loopback only: no wire to listen on
		trip = docker.NewHTTPFallback(transport)
	case scheme == "":
		scheme = "https"
	}
	client := &http.Client{Transport: trip}
	auth := docker.NewDockerAuthorizer(docker.WithAuthClient(client), docker.WithAuthCreds(func(asked string) (string, string, error) {
		for _, c := range creds {
			if serverName(c.Server) == serverName(asked) {
				used.Store(true)
				return c.Username, c.Password, nil
			}
		}
		return "", "", nil
	}))
	return docker.RegistryHost{Client: client, Authorizer: auth, Host: server, Scheme: scheme, Path: "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve}
}

// newTransport refuses link-local addresses: an image reference or a redirect must not reach a cloud's metadata
// service with the host's identity.
func newTransport() *http.Transport {
	dialer := &net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
		if a, err := netip.ParseAddrPort(address); err == nil && a.Addr().Unmap().IsLinkLocalUnicast() {
			return fmt.Errorf("address %s is link-local: registries there are not allowed", a.Addr())
		}
		return nil
	}}
	return &http.Transport{Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, MaxIdleConnsPerHost: fetchesAtOnce,
		IdleConnTimeout: 30 * time.Second, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: 60 * time.Second, ForceAttemptHTTP2: true}
}

// serverName brings the many spellings of a registry into one.
func serverName(s string) string {
	s = strings.ToLower(strings.TrimPrefix(strings.TrimPrefix(s, "https://"), "http://"))
	s, _, _ = strings.Cut(s, "/")
	switch s {
	case "index.docker.io", hubServer, "registry.hub.docker.com":
		return dockerHub
	}
	return s
}

func isLoopback(server string) bool {
	name := server
	if h, _, err := net.SplitHostPort(server); err == nil {
		name = h
	}
	a, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return name == "localhost" || err == nil && a.IsLoopback()
}

// classify turns what went wrong in a pull into what a user can act on.
func classify(ref string, err error) error {
	if known, ok := errors.AsType[*fault.Error](err); ok {
		return known
	}
	if errors.Is(err, context.Canceled) {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) {
		return fault.New(fault.Exhausted, "", "image %s: the host's disk is full; free space or remove images with `spillway image rm`", ref)
	}
	status, answered := errors.AsType[remoteerrors.ErrUnexpectedStatus](err)
	denied := answered && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden || status.StatusCode == http.StatusNotFound)
	if denied || errdefs.IsNotFound(err) || errors.Is(err, docker.ErrInvalidAuthorization) {
		return fault.New(fault.Invalid, "InaccessibleImage", "The image '%s' is not accessible. Please check the image and registry credential. (%v)", ref, short(err))
	}
	name, parseErr := canonical(ref)
	if parseErr != nil {
		return parseErr
	}
	server := registryOf(name)
	if server == dockerHub {
		server = "index.docker.io"
	}
	return fault.New(fault.Unavailable, "RegistryErrorResponse", "An error response is received from the docker registry '%s'. Please retry later. (%v)", server, short(err))
}

// short keeps messages readable: registries answer whole pages.
func short(err error) string {
	const limit = 300
	msg := err.Error()
	if len(msg) > limit {
		msg = msg[:limit] + "…"
	}
	return msg
}
