package dns

import (
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	ednsSize    = 1232 // bytes of an answer by UDP that no path breaks
	askTime     = 2 * time.Second
	maxInFlight = 256
	maxCache    = 4096 // answers
	maxTTL      = 5 * time.Minute
	rereadEvery = 5 * time.Second
)

// forwarder asks the host's servers, and remembers what they said for as long as they allow.
type forwarder struct {
	file string
	own  []string // addresses that must not be asked: ourselves
	slot chan struct{}

	mu      sync.Mutex // guards the rest
	cache   map[dns.Question]remembered
	servers []string
	read    time.Time
}

type remembered struct {
	msg   *dns.Msg
	until time.Time
}

func newForwarder(file string, own []string) *forwarder {
	return &forwarder{file: file, own: own, slot: make(chan struct{}, maxInFlight), cache: map[dns.Question]remembered{}}
}

// ask answers a question from memory or from upstream; what fails is SERVFAIL.
func (f *forwarder) ask(q *dns.Msg) *dns.Msg {
	key := q.Question[0]
	key.Name = strings.ToLower(key.Name)
	if m := f.recall(key, time.Now()); m != nil {
		return reply(q, m)
	}
	select {
	case f.slot <- struct{}{}:
		defer func() { <-f.slot }()
	default:
		return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
	}
	up := new(dns.Msg)
	up.SetQuestion(q.Question[0].Name, q.Question[0].Qtype)
	up.SetEdns0(ednsSize, false)
	for _, server := range f.upstreams(time.Now()) {
		if m, err := exchange(up, server); err == nil && m.Rcode != dns.RcodeServerFailure && m.Rcode != dns.RcodeRefused {
			f.remember(key, m, time.Now())
			return reply(q, m)
		}
	}
	return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
}

// exchange asks by UDP, and by TCP when the answer was cut.
func exchange(q *dns.Msg, server string) (*dns.Msg, error) {
	c := &dns.Client{Net: "udp", Timeout: askTime, UDPSize: ednsSize}
	m, _, err := c.Exchange(q, server)
	if err == nil && m.Truncated {
		c.Net = "tcp"
		m, _, err = c.Exchange(q, server)
	}
	return m, err
}

// reply fits an upstream answer to a question.
func reply(q, m *dns.Msg) *dns.Msg {
	a := m.Copy()
	a.SetReply(q)
	a.Rcode = m.Rcode
	a.RecursionAvailable = true
	a.Extra = slices.DeleteFunc(a.Extra, func(rr dns.RR) bool { return rr.Header().Rrtype == dns.TypeOPT })
	return a
}

func (f *forwarder) recall(key dns.Question, now time.Time) *dns.Msg {
	f.mu.Lock()
	defer f.mu.Unlock()
	r, ok := f.cache[key]
	if !ok || now.After(r.until) {
		return nil
	}
	return r.msg
}

func (f *forwarder) remember(key dns.Question, m *dns.Msg, now time.Time) {
	keep := maxTTL
	for _, rr := range slices.Concat(m.Answer, m.Ns) {
		keep = min(keep, time.Duration(rr.Header().Ttl)*time.Second)
	}
	if keep == 0 || len(m.Answer)+len(m.Ns) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, r := range f.cache {
		if len(f.cache) < maxCache {
			break
		}
		if now.After(r.until) || len(f.cache) >= maxCache {
			delete(f.cache, k)
		}
	}
	f.cache[key] = remembered{m, now.Add(keep)}
}

// upstreams are the servers of resolv.conf, read again now and then: a laptop changes networks.
func (f *forwarder) upstreams(now time.Time) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.read) < rereadEvery {
		return f.servers
	}
	f.read = now
	b, err := os.ReadFile(f.file)
	if err != nil {
		return f.servers
	}
	f.servers = parseResolvConf(string(b), f.own)
	return f.servers
}

func parseResolvConf(text string, own []string) []string {
	var out []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		server := fields[1]
		if _, _, err := net.SplitHostPort(server); err != nil {
			server = net.JoinHostPort(server, "53")
		}
		if !slices.Contains(own, server) {
			out = append(out, server)
		}
	}
	return out
}
