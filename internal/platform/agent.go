package platform

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"spillway.dev/spillway/internal/doctor"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/hostlink"
	"spillway.dev/spillway/internal/identity"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/network"
	"spillway.dev/spillway/internal/wholefile"
)

// Joining is what `spillway agent` needs when its machine is not of a fleet yet, and what the machine says of itself.
type Joining struct {
	Server      string // URL of the servers' API
	Token       string
	Name        string // of the host; "": the machine's
	Pool        string
	Zone        string
	FaultDomain string
	Labels      map[string]string
}

// membership is what a host remembers of its fleet.
type membership struct {
	Name    string   `json:"name"`
	Servers []string `json:"servers"` // HOST:PORT
	Network string   `json:"network"`
	Term    int64    `json:"term"`
}

// Files of a host in its data directory.
const (
	hostFile = "host.json"
	pairFile = "host.pem" // certificate and key: one file, so that they always fit each other
)

// Agent runs this machine as a host of a fleet until ctx ends. Its groups go on afterwards.
func Agent(ctx context.Context, cfg Config, j Joining) error {
	if os.Getuid() != 0 {
		return fault.New(fault.Denied, "", "spillway agent must run as root: it makes namespaces, cgroups and mounts.")
	}
	lock, err := cfg.enter()
	if err != nil {
		return err
	}
	defer lock.Close()
	m, err := openMember(ctx, cfg.DataDir, &j)
	if err != nil {
		return err
	}
	if cfg.Network, err = m.network(); err != nil {
		return err
	}
	s := &site{Config: cfg, hostName: m.Name, fleet: true, leased: true}
	if s.allow, err = group.ParseAllowance(cfg.Allow); err != nil {
		return err
	}
	if s.runtimePath, err = findRuntime(cfg.Runtime); err != nil {
		return err
	}
	if err := freeRange(&cfg); err != nil {
		return err
	}
	if s.instance, err = openInstance(ctx, &cfg); err != nil {
		return err
	}
	return s.runHost(ctx, m, &j)
}

// freeRange makes sure, before this machine becomes a host, that none of its own addresses and routes are in the fleet's range.
func freeRange(cfg *Config) error {
	if _, err := readInstance(cfg.DataDir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	used, err := network.HostPrefixes()
	if err != nil {
		return err
	}
	for _, p := range used {
		if p.Bits() > 0 && p.Overlaps(cfg.Network) {
			return fault.New(fault.Conflict, "", "This machine cannot be a host of the fleet: %s is in use here, and the groups of the fleet have %s. A machine is one host of one fleet, and none of its own addresses and routes are in that fleet's range.", p, cfg.Network)
		}
	}
	return nil
}

// runHost builds this machine's part, in order, and closes it in reverse.
func (s *site) runHost(ctx context.Context, m *member, j *Joining) error {
	loops, stop := context.WithCancel(ctx)
	defer stop()
	run, loops := errgroup.WithContext(loops)
	var client atomic.Pointer[hostlink.Client]
	s.changed = func() {
		if c := client.Load(); c != nil {
			c.Changed()
		}
	}
	h, err := openHost(loops, s, func(st group.Status) {
		if c := client.Load(); c != nil {
			c.Report(st)
		}
	})
	if err != nil {
		return err
	}
	defer h.close()
	h.agent.Introduce(j.Pool, j.Zone, j.FaultDomain, j.Labels)
	c, err := hostlink.NewClient(hostlink.ClientConfig{Local: h.agent, Servers: m.Servers, Learn: m.learn, TLS: m.tls(), Term: m, Renewal: m,
		Leased: h.agent.Leased, Clock: keeper.Boottime, Now: s.wallClock(), Log: s.Log})
	if err != nil {
		return err
	}
	client.Store(c)
	run.Go(func() error { return h.agent.Run(loops) })
	run.Go(func() error { return h.dns.Run(loops) })
	run.Go(func() error { return c.Run(loops) })
	run.Go(func() error {
		doctor.LogFloors(loops, s.Log, doctor.FindRuntimes(loops, "crun", "runc", s.runtimePath, FindGVisor(s.DataDir)))
		return nil
	})
	fmt.Fprintf(s.Stdout, "ready %s\n", m.Name)
	if err = run.Wait(); errors.Is(err, context.Canceled) {
		err = nil
	}
	return err
}

// member is this machine's place in its fleet, on the disk.
type member struct {
	dir       string
	authority *x509.CertPool

	mu sync.Mutex // guards what follows
	membership
	cert    *tls.Certificate
	pending []byte // key of a certificate that was asked for
}

var (
	_ hostlink.TermFile = (*member)(nil)
	_ hostlink.Renewal  = (*member)(nil)
)

// openMember reads this machine's place in its fleet, or joins.
func openMember(ctx context.Context, dir string, j *Joining) (*member, error) {
	m := &member{dir: dir}
	body, err := os.ReadFile(filepath.Join(dir, hostFile))
	if errors.Is(err, fs.ErrNotExist) {
		if err := m.join(ctx, j); err != nil {
			return nil, err
		}
		body, err = os.ReadFile(filepath.Join(dir, hostFile))
	}
	if err == nil {
		err = json.Unmarshal(body, &m.membership)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, hostFile), err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, identity.CAFile))
	if err != nil {
		return nil, err
	}
	m.authority = x509.NewCertPool()
	m.authority.AppendCertsFromPEM(ca)
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, pairFile), filepath.Join(dir, pairFile))
	if err != nil {
		return nil, fmt.Errorf("read the host's certificate: %w", err)
	}
	m.cert = &cert
	return m, nil
}

// join buys a certificate with a token. The file that says that it has joined is written last.
func (m *member) join(ctx context.Context, j *Joining) error {
	if j.Token == "" || j.Server == "" {
		return fault.New(fault.Invalid, "", "This machine is of no fleet yet: give --server URL and --token TOKEN ('spillway token create' on the fleet makes one).")
	}
	if _, err := os.Stat(filepath.Join(m.dir, "etcd")); err == nil {
		return fault.New(fault.Conflict, "", "The data directory %s is that of a platform. Use another with --data-dir.", m.dir)
	}
	t, err := hostlink.ParseToken(j.Token)
	if err != nil {
		return err
	}
	if j.Name == "" {
		j.Name = strings.ToLower(hostName())
	}
	key, csr, err := hostlink.NewKey()
	if err != nil {
		return err
	}
	answer, err := hostlink.Join(ctx, j.Server, j.Name, t, csr)
	if err != nil {
		return err
	}
	if len(answer.Servers) == 0 {
		return fault.New(fault.Unavailable, "", "The servers at %s do not say where hosts connect.", j.Server)
	}
	state, err := json.Marshal(membership{Name: j.Name, Servers: answer.Servers, Network: answer.Network})
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		body []byte
	}{{pairFile, append([]byte(answer.Certificate), key...)}, {identity.CAFile, []byte(answer.Authority)}, {hostFile, state}} {
		if err := wholefile.WriteSynced(filepath.Join(m.dir, f.name), f.body); err != nil {
			return err
		}
	}
	return nil
}

// network is the range of the fleet's groups.
func (m *member) network() (netip.Prefix, error) {
	p, err := netip.ParsePrefix(m.Network)
	if err != nil {
		return p, fault.New(fault.Unavailable, "", "The servers did not say which range the groups' addresses are from (%q). Upgrade them, then remove this host, empty its data directory %s and join again.", m.Network, m.dir)
	}
	return p, nil
}

func (m *member) tls() *tls.Config {
	return hostlink.HostTLS(m.authority, func() (*tls.Certificate, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.cert, nil
	})
}

// learn keeps where the servers are; a failure costs a longer search after the next start.
func (m *member) learn(servers []string) {
	_ = m.change(func(next *membership) { next.Servers = servers })
}

// change writes what this machine remembers of its fleet.
func (m *member) change(edit func(*membership)) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := m.membership
	edit(&next)
	body, err := json.Marshal(next)
	if err == nil {
		err = wholefile.WriteSynced(filepath.Join(m.dir, hostFile), body)
	}
	if err == nil {
		m.membership = next
	}
	return err
}

// Load implements hostlink.TermFile.
func (m *member) Load() (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.Term, nil
}

// Store implements hostlink.TermFile.
func (m *member) Store(term int64) error {
	return m.change(func(next *membership) { next.Term = term })
}

// Request implements hostlink.Renewal: when a third of the certificate's life is left.
func (m *member) Request(now time.Time) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pending != nil || m.cert.Leaf.NotAfter.Sub(now) > identity.HostLife/3 {
		return nil, nil
	}
	key, csr, err := hostlink.NewKey()
	if err != nil {
		return nil, err
	}
	m.pending = key
	return csr, nil
}

// Take implements hostlink.Renewal.
func (m *member) Take(certPEM []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := m.pending
	m.pending = nil
	pair, err := tls.X509KeyPair(certPEM, key)
	if err != nil {
		return fmt.Errorf("the server's answer: %w", err)
	}
	if err := wholefile.WriteSynced(filepath.Join(m.dir, pairFile), append(slices.Clone(certPEM), key...)); err != nil {
		return err
	}
	m.cert = &pair
	return nil
}
