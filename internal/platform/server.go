package platform

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/hostlink"
	"spillway.dev/spillway/internal/httpapi"
	"spillway.dev/spillway/internal/identity"
	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/store/embedded"
	"spillway.dev/spillway/internal/store/etcd"
	"spillway.dev/spillway/internal/store/sealed"
)

// Store is where servers keep what they share.
type Store struct {
	Endpoints []string // of an etcd cluster; none: an embedded member in the data directory
	TLS       *tls.Config
	KeyFile   string // with which values are sealed; "": in the data directory. All servers of a store need the same
}

// leadershipTTL is how long a leader's place outlives it.
const leadershipTTL = 2 * time.Second

// Server runs one server of a fleet until ctx ends. Hosts are other machines.
func Server(ctx context.Context, cfg Config, kept Store) error {
	if cfg.HostsListen == "" {
		return fault.New(fault.Invalid, "", "--hosts-listen HOST:PORT is missing: where hosts connect.")
	}
	if cfg.Beat == 0 {
		cfg.Beat = hostlink.DefaultBeat
	}
	if err := cfg.validate(); err != nil {
		return err
	}
	lock, err := cfg.enter()
	if err != nil {
		return err
	}
	defer lock.Close()
	r := &replica{Config: cfg}
	return r.run(ctx, kept)
}

// replica is one of several servers over one store. The one that leads serves; the others pass on.
type replica struct {
	Config
	records   *etcd.Store
	sealed    store.Store
	authority *identity.Authority
	electorate
	leads      atomic.Pointer[leading]
	fleet      fleet
	api, hosts net.Listener
}

// leading is a leadership with the API that is served meanwhile.
type leading struct {
	leadership
	serve http.Handler
	calls *calls
}

// calls counts the requests under way, so that a leadership that ends by itself ends after them.
type calls struct {
	mu   sync.Mutex // guards what follows
	n    int
	over chan struct{} // closed when the last has ended, once somebody waits
}

func (c *calls) begin() {
	c.mu.Lock()
	c.n++
	c.mu.Unlock()
}

func (c *calls) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n--; c.n == 0 && c.over != nil {
		close(c.over)
		c.over = nil
	}
}

// handOver is how long a leader that stops lets requests under way finish.
const handOver = time.Second

// wait waits until no request is under way; none begins any more.
func (c *calls) wait() {
	c.mu.Lock()
	over := make(chan struct{})
	if c.n == 0 {
		close(over)
	} else {
		c.over = over
	}
	c.mu.Unlock()
	select {
	case <-over:
	case <-time.After(handOver):
	}
}

func (r *replica) run(ctx context.Context, kept Store) error {
	loops, stop := context.WithCancel(ctx)
	defer stop()
	run, loops := errgroup.WithContext(loops)
	client, end, err := r.openStore(ctx, run, loops, kept)
	if err != nil {
		return err
	}
	defer end()
	r.records = etcd.New(client)
	if kept.KeyFile == "" {
		kept.KeyFile = filepath.Join(r.DataDir, "store.key")
	}
	key, err := sealed.LoadKey(kept.KeyFile)
	if err != nil {
		return err
	}
	if r.sealed, err = sealed.New(r.records, key); err != nil {
		return err
	}
	if r.authority, err = identity.OpenSharedAuthority(ctx, r.sealed, r.DataDir, servedNames(r.Listen, r.HostsListen)...); err != nil {
		return fmt.Errorf("%w (servers that share a store need the same --store-key)", err)
	}
	if err := r.listen(ctx); err != nil {
		return err
	}
	r.fleet = fleet{authority: r.authority, beat: r.Beat, now: r.wallClock(), log: r.Log, lead: r.leadership, leader: func() string {
		place, _ := r.leader(loops)
		return place.Hosts
	}, servers: func() []string { return r.servers(loops) }}
	r.fleet.open()
	server := httpapi.Server(newFollower(&r.electorate, r.authority, r.handler), r.Log)
	server.TLSConfig = r.authority.TLS()
	run.Go(func() error { return serve(loops, server, r.api) })
	run.Go(func() error { return r.fleet.serve(loops, r.hosts) })
	run.Go(func() error { return r.campaign(loops) })
	run.Go(func() error { return r.follow(loops, r.records.WatchLeader) })
	fmt.Fprintf(r.Stdout, "ready %s\n", r.self.API)
	if err = run.Wait(); errors.Is(err, context.Canceled) || ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return err
}

// openStore connects to etcd, or starts a member.
func (r *replica) openStore(ctx context.Context, run *errgroup.Group, loops context.Context, kept Store) (*clientv3.Client, func(), error) {
	if len(kept.Endpoints) == 0 {
		m, err := embedded.Start(ctx, filepath.Join(r.DataDir, "etcd"))
		if err != nil {
			return nil, nil, fmt.Errorf("start the store: %w", err)
		}
		run.Go(func() error { return watchMember(loops, m) })
		return m.Client(), func() { m.Close() }, nil
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: kept.Endpoints, TLS: kept.TLS, DialTimeout: 5 * time.Second, DialKeepAliveTime: 2 * time.Second,
		DialKeepAliveTimeout: 2 * time.Second, Logger: zap.NewNop(), Context: context.WithoutCancel(ctx), MaxCallSendMsgSize: 32 << 20})
	if err != nil {
		return nil, nil, fmt.Errorf("connect to etcd: %w", err)
	}
	return client, func() { client.Close() }, nil
}

// listen takes this server's addresses, and tells itself where it is.
func (r *replica) listen(ctx context.Context) error {
	var err error
	if r.api, err = take(ctx, "--listen", r.Listen); err != nil {
		return err
	}
	if r.hosts, err = take(ctx, "--hosts-listen", r.HostsListen); err != nil {
		return err
	}
	var id [8]byte
	_, _ = rand.Read(id[:])
	r.electorate.self = serverPlace{ID: hex.EncodeToString(id[:]), API: "https://" + endpointHost(r.api.Addr().String()), Hosts: endpointHost(r.hosts.Addr().String())}
	r.electorate.ask, r.electorate.fresh, r.electorate.log = r.records.Leader, leaderFresh, r.Log
	return nil
}

// handler is the API while this server leads, else nil.
func (r *replica) handler() http.Handler {
	l := r.leads.Load()
	if l == nil {
		return nil
	}
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		l.calls.begin()
		defer l.calls.end()
		l.serve.ServeHTTP(w, q)
	})
}

// leadership is this server's, nil when it has none.
func (r *replica) leadership() *leadership {
	if l := r.leads.Load(); l != nil {
		return &l.leadership
	}
	return nil
}

// servers are where all servers listen for hosts.
func (r *replica) servers(ctx context.Context) []string {
	ctx, cancel := context.WithTimeout(ctx, leaderPatience)
	defer cancel()
	list, err := r.records.Candidates(ctx)
	if err != nil {
		r.Log.Warn("ask for the servers", "error", err)
	}
	var out []string
	for _, text := range list {
		var p serverPlace
		if json.Unmarshal([]byte(text), &p) == nil && p.Hosts != "" {
			out = append(out, p.Hosts)
		}
	}
	return out
}

// campaign takes part in elections until ctx ends.
func (r *replica) campaign(ctx context.Context) error {
	value, err := json.Marshal(r.self)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		l, err := r.records.Campaign(ctx, string(value), leadershipTTL)
		if err != nil {
			if ctx.Err() == nil {
				r.Log.Warn("election", "error", err)
				pause(ctx, retryPause)
			}
			continue
		}
		err = r.lead(ctx, l)
		l.Resign()
		if err != nil && ctx.Err() == nil {
			r.Log.Error("leadership ended", "term", l.Term(), "error", err)
			pause(ctx, retryPause)
		}
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// DefaultRange is where the groups of a fleet get their addresses from: a million of them.
var DefaultRange = netip.MustParsePrefix("10.64.0.0/12")

// sharedRange is the range of the fleet's groups: the first server that leads chooses it for ever.
func (r *replica) sharedRange(ctx context.Context, st store.Store) (netip.Prefix, error) {
	e, err := st.Get(ctx, store.Range)
	if errors.Is(err, store.ErrNotFound) {
		cidr := r.Network
		if !cidr.IsValid() {
			cidr = DefaultRange
		}
		_, err := st.Commit(ctx, store.Op{Key: store.Range, Value: []byte(cidr.String()), If: store.Absent})
		return cidr, err
	}
	if err != nil {
		return netip.Prefix{}, err
	}
	cidr, err := netip.ParsePrefix(string(e.Value))
	if err == nil && r.Network.IsValid() && r.Network != cidr {
		r.Log.Warn("--network is not the fleet's range, which cannot change", "network", r.Network, "range", cidr)
	}
	return cidr, err
}

// lead serves until the leadership is lost or ctx ends.
func (r *replica) lead(ctx context.Context, l *etcd.Leadership) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	go func() {
		select {
		case <-l.Lost():
			end(errors.New("the leadership was lost"))
		case <-ctx.Done():
		}
	}()
	st := l.Fence(r.sealed)
	ids, first, err := identity.Open(ctx, st, r.Log, nil)
	if err != nil {
		return err
	}
	shared, err := r.sharedRange(ctx, st)
	if err != nil {
		return err
	}
	ctrl, err := controller.New(ctx, controller.Config{Store: st, Location: r.Location, Log: r.Log, Services: r.Services, Network: shared, Reserved: []netip.Prefix{shared}, LostAfter: hostlink.Missed * r.Beat,
		Policy: r.policy(), Pools: r.packed()})
	if err != nil {
		return err
	}
	if err := ensureDefaults(ctx, ctrl, ids, r.Location); err != nil {
		return err
	}
	// The administrator's credentials are on the server that led first; the others have none to give.
	if _, err := os.Stat(filepath.Join(r.DataDir, identity.ClientFile)); first != nil || err == nil {
		if _, err := ids.WriteClient(ctx, r.DataDir, r.self.API, r.Location, first); err != nil {
			return err
		}
	}
	run, loops := errgroup.WithContext(ctx)
	run.Go(func() error { return ctrl.Run(loops) })
	run.Go(func() error { return ids.Run(loops) })
	api := httpapi.New(httpapi.Config{Controller: ctrl, Identity: ids, Log: r.Log, Version: r.Version, Fleet: r.fleet.api(shared.String()), Stopping: loops.Done()})
	under := &calls{}
	r.leads.Store(&leading{leadership{term: l.Term(), ctrl: ctrl, holds: l.Holds, ctx: loops}, api, under})
	r.Log.Info("this server leads", "term", l.Term())
	<-loops.Done()
	r.leads.Store(nil)
	under.wait()
	r.fleet.link.Drop(errors.New("this server does not lead any more"))
	return errors.Join(context.Cause(loops), run.Wait())
}
