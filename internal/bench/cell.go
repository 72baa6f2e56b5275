package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/store/etcd"
)

// What a cell is made of.
const (
	cellServers = 3
	cellHosts   = 5
	cellBeat    = 2 * time.Second // the platform's default
)

// cell is a fleet of this program: servers over one etcd, and hosts, each on a machine of its own.
type cell struct {
	*site
	ctx     context.Context // of the relays to its machines
	dir     string
	self    string
	image   []byte
	etcd    *process
	store   string // URL of etcd, as the machines know it
	direct  *clientv3.Client
	servers map[string]*replica
	members []*member
}

// replica is a `spillway server`.
type replica struct {
	on       *machine
	p        *process // nil while it is killed
	endpoint string   // as the machines know it
	api      *client.Client
}

func openCell(ctx context.Context, dir string, image []byte) (_ *cell, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	s, err := newSite()
	if err != nil {
		return nil, err
	}
	c := &cell{site: s, ctx: ctx, dir: dir, self: self, image: image, servers: map[string]*replica{}}
	if err := errors.Join(os.MkdirAll(dir, 0o700), c.open(ctx)); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *cell) open(ctx context.Context) error {
	if err := c.openStore(ctx); err != nil {
		return err
	}
	for i := range cellServers {
		name := string(rune('a' + i))
		on, err := c.machine(name)
		if err != nil {
			return err
		}
		c.servers[name] = &replica{on: on}
		if err := c.startServer(name); err != nil {
			return err
		}
		if i > 0 {
			continue
		}
		if err := until(ctx, readyPatience, func() error { _, err := os.Stat(c.admin()); return err }); err != nil {
			return err
		}
	}
	for _, r := range c.servers {
		var err error
		if r.api, err = r.on.client(c.ctx, c.admin()); err != nil {
			return err
		}
	}
	for i := range cellHosts {
		if err := c.join(ctx, fmt.Sprintf("h%d", i+1)); err != nil {
			return err
		}
	}
	return c.importImage(ctx)
}

func (c *cell) importImage(ctx context.Context) error {
	if err := c.allReady(ctx); err != nil {
		return err
	}
	if _, err := c.api().ImportImage(ctx, bytes.NewReader(c.image)); err != nil {
		return fmt.Errorf("import the payload: %w", err)
	}
	return nil
}

// openStore starts the etcd of the cell.
func (c *cell) openStore(ctx context.Context) error {
	const port = "2379"
	on, err := c.machine("etcd")
	if err != nil {
		return err
	}
	c.store = "http://" + net.JoinHostPort(on.addr, port)
	if c.etcd, _, err = on.serve(filepath.Join(c.dir, "etcd.log"), c.self, PartCommand, "etcd", "--data-dir", filepath.Join(c.dir, "etcd"), "--listen", c.store); err != nil {
		return err
	}
	at, err := on.reach(c.ctx, port)
	if err != nil {
		return err
	}
	c.direct, err = clientv3.New(clientv3.Config{Endpoints: []string{"http://" + at}, DialTimeout: readyPatience, Logger: zap.NewNop(), Context: ctx})
	return err
}

// admin is where the server that led first has put the administrator's credentials.
func (c *cell) admin() string { return filepath.Join(c.dir, "a", "client.json") }

func (c *cell) serverLog(name string) string { return filepath.Join(c.dir, "server-"+name+".log") }

func (c *cell) startServer(name string) error {
	r := c.servers[name]
	at := r.on.addr
	p, endpoint, err := r.on.serve(c.serverLog(name), c.self, "server", "--data-dir", filepath.Join(c.dir, name),
		"--listen", at+":8443", "--hosts-listen", at+":8444", "--etcd", c.store, "--store-key", filepath.Join(c.dir, "store.key"),
		"--beat", cellBeat.String(), "--cpu-overcommit", "1000")
	if err != nil {
		return err
	}
	r.p, r.endpoint = p, endpoint
	return nil
}

// client is a client of the API on the machine, with credentials of a file.
func (m *machine) client(ctx context.Context, path string) (*client.Client, error) {
	cfg, err := client.LoadConfig(path)
	if err != nil {
		return nil, err
	}
	at, err := m.reach(ctx, "8443")
	if err != nil {
		return nil, err
	}
	cfg.Endpoint = "https://" + at
	return client.New(*cfg)
}

// leader finds which server leads, by what etcd says.
func (c *cell) leader(ctx context.Context) (string, error) {
	var found string
	err := until(ctx, readyPatience, func() error {
		text, err := etcd.New(c.direct).Leader(ctx)
		if err != nil {
			return err
		}
		var place struct {
			API string `json:"api"`
		}
		if err := json.Unmarshal([]byte(text), &place); err != nil {
			return err
		}
		for name, r := range c.servers {
			if r.p != nil && r.endpoint == place.API {
				found = name
				return nil
			}
		}
		return errors.New("no server leads")
	})
	return found, err
}

// api is the client of the server that leads, or of any.
func (c *cell) api() *client.Client {
	if name, err := c.leader(c.ctx); err == nil {
		return c.servers[name].api
	}
	return c.servers["a"].api
}

// alive are the names of the servers that run.
func (c *cell) alive() (out []string) {
	for _, name := range slices.Sorted(maps.Keys(c.servers)) {
		if c.servers[name].p != nil {
			out = append(out, name)
		}
	}
	return out
}

// allReady waits until every host takes part.
func (c *cell) allReady(ctx context.Context) error {
	return until(ctx, readyPatience, func() error {
		hosts, err := c.api().Hosts(ctx)
		if err != nil {
			return err
		}
		ready := 0
		for _, h := range hosts {
			if h.State == host.Ready {
				ready++
			}
		}
		if ready < cellHosts {
			return fmt.Errorf("%d of %d hosts are ready", ready, cellHosts)
		}
		return nil
	})
}

// lostInLogs counts what servers have said of lost hosts.
func (c *cell) lostInLogs() (n int) {
	for name := range c.servers {
		body, _ := os.ReadFile(c.serverLog(name))
		n += strings.Count(string(body), "host lost")
	}
	return n
}

// close ends all and takes away what the hosts have made.
func (c *cell) close() error {
	var errs []error
	for _, m := range c.members {
		errs = append(errs, m.purge())
	}
	for _, r := range c.servers {
		if r.api != nil {
			r.api.Close()
		}
		r.p.stop()
	}
	if c.direct != nil {
		c.direct.Close()
	}
	c.etcd.stop()
	c.site.close()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return os.RemoveAll(c.dir)
}
