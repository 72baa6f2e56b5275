// Package platform puts one machine's platform together: store, identity, controller, agent and API in one process.
//
// It is wiring and nothing else: what is built, in which order, and how it is closed. Start at Up; Down and Purge take
// a platform away again.
package platform

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"spillway.dev/spillway/internal/agent"
	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/doctor"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/hostlink"
	"spillway.dev/spillway/internal/httpapi"
	"spillway.dev/spillway/internal/identity"
	"spillway.dev/spillway/internal/network"
	"spillway.dev/spillway/internal/nodeless"
	"spillway.dev/spillway/internal/place"
	"spillway.dev/spillway/internal/port"
	"spillway.dev/spillway/internal/store/embedded"
	"spillway.dev/spillway/internal/store/etcd"
	"spillway.dev/spillway/internal/store/sealed"
)

// Config is `spillway up`.
type Config struct {
	DataDir   string            // default /var/lib/spillway
	Listen    string            // HOST:PORT of the API; port 0 picks a free one
	Location  string            // region name
	Runtime   string            // parked, crun, runc or a path
	Public    []netip.Prefix    // public addresses
	FastPath  network.FastPath  // when TCP between groups of several hosts goes around the network stack; "": auto
	Network   netip.Prefix      // groups' addresses; invalid: chosen at the first start
	Services  netip.Prefix      // addresses of service addresses that ask for none; invalid: the controller's default
	DNSListen string            // HOST:PORT, "": only inside groups
	Shares    map[string]string // azureFile share name → directory
	Mirrors   map[string][]string
	PlainHTTP []string // registries without TLS
	Pool      int      // parked slots; 0: the agent's default, agent.PoolNone: none
	CPUFactor float64  // requested cores that one real core carries
	Pack      []string // pools whose hosts are filled one after the other; those of the others are kept even
	Allow     []string // what of the machine groups may have, see group.ParseAllowance

	HostsListen string        // HOST:PORT to which further hosts connect, "": there are none
	Beat        time.Duration // between two beats of a further host; 0: hostlink.DefaultBeat

	Kubernetes string // HOST:PORT of a Kubernetes beside the platform, "": none; port 0 picks a free one

	Version string
	Getenv  func(string) string
	Stdout  io.Writer
	Log     *slog.Logger
}

// DefaultResourceGroup is made at the first start.
const DefaultResourceGroup = "default"

// validate reports every fault at once.
func (c *Config) validate() error {
	var faults []error
	if _, _, err := net.SplitHostPort(c.Listen); err != nil {
		faults = append(faults, fmt.Errorf("--listen %q: %w", c.Listen, err))
	}
	if c.DNSListen != "" {
		if _, _, err := net.SplitHostPort(c.DNSListen); err != nil {
			faults = append(faults, fmt.Errorf("--dns-listen %q: %w", c.DNSListen, err))
		}
	}
	if c.Kubernetes != "" {
		if _, _, err := net.SplitHostPort(c.Kubernetes); err != nil {
			faults = append(faults, fmt.Errorf("--kubernetes-listen %q: %w", c.Kubernetes, err))
		}
		if c.Services.IsValid() && c.Services.Overlaps(nodeless.Addresses) {
			faults = append(faults, fmt.Errorf("--service-addresses %s: overlaps %s, where --kubernetes has its addresses", c.Services, nodeless.Addresses))
		}
	}
	if c.HostsListen != "" && c.Network.IsValid() {
		if err := host.CheckRange(c.Network); err != nil {
			faults = append(faults, fmt.Errorf("--network with --hosts-listen: %w", err))
		}
	}
	if c.Location == "" {
		faults = append(faults, errors.New("--location must not be empty"))
	}
	if r := c.Services; r.IsValid() && (!r.Addr().Is4() || r.Bits() > 30 || r != r.Masked()) {
		faults = append(faults, fmt.Errorf("--service-addresses %s: must be an IPv4 range of at least four addresses with no host bits set", r))
	}
	for name, dir := range c.Shares {
		if info, err := os.Stat(dir); err != nil || !info.IsDir() {
			faults = append(faults, fmt.Errorf("--share %s=%s: not a directory", name, dir))
		}
	}
	if allow, err := group.ParseAllowance(c.Allow); err != nil {
		faults = append(faults, fmt.Errorf("--allow %w", err))
	} else if allow.Any() && c.Runtime != "" && c.Runtime != "parked" {
		faults = append(faults, fmt.Errorf("--allow needs --runtime parked, not %s", c.Runtime))
	}
	if c.CPUFactor <= 0 {
		faults = append(faults, fmt.Errorf("--cpu-overcommit %g: must be more than 0", c.CPUFactor))
	}
	if c.Pool < agent.PoolNone {
		faults = append(faults, fmt.Errorf("--pool %d: must not be negative", c.Pool))
	}
	if err := errors.Join(faults...); err != nil {
		return fault.New(fault.Invalid, "", "%v", err)
	}
	return nil
}

// Up runs the platform until ctx ends. Groups go on afterwards; the next Up adopts them.
func Up(ctx context.Context, cfg Config) error {
	if err := cfg.validate(); err != nil {
		return err
	}
	if cfg.Beat == 0 {
		cfg.Beat = hostlink.DefaultBeat
	}
	if os.Getuid() != 0 {
		return fault.New(fault.Denied, "", "spillway up must run as root: it makes namespaces, cgroups and mounts.")
	}
	lock, err := cfg.enter()
	if err != nil {
		return err
	}
	defer lock.Close()
	site := &site{Config: cfg}
	if site.allow, err = group.ParseAllowance(cfg.Allow); err != nil {
		return err
	}
	if cfg.Kubernetes != "" {
		if site.programs, err = findPrograms(cfg.DataDir); err != nil {
			return err
		}
	}
	if site.runtimePath, err = findRuntime(cfg.Runtime); err != nil {
		return err
	}
	if site.instance, err = openInstance(ctx, &cfg); err != nil {
		return err
	}
	if services := cfg.Services; services.IsValid() && services.Overlaps(site.instance.CIDR) {
		return fault.New(fault.Invalid, "", "--service-addresses %s overlaps %s, the range of the groups' own addresses. Choose another.", services, site.instance.CIDR)
	}
	return site.run(ctx)
}

// policy is how groups are placed in a pool without a word of its own.
func (c *Config) policy() place.Policy {
	return place.Policy{CPUOvercommit: c.CPUFactor, MemoryOvercommit: 1}
}

// packed are the policies of pools that are to be packed.
func (c *Config) packed() map[string]place.Policy {
	out := map[string]place.Policy{}
	for _, pool := range c.Pack {
		p := c.policy()
		p.Pack = true
		out[pool] = p
	}
	return out
}

// site is a platform whose place is its own: a locked data directory, an instance, a runtime that exists.
type site struct {
	Config
	instance    *instance
	runtimePath string // "": parked
	programs    nodeless.Programs
	allow       group.Allowance
	hostName    string // "": the machine's

	fleet    bool       // this machine is one of several, or may become so
	leased   bool       // the host is of a fleet whose servers are elsewhere
	underlay netip.Addr // where others reach it, when it is a server too
	changed  func()     // what the host says of itself is news
	// hold gives the host's address blocks as the platform knows them, from those of the addresses that are in use here.
	hold  func(context.Context, []netip.Addr) ([]netip.Prefix, error)
	apart []netip.Prefix // of the groups' range: what virtual networks of an earlier version have
}

// run builds everything, in order, and closes it in reverse.
func (s *site) run(ctx context.Context) error {
	cfg := &s.Config
	// What the loops use is closed after they have ended: in reverse order of this function.
	loops, stop := context.WithCancel(ctx)
	defer stop()
	run, loops := errgroup.WithContext(loops)

	member, err := embedded.Start(ctx, filepath.Join(cfg.DataDir, "etcd"))
	if err != nil {
		return fmt.Errorf("start the store: %w", err)
	}
	defer member.Close()
	key, err := sealed.LoadKey(filepath.Join(cfg.DataDir, "store.key"))
	if err != nil {
		return err
	}
	st, err := sealed.New(etcd.New(member.Client()), key)
	if err != nil {
		return err
	}
	ids, first, err := identity.Open(ctx, st, cfg.Log, nil)
	if err != nil {
		return err
	}
	authority, err := identity.OpenAuthority(cfg.DataDir, servedNames(cfg.Listen, cfg.HostsListen)...)
	if err != nil {
		return err
	}
	shared := netip.Prefix{}
	if s.fleet = cfg.HostsListen != ""; s.fleet {
		shared = s.instance.CIDR
	}
	ctrl, err := controller.New(ctx, controller.Config{Store: st, Location: cfg.Location, Log: cfg.Log, Network: shared,
		Policy: cfg.policy(), Pools: cfg.packed(),
		Services: cfg.Services, Reserved: []netip.Prefix{s.instance.CIDR}, LostAfter: hostlink.Missed * cfg.Beat})
	if err != nil {
		return err
	}
	if err := ensureDefaults(ctx, ctrl, ids, cfg.Location); err != nil {
		return err
	}
	if s.apart = ctrl.Apart(); s.fleet {
		s.joinOwn(ctrl)
	}
	h, err := openHost(loops, s, ctrl.From(s.name()))
	if err != nil {
		return err
	}
	defer h.close()

	listener, err := port.Take(ctx, port.Patience, func() (net.Listener, error) { return net.Listen("tcp", cfg.Listen) })
	if err != nil {
		return fault.New(fault.Unavailable, "", "The API cannot listen on %s: %v. Choose another address with --listen.", cfg.Listen, err)
	}
	api := httpapi.Config{Controller: ctrl, Identity: ids, Log: cfg.Log, Version: cfg.Version, Allow: s.allow, Metrics: metrics(h), Stopping: loops.Done()}
	if cfg.HostsListen != "" {
		hosts, err := take(ctx, "--hosts-listen", cfg.HostsListen)
		if err != nil {
			return err
		}
		// One server: it leads, and its terms are counted by its starts.
		lead := &leadership{term: time.Now().Unix(), ctrl: ctrl, holds: func() bool { return true }, ctx: loops}
		f := &fleet{authority: authority, beat: cfg.Beat, now: cfg.wallClock(), lead: func() *leadership { return lead }, log: cfg.Log,
			servers: func() []string { return []string{endpointHost(hosts.Addr().String())} }}
		f.open()
		api.Fleet = f.api(s.instance.CIDR.String())
		run.Go(func() error { return f.serve(loops, hosts) })
	}
	server := httpapi.Server(httpapi.New(api), cfg.Log)
	server.TLSConfig = authority.TLS()

	run.Go(func() error { return ctrl.Run(loops) })
	run.Go(func() error { return ids.Run(loops) })
	run.Go(func() error { return h.agent.Run(loops) })
	run.Go(func() error { return h.dns.Run(loops) })
	ctrl.Connect(h.agent)
	run.Go(func() error { return serve(loops, server, listener) })
	run.Go(func() error { return watchMember(loops, member) })
	run.Go(func() error {
		doctor.LogFloors(loops, cfg.Log, doctor.FindRuntimes(loops, "crun", "runc", s.runtimePath, FindGVisor(cfg.DataDir)))
		return nil
	})

	endpoint := "https://" + endpointHost(listener.Addr().String())
	if _, err := ids.WriteClient(ctx, cfg.DataDir, endpoint, cfg.Location, first); err != nil {
		stop()
		return errors.Join(err, run.Wait())
	}
	fmt.Fprintf(cfg.Stdout, "ready %s\n", endpoint)
	if cfg.Kubernetes != "" {
		run.Go(func() error { return s.kubernetes(loops) })
	}
	err = run.Wait()
	if errors.Is(err, context.Canceled) || ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// endpointHost makes a listener's address one that a client can dial.
func endpointHost(addr string) string {
	hostname, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(hostname); err == nil && ip != nil && ip.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}

// servedNames are the names of this machine under which it is reached at some listeners' addresses: certificates name
// them.
func servedNames(listeners ...string) []string {
	var out []string
	for _, l := range listeners {
		name, _, err := net.SplitHostPort(l)
		if err != nil {
			continue
		}
		if ip := net.ParseIP(name); name != "" && (ip == nil || !ip.IsUnspecified()) {
			out = append(out, name)
			continue
		}
		addrs, err := net.InterfaceAddrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().IsGlobalUnicast() {
				out = append(out, p.Addr().String())
			}
		}
	}
	return out
}

func watchMember(ctx context.Context, m *embedded.Member) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-m.Err():
		return fmt.Errorf("the store has failed: %w", err)
	}
}

// serve answers the API until ctx ends; requests under way get a moment to finish, streams have ended with ctx.
func serve(ctx context.Context, server *http.Server, l net.Listener) error {
	const patience = 2 * time.Second
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		soon, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if server.Shutdown(soon) != nil {
			server.Close()
		}
	}()
	err := server.ServeTLS(l, "", "")
	if errors.Is(err, http.ErrServerClosed) {
		<-stopped
		return nil
	}
	return err
}

// ensureDefaults makes the resource group that commands use when none is named.
func ensureDefaults(ctx context.Context, ctrl *controller.Controller, ids *identity.Service, location string) error {
	for _, s := range ids.Tenant().Subscriptions {
		if _, err := ctrl.ResourceGroup(s.ID, DefaultResourceGroup); err == nil {
			continue
		}
		if _, _, err := ctrl.PutResourceGroup(ctx, controller.ResourceGroup{Subscription: s.ID, Name: DefaultResourceGroup, Location: location}); err != nil {
			return fmt.Errorf("make resource group %s: %w", DefaultResourceGroup, err)
		}
	}
	return nil
}

// pidOf reads the process id of a running platform from its lock file, 0 when none runs.
func pidOf(dir string) int {
	body, err := os.ReadFile(filepath.Join(dir, "up.lock"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(string(body))
	return pid
}
