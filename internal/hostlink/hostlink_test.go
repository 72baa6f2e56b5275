package hostlink_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/hostlink"
	"spillway.dev/spillway/internal/identity"
	"spillway.dev/spillway/internal/sim"
)

const patience = 10 * time.Second

// epoch is where the clock of hosts in these tests begins.
var epoch = time.Now()

// plane is a control plane that writes down what it hears.
type plane struct {
	mu      sync.Mutex // guards what follows
	links   map[string]host.Link
	reports map[string]group.Status
	from    map[string]string // uid → host that reported
	lost    []string
	lease   time.Duration
	beats   int
}

func (p *plane) Connect(l host.Link, _ string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.links[l.Describe().Name] = l
	return nil
}

func (p *plane) Disconnect(l host.Link, _ time.Time, why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := l.Describe().Name
	if p.links[name] == l {
		delete(p.links, name)
	}
	p.lost = append(p.lost, name+": "+why.Error())
}

func (p *plane) Report(name string, s group.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reports[s.UID], p.from[s.UID] = s, name
}

func (p *plane) Beat(string) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.beats++
	return p.lease
}

func (p *plane) beaten() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.beats
}

func (p *plane) link(name string) host.Link {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.links[name]
}

func (p *plane) state(uid string) group.State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reports[uid].State
}

// site is a server that hosts can connect to.
type site struct {
	*testing.T
	*plane
	authority *identity.Authority
	server    *hostlink.Server
	addr      string
	term      atomic.Int64
	leader    string // where the leader is, when it is not this one
}

func newSite(t *testing.T) *site {
	t.Helper()
	authority, err := identity.OpenAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	s := &site{T: t, authority: authority, plane: &plane{links: map[string]host.Link{}, reports: map[string]group.Status{}, from: map[string]string{}, lease: time.Second}}
	s.term.Store(7)
	s.serve()
	return s
}

// serve starts a server.
func (s *site) serve() {
	s.Helper()
	s.server = hostlink.NewServer(hostlink.ServerConfig{Control: s.plane, TLS: s.authority.HostTLS(), Log: slog.New(slog.DiscardHandler), Every: 100 * time.Millisecond,
		Leads: func() (int64, string, bool) { return s.term.Load(), s.leader, s.leader == "" },
		Admit: func(id hostlink.Identity) error {
			if id.UID != "1" {
				return errors.New("the host was removed")
			}
			return nil
		},
		Servers: func() []string { return []string{s.addr} },
		Sign: func(_ context.Context, id hostlink.Identity, csr []byte) ([]byte, error) {
			return s.authority.SignHost(csr, id.Name, id.URI())
		}})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.Fatal(err)
	}
	s.addr = l.Addr().String()
	server := s.server
	go func() { _ = server.GRPC().Serve(l) }()
	s.Cleanup(server.GRPC().Stop)
}

// terms is a term file in memory.
type terms struct{ n atomic.Int64 }

func (t *terms) Load() (int64, error)   { return t.n.Load(), nil }
func (t *terms) Store(term int64) error { t.n.Store(term); return nil }

// renewal asks once for a new certificate.
type renewal struct {
	mu      sync.Mutex // guards the rest
	request []byte
	got     []byte
}

func (r *renewal) Request(time.Time) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	csr := r.request
	r.request = nil
	return csr, nil
}

func (r *renewal) Take(cert []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = cert
	return nil
}

func (s *site) request(t *testing.T) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "whatever"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// tls is the configuration of a host with a certificate of its own.
func (s *site) tls(name, uid string) *tls.Config {
	s.Helper()
	key, csr := s.request(s.T)
	cert, err := s.authority.SignHost(csr, name, hostlink.Identity{Name: name, UID: uid}.URI())
	if err != nil {
		s.Fatal(err)
	}
	block, _ := pem.Decode(cert)
	return &tls.Config{ServerName: "localhost", RootCAs: s.authority.Pool(), Certificates: []tls.Certificate{{Certificate: [][]byte{block.Bytes}, PrivateKey: key}}}
}

// machine is a simulated host with its client.
type machine struct {
	*sim.Host
	client *hostlink.Client
	terms  *terms
	renew  *renewal
	mu     sync.Mutex // guards until
	until  time.Duration
}

func (s *site) host(name string, change func(*hostlink.ClientConfig)) *machine {
	s.Helper()
	m := &machine{terms: &terms{}, renew: &renewal{}}
	m.Host = sim.NewHost(name, nil, func(st group.Status) { m.client.Report(st) })
	cfg := hostlink.ClientConfig{Local: m.Host, Servers: []string{s.addr}, TLS: s.tls(name, "1"), Learn: func([]string) {}, Term: m.terms, Renewal: m.renew, Log: slog.New(slog.DiscardHandler),
		Clock:  func() time.Duration { return time.Since(epoch) },
		Leased: func(until time.Duration) { m.mu.Lock(); m.until = until; m.mu.Unlock() }}
	if change != nil {
		change(&cfg)
	}
	var err error
	if m.client, err = hostlink.NewClient(cfg); err != nil {
		s.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = m.client.Run(ctx) }()
	s.Cleanup(func() { cancel(); <-done })
	return m
}

func (s *site) eventually(what string, ok func() bool) {
	s.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	s.plane.mu.Lock()
	defer s.plane.mu.Unlock()
	s.Fatalf("waited in vain for %s; lost: %q", what, s.lost)
}

func (s *site) connected(name string) host.Link {
	s.Helper()
	s.eventually("host "+name, func() bool { return s.link(name) != nil })
	return s.link(name)
}

func sleeper(uid string) *group.Group {
	return &group.Group{Ref: group.Ref{Subscription: "s", ResourceGroup: "rg", Name: uid}, UID: uid, Generation: 1, Epoch: 1, Desired: group.Run,
		Spec: group.Spec{RestartPolicy: group.RestartNever, Containers: []group.Container{{Name: "c", Image: "i"}}}}
}

func TestWishesGoDownAndStatusesComeUp(t *testing.T) {
	s := newSite(t)
	m := s.host("h1", nil)
	link := s.connected("h1")
	for i := range 600 { // more than one message takes
		link.Assign(sleeper(fmt.Sprintf("g%d", i)))
	}
	s.eventually("600 running groups", func() bool {
		for i := range 600 {
			if s.state(fmt.Sprintf("g%d", i)) != group.Running {
				return false
			}
		}
		return true
	})
	if st, ok := link.Status("g7"); !ok || st.State != group.Running {
		t.Errorf("Status(g7) = %+v, %t", st, ok)
	}
	link.Retain(map[string]bool{"g1": true})
	s.eventually("the end of what is not retained", func() bool { st, ok := m.Status("g2"); return !ok || st.Gone })
	if m.terms.n.Load() != 7 {
		t.Errorf("the host knows term %d", m.terms.n.Load())
	}
}

func TestLeases(t *testing.T) {
	s := newSite(t)
	began := time.Since(epoch)
	m := s.host("h1", nil)
	s.connected("h1")
	latest := func() time.Duration {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.until
	}
	s.eventually("a lease", func() bool { return latest() > 0 })
	if until, now := latest(), time.Since(epoch); until < began+s.lease || until > now+s.lease {
		t.Errorf("a lease of %s that was asked for from %s to %s ends at %s", s.lease, began, now, until)
	}
	first := latest()
	s.eventually("the next one", func() bool { return latest() > first })
	s.plane.mu.Lock()
	s.lease = 0 // it does not lead any more
	s.plane.mu.Unlock()
	// What the server sends comes in order: when a group is there that was assigned after some beats, their answers are, too.
	answered := func(uid string) {
		n := s.beaten()
		s.eventually("further beats", func() bool { return s.beaten() >= n+3 })
		s.link("h1").Assign(sleeper(uid))
		s.eventually("the group "+uid, func() bool { return s.state(uid) != "" })
	}
	answered("g1")
	last := latest()
	answered("g2")
	if latest() != last {
		t.Error("a server that does not lead has granted a lease")
	}
}

func TestStreamsAndQuestions(t *testing.T) {
	s := newSite(t)
	s.host("h1", nil)
	link := s.connected("h1")
	link.Assign(sleeper("g"))
	s.eventually("the group", func() bool { return s.state("g") == group.Running })
	var out bytes.Buffer
	code, err := link.Exec(t.Context(), "g", "c", host.ExecRequest{Command: []string{"cat"}, Stdin: true}, host.Streams{Stdin: strings.NewReader(strings.Repeat("x", 300_000)), Stdout: &out})
	if err != nil {
		t.Errorf("exec = %d, %v", code, err)
	}
	var fromSim bytes.Buffer
	m := sim.NewHost("other", nil, func(group.Status) {})
	m.Assign(sleeper("g"))
	s.eventually("the group without a wire", func() bool { st, _ := m.Status("g"); return st.State == group.Running })
	if want, err := m.Exec(t.Context(), "g", "c", host.ExecRequest{Command: []string{"cat"}, Stdin: true}, host.Streams{Stdin: strings.NewReader(strings.Repeat("x", 300_000)), Stdout: &fromSim}); err != nil || want != code || !bytes.Equal(out.Bytes(), fromSim.Bytes()) {
		t.Errorf("over the wire exec gave %d and %d bytes, without it %d and %d (%v)", code, out.Len(), want, fromSim.Len(), err)
	}
	if err := link.Logs(t.Context(), "absent", "c", host.LogOptions{}, io.Discard); fault.KindOf(err) != fault.NotFound {
		t.Errorf("logs of an unknown group: %v, want not found", err)
	}
	if _, err := link.Images(t.Context()); err != nil {
		t.Errorf("images: %v", err)
	}
	if err := link.RemoveImage(t.Context(), "absent"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("removal of an unknown image: %v, want not found", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := link.Logs(ctx, "g", "c", host.LogOptions{Follow: true}, io.Discard); err == nil || ctx.Err() == nil {
		t.Errorf("followed logs ended with %v before the caller ended them", err)
	}
}

func TestStrangersStayOut(t *testing.T) {
	s := newSite(t)
	stranger, err := identity.OpenAuthority(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	other := &site{T: t, authority: stranger}
	for name, change := range map[string]func(*hostlink.ClientConfig){
		"no certificate":      func(c *hostlink.ClientConfig) { c.TLS.Certificates = nil },
		"another authority's": func(c *hostlink.ClientConfig) { c.TLS.Certificates = other.tls("h1", "1").Certificates },
		"another host's":      func(c *hostlink.ClientConfig) { c.TLS = s.tls("h2", "1") },
		"a removed host's":    func(c *hostlink.ClientConfig) { c.TLS = s.tls("h1", "0") },
		"a server's own":      func(c *hostlink.ClientConfig) { c.TLS.Certificates = nil; c.TLS.GetClientCertificate = s.serverCert },
	} {
		t.Run(name, func(t *testing.T) {
			s.host("h1", change)
			time.Sleep(300 * time.Millisecond) // three attempts
			if s.link("h1") != nil {
				t.Error("the host is connected")
			}
		})
	}
}

// serverCert shows the server's own certificate where a host's belongs.
func (s *site) serverCert(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
	return s.authority.TLS().GetCertificate(nil)
}

func TestOldTermIsNotListenedTo(t *testing.T) {
	s := newSite(t)
	m := s.host("h1", nil)
	s.connected("h1")
	s.term.Store(6) // a leader that was paused comes back
	s.server.Drop(errors.New("test"))
	time.Sleep(500 * time.Millisecond)
	if s.link("h1") != nil || m.terms.n.Load() != 7 {
		t.Errorf("the host listens to term 6, having seen 7 (now %d)", m.terms.n.Load())
	}
	s.term.Store(8)
	s.eventually("the next leader", func() bool { return s.link("h1") != nil && m.terms.n.Load() == 8 })
}

func TestHostFindsTheLeader(t *testing.T) {
	s := newSite(t)
	follower := newSite(t)
	follower.authority, follower.leader = s.authority, s.addr
	follower.serve()
	s.host("h1", func(c *hostlink.ClientConfig) { c.Servers = []string{follower.addr} })
	s.connected("h1")
}

func TestSilentHostIsLost(t *testing.T) {
	s := newSite(t)
	proxy := newProxy(t, s.addr)
	s.host("h1", func(c *hostlink.ClientConfig) { c.Servers = []string{proxy.addr} })
	link := s.connected("h1")
	proxy.silence(true)
	s.eventually("the loss", func() bool { return s.link("h1") == nil })
	if _, err := link.Stats(t.Context(), "g"); fault.KindOf(err) != fault.Unavailable {
		t.Errorf("a question to a lost host: %v, want unavailable", err)
	}
	proxy.silence(false)
	s.connected("h1")
}

func TestCertificateIsRenewed(t *testing.T) {
	s := newSite(t)
	_, csr := s.request(t)
	m := s.host("h1", nil)
	m.renew.mu.Lock()
	m.renew.request = csr
	m.renew.mu.Unlock()
	s.eventually("the next certificate", func() bool { m.renew.mu.Lock(); defer m.renew.mu.Unlock(); return m.renew.got != nil })
	block, _ := pem.Decode(m.renew.got)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	if id, err := hostlink.IdentityOf(cert); err != nil || id.Name != "h1" || id.UID != "1" {
		t.Errorf("the new certificate is that of %+v, %v", id, err)
	}
}

// proxy stands between host and server and can fall silent.
type proxy struct {
	addr string
	mu   sync.Mutex // guards mute and conns
	mute bool
	all  []net.Conn
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String()}
	t.Cleanup(func() {
		l.Close()
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, c := range p.all {
			c.Close()
		}
	})
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			p.mu.Lock()
			p.all = append(p.all, in, out)
			p.mu.Unlock()
			go p.copy(out, in)
			go p.copy(in, out)
		}
	}()
	return p
}

func (p *proxy) copy(to, from net.Conn) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		mute := p.mute
		p.mu.Unlock()
		if err != nil {
			return
		}
		if mute {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (p *proxy) silence(mute bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mute = mute
}
