package hostlink

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// ClientConfig is the host's end.
type ClientConfig struct {
	Local host.Link // who runs the groups
	// Servers are the addresses of the servers, HOST:PORT; any may lead.
	Servers []string
	// Learn hears of other addresses of the servers; they are used from then on.
	Learn func(servers []string)
	// TLS gives the host's certificate and the authority of the servers'.
	TLS *tls.Config
	// Term is the highest term seen, read once and written before a higher one is listened to.
	Term TermFile
	// Leased hears until when, by Clock, the host's groups are its own. It must not block.
	Leased func(until time.Duration)
	// Clock is this machine's that goes on while it sleeps, and that nobody sets.
	Clock func() time.Duration
	// Now is the clock that people set, of which the servers hear; nil: this machine's.
	Now func() time.Time
	// Renewal is asked now and then whether the certificate needs a successor, and gets it.
	Renewal Renewal
	Log     *slog.Logger
}

// TermFile keeps the highest term over restarts.
type TermFile interface {
	Load() (int64, error)
	Store(term int64) error
}

// Renewal renews a host's certificate.
type Renewal interface {
	// Request gives a signing request when it is time for one, else nil.
	Request(now time.Time) ([]byte, error)
	// Take keeps the new certificate; the next connection uses it.
	Take(certPEM []byte) error
}

// Client keeps a host connected to the server that leads.
type Client struct {
	cfg ClientConfig
	// Only Run touches these.
	term    int64    // highest seen
	servers []string // never empty

	mu       sync.Mutex // guards what follows
	statuses map[string]group.Status
	fresh    map[string]bool // uids that the server has not been told of
	clearing host.Clearing
	bell     chan struct{}
	changed  chan struct{} // what the host says of itself is news
}

// NewClient makes a client; Run keeps it going.
func NewClient(cfg ClientConfig) (*Client, error) {
	term, err := cfg.Term.Load()
	if err != nil {
		return nil, fmt.Errorf("read the highest term: %w", err)
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Client{cfg: cfg, term: term, servers: cfg.Servers, statuses: map[string]group.Status{}, fresh: map[string]bool{}, bell: make(chan struct{}, 1), changed: make(chan struct{}, 1)}, nil
}

// Report takes what the host says of a group; it never blocks, and the newest word counts.
func (c *Client) Report(s group.Status) {
	c.mu.Lock()
	c.statuses[s.UID] = s
	if c.clearing.Follow(&s) {
		c.Changed()
	}
	c.fresh[s.UID] = true
	c.mu.Unlock()
	select {
	case c.bell <- struct{}{}:
	default:
	}
}

// Changed says that what the host says of itself is news: the server hears it now and not with the next beat.
func (c *Client) Changed() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// news gives at most maxBatch statuses that the server does not have.
func (c *Client) news() []group.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []group.Status
	for uid := range c.fresh {
		if len(out) == maxBatch {
			break
		}
		s := c.statuses[uid]
		out = append(out, s)
		delete(c.fresh, uid)
		if s.Gone {
			delete(c.statuses, uid)
		}
	}
	return out
}

// tellAll makes everything news again: another server knows nothing.
func (c *Client) tellAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for uid := range c.statuses {
		c.fresh[uid] = true
	}
}

// describe is what the host says of itself.
func (c *Client) describe() host.Host {
	h := c.cfg.Local.Describe()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.clearing.Describe(h)
}

// retained drops statuses of groups that the server does not have any more.
func (c *Client) retained(uids map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.clearing.Retain(uids, maps.Values(c.statuses)) {
		c.Changed()
	}
	for uid := range c.statuses {
		if !uids[uid] {
			delete(c.statuses, uid)
			delete(c.fresh, uid)
		}
	}
}

// Pauses between attempts to connect.
const (
	firstPause = 100 * time.Millisecond
	mostPause  = 500 * time.Millisecond // servers elect a leader within a few seconds: hosts shall be there then
	dialTime   = 5 * time.Second
)

// Run connects, and connects again, until ctx ends. What runs goes on whatever becomes of the servers.
func (c *Client) Run(ctx context.Context) error {
	next, pause := 0, firstPause
	to := ""
	for ctx.Err() == nil {
		if to == "" {
			to = c.servers[next%len(c.servers)]
			next++
		}
		began := time.Now()
		err := c.connect(ctx, to)
		if ctx.Err() != nil {
			return nil
		}
		leader := leaderIn(err)
		c.cfg.Log.Info("connection to the servers ended", "server", to, "error", err)
		if time.Since(began) > dialTime {
			pause = firstPause
		}
		if to = leader; to != "" && pause == firstPause {
			pause *= 2 // at once, but not for ever
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause/2 + rand.N(pause)):
		}
		pause = min(2*pause, mostPause)
	}
	return nil
}

// leaderIn is the address of the leader that a server's refusal names, if it does.
func leaderIn(err error) string {
	s, ok := status.FromError(err)
	if !ok {
		return ""
	}
	_, leader, found := strings.Cut(s.Message(), notLeading)
	if !found || leader == "" || len(leader) > 300 {
		return ""
	}
	return leader
}

// connection is one connection to one server.
type connection struct {
	c      *Client
	conn   *grpc.ClientConn
	stream grpc.ClientStream
	send   sync.Mutex // one message at a time

	mu   sync.Mutex              // guards beats
	sent map[int64]time.Duration // when beats were sent, by Clock
}

func (c *Client) connect(ctx context.Context, to string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+to, grpc.WithTransportCredentials(credentials.NewTLS(c.cfg.TLS)),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(codec{}), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true}))
	if err != nil {
		return err
	}
	defer conn.Close()
	slow := time.AfterFunc(dialTime, cancel)
	ss, err := conn.NewStream(ctx, &connectStream, "/"+serviceName+"/"+connectStream.StreamName)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.clearing = host.Clearing{} // another server may say something else
	c.mu.Unlock()
	n := &connection{c: c, conn: conn, stream: ss, sent: map[int64]time.Duration{}}
	if err := n.say(&up{Hello: &hello{Version: Version, Host: c.describe(), Term: c.term}}); err != nil {
		return errors.Join(err, n.refusal())
	}
	var first down
	if err := ss.RecvMsg(&first); err != nil {
		return err
	}
	slow.Stop()
	w := first.Welcome
	if err := checkWelcome(w, c.term); err != nil {
		return err
	}
	if w.Term > c.term {
		if err := c.cfg.Term.Store(w.Term); err != nil {
			return fmt.Errorf("remember term %d: %w", w.Term, err)
		}
		c.term = w.Term
	}
	if len(w.Servers) > 0 && !slices.Equal(w.Servers, c.servers) {
		c.servers = w.Servers
		c.cfg.Learn(w.Servers)
	}
	c.cfg.Log.Info("connected", "server", to, "term", w.Term)
	return n.run(ctx, w.Every)
}

// checkWelcome says whether a server may be listened to by a host that has seen a term.
func checkWelcome(w *welcome, term int64) error {
	if w == nil || w.Every <= 0 {
		return status.Error(codes.FailedPrecondition, "the server did not begin with a welcome")
	}
	if w.Term < term {
		return fmt.Errorf("the server leads in term %d, this host has seen term %d", w.Term, term)
	}
	return nil
}

// refusal reads why a server has ended a stream.
func (n *connection) refusal() error {
	var d down
	return n.stream.RecvMsg(&d)
}

func (n *connection) say(u *up) error {
	n.send.Lock()
	defer n.send.Unlock()
	return n.stream.SendMsg(u)
}

// run carries a connection to its end.
func (n *connection) run(ctx context.Context, every time.Duration) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	n.c.tellAll()
	var loops sync.WaitGroup
	defer loops.Wait()
	loops.Go(func() { end(n.tell(ctx)) })
	loops.Go(func() { end(n.beats(ctx, every)) })
	streams := sync.WaitGroup{}
	defer streams.Wait()
	for {
		var d down
		if err := n.stream.RecvMsg(&d); err != nil {
			if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
				return cause
			}
			end(err)
			return err
		}
		if err := n.hear(ctx, &d, &streams); err != nil {
			end(err)
			return err
		}
	}
}

// tell sends what the host reports: first all that it knows, then what is new.
func (n *connection) tell(ctx context.Context) error {
	synced := false
	for {
		for list := n.c.news(); len(list) > 0; list = n.c.news() {
			if err := n.say(&up{Statuses: list}); err != nil {
				n.c.tellAll()
				return err
			}
		}
		if !synced {
			if err := n.say(&up{Synced: true}); err != nil {
				return err
			}
			synced = true
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-n.c.bell:
		}
	}
}

func (n *connection) beats(ctx context.Context, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for seq := int64(1); ; seq++ {
		n.mu.Lock()
		n.sent[seq] = n.c.cfg.Clock()
		delete(n.sent, seq-2*Missed)
		n.mu.Unlock()
		if err := n.say(&up{Beat: &beat{Host: n.c.describe(), Seq: seq, Time: n.c.cfg.Now()}}); err != nil {
			return err
		}
		if err := n.renew(); err != nil {
			n.c.cfg.Log.Warn("renew the host's certificate", "error", err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		case <-n.c.changed:
		}
	}
}

func (n *connection) renew() error {
	csr, err := n.c.cfg.Renewal.Request(time.Now())
	if err != nil || csr == nil {
		return err
	}
	return n.say(&up{Renew: csr})
}

// hear does what the server says. Wishes are only recorded by whoever runs the groups, so nothing here waits.
func (n *connection) hear(ctx context.Context, d *down, streams *sync.WaitGroup) error {
	local := n.c.cfg.Local
	switch {
	case d.Assign != nil:
		for _, g := range d.Assign {
			local.Assign(g)
		}
	case d.Retain != nil:
		uids := make(map[string]bool, len(d.Retain.UIDs))
		for _, uid := range d.Retain.UIDs {
			uids[uid] = true
		}
		n.c.retained(uids)
		local.Retain(uids)
	case d.Serve != nil:
		local.Serve(*d.Serve)
	case d.Name != nil:
		local.Name(*d.Name)
	case d.Span != nil:
		local.Span(*d.Span)
	case d.Beat != nil:
		n.mu.Lock()
		at, ok := n.sent[d.Beat.Seq]
		delete(n.sent, d.Beat.Seq)
		n.mu.Unlock()
		if ok && d.Beat.Lease > 0 {
			n.c.cfg.Leased(at + d.Beat.Lease)
		}
	case d.Ask != nil:
		streams.Go(func() { _ = n.say(&up{Answer: n.answer(ctx, d.Ask)}) })
	case d.Open != nil:
		streams.Go(func() { n.open(ctx, d.Open) })
	case d.Certificate != nil:
		if err := n.c.cfg.Renewal.Take(d.Certificate); err != nil {
			n.c.cfg.Log.Warn("keep the host's new certificate", "error", err)
		}
	}
	return nil
}
