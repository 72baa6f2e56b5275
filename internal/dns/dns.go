// Package dns answers groups' questions for names: those of the platform from a table in memory, all others by asking
// the host's own servers.
//
// A group sees the public names (LABEL.LOCATION.spillway.internal) and those of its own network; who asks is known by
// source address, which the network keeps honest. Everything is bounded: questions per source, questions in flight,
// connections, cache.
//
// It must never answer one network with the private names of another, and never forward a name of the platform. Start
// reading at Server.answer.
package dns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/net/netutil"
	"golang.org/x/time/rate"

	"spillway.dev/spillway/internal/port"
)

// Zone is the end of all names of the platform.
const Zone = "spillway.internal"

const (
	ttl            = 5 // seconds: names follow groups that move
	perSource      = 200
	burst          = 400   // questions of one source at once
	maxSources     = 20000 // limiters kept
	maxConnections = 256
	maxQuestions   = 64 // per connection
	idle           = 10 * time.Second
)

// Config says where the server listens and whom it asks.
type Config struct {
	Listen     []string       // HOST:PORT, each by UDP and TCP; groups ask at the first only
	Ranges     []netip.Prefix // the platform's addresses: questions for their names are never forwarded
	ResolvConf string         // where upstream servers are listed; "" = /etc/resolv.conf
	Log        *slog.Logger
}

// Server answers. Its Table may be changed at any time.
type Server struct {
	*Table
	cfg     Config
	log     *slog.Logger
	servers []*dns.Server
	addrs   []string
	forward *forwarder

	mu       sync.Mutex // guards limiters
	limiters map[netip.Addr]*rate.Limiter
}

// New opens the sockets; Run serves them.
func New(ctx context.Context, cfg Config, table *Table) (*Server, error) {
	if cfg.ResolvConf == "" {
		cfg.ResolvConf = "/etc/resolv.conf"
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{Table: table, cfg: cfg, log: cfg.Log, limiters: map[netip.Addr]*rate.Limiter{}}
	for i, at := range cfg.Listen {
		if err := s.listen(ctx, at, asks{s, i == 0}); err != nil {
			return nil, errors.Join(fmt.Errorf("listen for DNS on %s: %w", at, err), s.shutdown())
		}
	}
	s.forward = newForwarder(cfg.ResolvConf, s.addrs)
	return s, nil
}

func (s *Server) listen(ctx context.Context, at string, asked dns.Handler) error {
	var lc net.ListenConfig
	udp, err := port.Take(ctx, port.Patience, func() (net.PacketConn, error) { return lc.ListenPacket(ctx, "udp", at) })
	if err != nil {
		return err
	}
	at = udp.LocalAddr().String() // the same port for both, also when it was 0
	tcp, err := port.Take(ctx, port.Patience, func() (net.Listener, error) { return lc.Listen(ctx, "tcp", at) })
	if err != nil {
		return errors.Join(err, udp.Close())
	}
	s.addrs = append(s.addrs, at)
	s.servers = append(s.servers,
		&dns.Server{PacketConn: udp, Handler: asked},
		&dns.Server{Listener: netutil.LimitListener(tcp, maxConnections), Handler: asked, MaxTCPQueries: maxQuestions, IdleTimeout: func() time.Duration { return idle }, ReadTimeout: idle, WriteTimeout: idle})
	return nil
}

// Addrs are the addresses it listens on.
func (s *Server) Addrs() []string { return s.addrs }

// Run serves until ctx ends.
func (s *Server) Run(ctx context.Context) error {
	failed := make(chan error, len(s.servers))
	for _, srv := range s.servers {
		go func() { failed <- srv.ActivateAndServe() }()
	}
	var err error
	ended := 0
	select {
	case <-ctx.Done():
	case err = <-failed:
		ended = 1
		err = fmt.Errorf("serve DNS: %w", err)
	}
	if closeErr := s.shutdown(); err == nil {
		err = closeErr
	}
	for range len(s.servers) - ended {
		<-failed
	}
	return err
}

// shutdown closes the sockets, of servers that run and of those that never did.
func (s *Server) shutdown() error {
	for _, srv := range s.servers {
		if srv.PacketConn != nil {
			srv.PacketConn.Close() // a second close says so, and nothing else can go wrong
		}
		if srv.Listener != nil {
			srv.Listener.Close()
		}
	}
	return nil
}

// asks answers at one address. Where others than groups ask, nobody is a group, though it may have the address of one: that of
// a group in a virtual network may be in the machine's own network, too.
type asks struct {
	*Server
	groups bool
}

// ServeDNS is called for each question.
func (s asks) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	source := addrOf(w.RemoteAddr())
	if !s.allow(source) {
		return // an answer would help who floods
	}
	if !s.groups {
		source = netip.Addr{}
	}
	a := s.answer(q, source)
	limit := dns.MinMsgSize
	if o := q.IsEdns0(); o != nil {
		limit = max(limit, int(o.UDPSize()))
		if a.IsEdns0() == nil {
			a.SetEdns0(ednsSize, false)
		}
	}
	if _, tcp := w.RemoteAddr().(*net.TCPAddr); tcp {
		limit = dns.MaxMsgSize
	}
	a.Truncate(min(limit, dns.MaxMsgSize))
	if err := w.WriteMsg(a); err != nil {
		s.log.Debug("DNS answer not sent", "to", source.String(), "error", err)
	}
}

func addrOf(a net.Addr) netip.Addr {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

func (s *Server) allow(source netip.Addr) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	l, ok := s.limiters[source]
	if !ok {
		if len(s.limiters) >= maxSources {
			clear(s.limiters)
		}
		l = rate.NewLimiter(perSource, burst)
		s.limiters[source] = l
	}
	return l.Allow()
}

// answer decides who answers: the table for the platform's names, upstream for the rest.
func (s *Server) answer(q *dns.Msg, source netip.Addr) *dns.Msg {
	a := new(dns.Msg)
	if q.Opcode != dns.OpcodeQuery || len(q.Question) != 1 {
		return a.SetRcode(q, dns.RcodeNotImplemented)
	}
	question := q.Question[0]
	if question.Qclass != dns.ClassINET || question.Qtype == dns.TypeANY || question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR {
		return a.SetRcode(q, dns.RcodeRefused)
	}
	name := fold(question.Name)
	if name == Zone || strings.HasSuffix(name, "."+Zone) {
		return s.own(q, name, source)
	}
	if addr, ok := reverseAddr(name); ok && (s.ours(addr) || s.Within(addr, source) || len(s.Reverse(addr, source)) > 0) {
		return s.pointer(q, addr, source)
	}
	return s.forward.ask(q)
}

// own answers for a name of the platform.
func (s *Server) own(q *dns.Msg, name string, source netip.Addr) *dns.Msg {
	a := new(dns.Msg).SetReply(q)
	a.Authoritative, a.RecursionAvailable = true, true
	addrs := s.Lookup(name, source)
	rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
	for _, ip := range addrs {
		switch {
		case q.Question[0].Qtype == dns.TypeA && ip.Is4():
			a.Answer = append(a.Answer, &dns.A{Hdr: header(q, dns.TypeA), A: ip.AsSlice()})
		case q.Question[0].Qtype == dns.TypeAAAA && ip.Is6():
			a.Answer = append(a.Answer, &dns.AAAA{Hdr: header(q, dns.TypeAAAA), AAAA: ip.AsSlice()})
		}
	}
	if len(addrs) == 0 && name != Zone {
		a.Rcode = dns.RcodeNameError
	}
	if len(a.Answer) == 0 {
		a.Ns = []dns.RR{authority()}
	}
	return a
}

func (s *Server) ours(a netip.Addr) bool {
	for _, r := range s.cfg.Ranges {
		if r.Contains(a) {
			return true
		}
	}
	return false
}

// pointer answers what an address is called.
func (s *Server) pointer(q *dns.Msg, a netip.Addr, source netip.Addr) *dns.Msg {
	out := new(dns.Msg).SetReply(q)
	out.Authoritative, out.RecursionAvailable = true, true
	names := s.Reverse(a, source)
	for _, n := range names {
		if q.Question[0].Qtype == dns.TypePTR {
			out.Answer = append(out.Answer, &dns.PTR{Hdr: header(q, dns.TypePTR), Ptr: dns.Fqdn(n)})
		}
	}
	if len(names) == 0 {
		out.Rcode = dns.RcodeNameError
	}
	if len(out.Answer) == 0 {
		out.Ns = []dns.RR{authority()}
	}
	return out
}

func header(q *dns.Msg, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: q.Question[0].Name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

// authority bounds how long others remember that a name is not there.
func authority() dns.RR {
	return &dns.SOA{Hdr: dns.RR_Header{Name: Zone + ".", Rrtype: dns.TypeSOA, Class: dns.ClassINET, Ttl: ttl},
		Ns: "dns." + Zone + ".", Mbox: "operator." + Zone + ".", Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl}
}

// reverseAddr reads d.c.b.a.in-addr.arpa.
func reverseAddr(name string) (netip.Addr, bool) {
	rest, ok := strings.CutSuffix(name, ".in-addr.arpa")
	if !ok {
		return netip.Addr{}, false
	}
	parts := strings.Split(rest, ".")
	if len(parts) != 4 {
		return netip.Addr{}, false
	}
	a, err := netip.ParseAddr(parts[3] + "." + parts[2] + "." + parts[1] + "." + parts[0])
	return a, err == nil
}
