package hostlink

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net/url"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"spillway.dev/spillway/internal/host"
)

func TestWhoIsListenedTo(t *testing.T) {
	id := Identity{Name: "h1", UID: "u"}
	for what, c := range map[string]struct {
		hello *hello
		ok    bool
	}{
		"the host itself":           {&hello{Version: Version, Host: host.Host{Name: "h1"}, Term: 4}, true},
		"no hello":                  {nil, false},
		"an unknown version":        {&hello{Version: Version + 1, Host: host.Host{Name: "h1"}}, false},
		"another's name":            {&hello{Version: Version, Host: host.Host{Name: "h2"}}, false},
		"one that has seen a later": {&hello{Version: Version, Host: host.Host{Name: "h1"}, Term: 6}, false},
	} {
		if err := checkHello(id, c.hello, 5); (err == nil) != c.ok {
			t.Errorf("server in term 5, %s: %v", what, err)
		}
	}
	for what, c := range map[string]struct {
		welcome *welcome
		ok      bool
	}{
		"the same term":  {&welcome{Term: 5, Every: time.Second}, true},
		"a later term":   {&welcome{Term: 6, Every: time.Second}, true},
		"an older term":  {&welcome{Term: 4, Every: time.Second}, false},
		"no beat":        {&welcome{Term: 5}, false},
		"no welcome yet": {nil, false},
	} {
		if err := checkWelcome(c.welcome, 5); (err == nil) != c.ok {
			t.Errorf("host that has seen term 5, %s: %v", what, err)
		}
	}
}

// callFrom is a stream that a host opens with a ticket.
type callFrom struct {
	grpc.ServerStream
	ctx context.Context
}

func (c callFrom) Context() context.Context { return c.ctx }

func openedBy(t *testing.T, name, ticket string) callFrom {
	t.Helper()
	cert := &x509.Certificate{URIs: []*url.URL{Identity{Name: name, UID: "u"}.URI()}, SerialNumber: big.NewInt(1)}
	ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{cert}}}}})
	return callFrom{ctx: metadata.NewIncomingContext(ctx, metadata.Pairs(ticketKey, ticket))}
}

func TestTicketsAreForOneHostOnce(t *testing.T) {
	s := &Server{cfg: ServerConfig{Admit: func(Identity) error { return nil }}, tickets: map[string]*pendingStream{}}
	p := &pendingStream{host: "h1", arrived: make(chan grpc.ServerStream, 1), done: make(chan struct{})}
	close(p.done)
	s.tickets["secret"] = p
	if err := s.carry(openedBy(t, "h2", "secret")); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("another host's ticket: %v, want a refusal", err) // it took the only place, and the next would wait for ever
	}
	if err := s.carry(openedBy(t, "h1", "secret")); err != nil || len(p.arrived) != 1 {
		t.Errorf("the host's own ticket: %v, %d streams", err, len(p.arrived))
	}
	if err := s.carry(openedBy(t, "h1", "secret")); status.Code(err) != codes.PermissionDenied {
		t.Errorf("a ticket for the second time: %v, want a refusal", err)
	}
}
