package hostlink

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// Missed is how many beats a host may miss before it counts as silent.
const Missed = 3

// DefaultBeat is the time between two beats of a host.
const DefaultBeat = 2 * time.Second

// maxSkew is how far a host's clock may be from the server's: certificates, logs and events rest on it. Beyond it the host
// gets no new groups. What runs goes on: it may be the server's clock that is wrong, and a jump of that shall move nobody.
const maxSkew = 30 * time.Second

// Control is the control plane as hosts see it. Methods must not block on a host.
type Control interface {
	// Connect makes a host available that joined as uid. It has told all that it knows of its groups. Errors: denied, when
	// it is not of the fleet any more.
	Connect(link host.Link, uid string) error
	// Disconnect takes it away again; heard is when it said something last, why is for people. The connection's Connect has
	// returned or never comes, and that of the host's next connection comes later.
	Disconnect(link host.Link, heard time.Time, why error)
	// Report takes over what a host says of a group; it checks that the group is the host's.
	Report(name string, s group.Status)
	// Beat hears that a connected host is there, and gives how long from now on nobody else gets its fenced groups; 0 when
	// this server does not lead.
	Beat(name string) time.Duration
}

// ServerConfig is the server's end.
type ServerConfig struct {
	Control Control
	TLS     *tls.Config // with the authority of hosts' certificates as ClientCAs
	// Leads is the term of this server's leadership, or where the leader is; "" when nobody knows.
	Leads func() (term int64, leader string, ok bool)
	// Admit says whether a host may connect: it is known, and its certificate is the one that it was given last.
	Admit func(Identity) error
	// Sign answers a host's request for its next certificate.
	Sign func(ctx context.Context, id Identity, csr []byte) ([]byte, error)
	// Servers are the addresses of all servers, as hosts shall know them.
	Servers func() []string
	Every   time.Duration // between beats; 0: DefaultBeat
	// Now is the clock that people set; nil: this machine's. Durations are never taken from it.
	Now func() time.Time
	Log *slog.Logger
}

// Server accepts hosts.
type Server struct {
	cfg  ServerConfig
	grpc *grpc.Server

	mu      sync.Mutex // guards what follows
	hosts   map[string]*remote
	tickets map[string]*pendingStream
}

// NewServer makes a server; the caller serves a listener with GRPC.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Every == 0 {
		cfg.Every = DefaultBeat
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Server{cfg: cfg, hosts: map[string]*remote{}, tickets: map[string]*pendingStream{}}
	silence := time.Duration(Missed) * cfg.Every
	s.grpc = grpc.NewServer(grpc.Creds(credentials.NewTLS(cfg.TLS)), grpc.ForceServerCodec(codec{}), grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: max(silence, 10*time.Second), Timeout: silence}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}))
	connect, bytes := connectStream, byteStream
	connect.Handler = func(_ any, ss grpc.ServerStream) error { return s.connect(ss) }
	bytes.Handler = func(_ any, ss grpc.ServerStream) error { return s.carry(ss) }
	s.grpc.RegisterService(&grpc.ServiceDesc{ServiceName: serviceName, HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{connect, bytes}}, s)
	return s
}

// GRPC is the server to be served on a listener and stopped by the caller.
func (s *Server) GRPC() *grpc.Server { return s.grpc }

// Drop ends all connections: this server does not lead any more.
func (s *Server) Drop(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.hosts {
		r.end(why)
	}
}

// Forget ends the connection of a host that is not of the fleet any more.
func (s *Server) Forget(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.hosts[name]; r != nil {
		r.end(fault.New(fault.Denied, "HostRemoved", "the host was removed"))
	}
}

// admit finds out who has called.
func (s *Server) admit(ctx context.Context) (Identity, error) {
	id, err := identityOf(ctx)
	if err == nil {
		err = s.cfg.Admit(id)
	}
	if err != nil {
		return id, status.Error(codes.PermissionDenied, err.Error())
	}
	return id, nil
}

// connect is one host's connection.
func (s *Server) connect(ss grpc.ServerStream) error {
	id, err := s.admit(ss.Context())
	if err != nil {
		return err
	}
	term, leader, ok := s.cfg.Leads()
	if !ok {
		return status.Error(codes.Unavailable, notLeading+leader)
	}
	var first up
	if err := ss.RecvMsg(&first); err != nil {
		return err
	}
	if err := checkHello(id, first.Hello, term); err != nil {
		s.cfg.Log.Warn("host refused", "host", id.Name, "error", err)
		return status.Error(codes.FailedPrecondition, err.Error())
	}
	gone, end := context.WithCancelCause(ss.Context())
	defer end(nil)
	first.Hello.Host.Underlay = callerAddr(ss.Context())
	r := &remote{server: s, id: id, out: newOutbox(), gone: gone, end: end, finished: make(chan struct{}), describe: first.Hello.Host, heard: time.Now(),
		statuses: map[string]group.Status{}, asked: map[int64]chan answer{}}
	s.enter(r)
	r.out.put(&down{Welcome: &welcome{Version: Version, Term: term, Every: s.cfg.Every, Time: time.Now(), Servers: s.cfg.Servers()}})
	var loops sync.WaitGroup
	loops.Go(func() { r.end(r.sendAll(ss)) })
	loops.Go(func() { r.end(r.readAll(ss)) })
	loops.Go(func() { r.end(r.listen(s.cfg.Every)) })
	<-gone.Done()
	why := context.Cause(gone)
	s.leave(r, why)
	// The reader ends when this function returns; the others have ended by now.
	return status.Error(codes.Unavailable, why.Error())
}

// notLeading begins the message of a server that does not lead; the rest is the address of the one that does.
const notLeading = "this server does not lead; leader: "

func checkHello(id Identity, h *hello, term int64) error {
	switch {
	case h == nil:
		return errors.New("the first message must be a hello")
	case h.Version < 1 || h.Version > Version:
		return fmt.Errorf("protocol version %d: this server speaks 1 to %d; upgrade the servers first", h.Version, Version)
	case h.Host.Name != id.Name:
		return fmt.Errorf("the host calls itself %q, its certificate is that of %q", clean(h.Host.Name, 64), id.Name)
	case h.Term > term:
		return fmt.Errorf("the host has seen term %d, this server leads in term %d: it is not the leader any more", h.Term, term)
	}
	return h.Host.Check()
}

// enter makes a host known, after the end of the connection that it had before.
func (s *Server) enter(r *remote) {
	s.mu.Lock()
	old := s.hosts[r.id.Name]
	s.hosts[r.id.Name] = r
	s.mu.Unlock()
	if old != nil {
		old.end(errors.New("the host has connected anew"))
		<-old.finished
	}
}

// leave takes a host away whose connection has ended.
func (s *Server) leave(r *remote, why error) {
	defer close(r.finished)
	s.mu.Lock()
	if s.hosts[r.id.Name] == r {
		delete(s.hosts, r.id.Name)
	}
	s.mu.Unlock()
	r.connecting.Lock() // the reader may be about to connect it
	defer r.connecting.Unlock()
	r.mu.Lock()
	heard := r.heard
	r.left = true
	r.mu.Unlock()
	s.cfg.Control.Disconnect(r, heard, why)
}

// sendAll sends what there is to be said until the connection ends.
func (r *remote) sendAll(ss grpc.ServerStream) error {
	for {
		for _, d := range r.out.take() {
			if err := ss.SendMsg(d); err != nil {
				return err
			}
		}
		select {
		case <-r.gone.Done():
			return context.Cause(r.gone)
		case <-r.out.bell:
		}
	}
}

// listen ends a connection over which nothing has been heard.
func (r *remote) listen(every time.Duration) error {
	tick := time.NewTicker(every / 8) // what is noticed late is started late elsewhere
	defer tick.Stop()
	for {
		select {
		case <-r.gone.Done():
			return context.Cause(r.gone)
		case <-tick.C:
		}
		r.mu.Lock()
		silent := time.Since(r.heard)
		r.mu.Unlock()
		if silent > Missed*every {
			return fmt.Errorf("nothing was heard for %s", silent.Round(time.Millisecond))
		}
	}
}

// readAll takes in what the host says until the connection ends.
func (r *remote) readAll(ss grpc.ServerStream) error {
	synced := false
	for {
		var u up
		if err := ss.RecvMsg(&u); err != nil {
			return err
		}
		r.mu.Lock()
		r.heard = time.Now()
		r.mu.Unlock()
		if err := r.take(ss.Context(), &u, synced); err != nil {
			return err
		}
		if u.Synced && !synced {
			synced = true
			if err := r.connect(); err != nil {
				return err
			}
		}
	}
}

// connect tells the control plane of the host, unless its connection has ended meanwhile.
func (r *remote) connect() error {
	r.connecting.Lock()
	defer r.connecting.Unlock()
	if r.gone.Err() != nil {
		return context.Cause(r.gone)
	}
	return r.server.cfg.Control.Connect(r, r.id.UID)
}

// take takes in one message. What a host says is checked here, once; an impossible report ends the connection.
func (r *remote) take(ctx context.Context, u *up, synced bool) error {
	for i := range u.Statuses {
		s := u.Statuses[i]
		if err := s.Check(); err != nil {
			return fmt.Errorf("report of group %s: %w", clean(s.UID, 64), err)
		}
		r.mu.Lock()
		r.statuses[s.UID] = s
		if s.Gone {
			delete(r.statuses, s.UID)
		}
		r.mu.Unlock()
		if synced {
			r.server.cfg.Control.Report(r.id.Name, s)
		}
	}
	switch {
	case u.Beat != nil:
		return r.beat(u.Beat, synced)
	case u.Answer != nil:
		r.answered(*u.Answer)
	case u.Renew != nil:
		cert, err := r.server.cfg.Sign(ctx, r.id, u.Renew)
		if err != nil {
			return fmt.Errorf("renew certificate: %w", err)
		}
		r.out.put(&down{Certificate: cert})
	}
	return nil
}

// beat answers a beat. With a lease when the host has been told which groups it has: it must not start those that were
// started elsewhere. And not when Disconnect has been told when the host was heard last: who waits for the end of its
// lease counts from that.
func (r *remote) beat(b *beat, synced bool) error {
	if b.Host.Name != r.id.Name {
		return fmt.Errorf("the host calls itself %q", clean(b.Host.Name, 64))
	}
	if err := b.Host.Check(); err != nil {
		return err
	}
	if skew := b.Time.Sub(r.server.cfg.Now().Round(0)); skew.Abs() > maxSkew {
		b.Host.State, b.Host.Reason = host.NotReady, fmt.Sprintf("Its clock is %s off the server's. Set the wrong one right (an NTP service does).", skew.Round(time.Minute/2))
	}
	r.mu.Lock()
	b.Host.Underlay = r.describe.Underlay
	if b.Host.Reason != r.describe.Reason {
		r.server.cfg.Log.Info("readiness of host", "host", r.id.Name, "state", string(b.Host.State), "reason", b.Host.Reason)
	}
	r.describe = b.Host
	granted := synced && !r.left
	r.heard = time.Now()
	r.mu.Unlock()
	answer := &pulse{Seq: b.Seq}
	if granted {
		answer.Lease = r.server.cfg.Control.Beat(r.id.Name)
	}
	r.out.put(&down{Beat: answer})
	return nil
}

// pendingStream is a stream that a host was asked to open.
type pendingStream struct {
	host    string
	arrived chan grpc.ServerStream
	done    chan struct{} // closed when nobody uses the stream any more
}

// streamTime is how long a host may take to open a stream; its ticket ends then.
const streamTime = 10 * time.Second

// await asks a host to open a stream and gives it; done lets it go.
func (s *Server) await(ctx context.Context, r *remote, o open) (grpc.ServerStream, func(), error) {
	var secret [16]byte
	_, _ = rand.Read(secret[:])
	o.Ticket = hex.EncodeToString(secret[:])
	p := &pendingStream{host: r.id.Name, arrived: make(chan grpc.ServerStream, 1), done: make(chan struct{})}
	s.mu.Lock()
	s.tickets[o.Ticket] = p
	s.mu.Unlock()
	forget := func() {
		s.mu.Lock()
		delete(s.tickets, o.Ticket)
		s.mu.Unlock()
	}
	done := sync.OnceFunc(func() { close(p.done) })
	r.out.put(&down{Open: &o})
	var err error
	select {
	case ss := <-p.arrived:
		return ss, done, nil
	case <-ctx.Done():
		err = ctx.Err()
	case <-r.gone.Done():
		err = r.away()
	case <-time.After(streamTime):
		err = fault.New(fault.Unavailable, "HostNotAnswering", "The host '%s' has not answered within %s. Try again.", r.id.Name, streamTime)
	}
	forget()
	done()
	return nil, nil, err
}

// carry takes a stream that a host has opened to whoever waits for it. A ticket is good once, for the host that it was
// given to.
func (s *Server) carry(ss grpc.ServerStream) error {
	id, err := s.admit(ss.Context())
	if err != nil {
		return err
	}
	md, _ := metadata.FromIncomingContext(ss.Context())
	tickets := md.Get(ticketKey)
	if len(tickets) != 1 {
		return status.Error(codes.InvalidArgument, "a stream needs one ticket")
	}
	s.mu.Lock()
	p := s.tickets[tickets[0]]
	if p != nil && p.host == id.Name {
		delete(s.tickets, tickets[0])
	}
	s.mu.Unlock()
	if p == nil || p.host != id.Name {
		return status.Error(codes.PermissionDenied, "the ticket is not this host's, or was used before")
	}
	p.arrived <- ss
	select {
	case <-p.done:
	case <-ss.Context().Done():
	}
	return nil
}
