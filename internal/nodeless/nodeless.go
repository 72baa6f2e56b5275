// Package nodeless runs a Kubernetes beside a platform: a control plane and one virtual node as child processes, and
// what the cluster needs of the platform, which is an address on this machine and the images of its add-ons.
//
// It starts programs and keeps them; it never speaks to the cluster. The children do not outlive this process, however
// it ends, and lose nothing by that: pods are container groups, and go on. Start at Run; Purge takes away what is
// outside the data directory.
package nodeless

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// Config is a cluster.
type Config struct {
	Dir          string // of the cluster's state, logs and kubeconfig
	Listen       string // HOST:PORT of the cluster's API; port 0 picks a free one
	Instance     string // of the platform: four hexadecimal digits
	ClientConfig string // path of the platform's client.json
	Programs     Programs
	Allow        []string                          // what the virtual node lets pods have of the machine
	Usable       func(endpoint, kubeconfig string) // called once, when pods run and names can be asked
	Log          *slog.Logger
}

// Programs are the paths of what a cluster is made of.
type Programs struct {
	ControlPlane, Node, CoreDNS string
	MetricsServer               string // "": no figures, no autoscaling
}

// nodeName is the node that runs everything.
const nodeName = "spillway"

// How long the children get to end; together less than a platform has.
const (
	nodeGrace    = time.Second
	controlGrace = 2 * time.Second
)

// Kubeconfig is where the administrator of a cluster finds it.
func (c *Config) Kubeconfig() string { return filepath.Join(c.Dir, "kubeconfig") }

// Run runs the cluster until ctx ends.
func Run(ctx context.Context, cfg Config) error {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return err
	}
	addr, err := address(cfg.Instance)
	if err != nil {
		return err
	}
	if err := addAddress(addr, cfg.Instance); err != nil {
		return err
	}
	images, err := openImages(map[string]string{"coredns": cfg.Programs.CoreDNS, "metrics-server": cfg.Programs.MetricsServer})
	if err != nil {
		return err
	}
	defer images.close()
	c := &cluster{cfg: cfg, addr: addr, listen: cfg.Listen, addons: images.flag(), ready: make(chan struct{})}
	run, loops := errgroup.WithContext(ctx)
	// The node ends first: it still tells the control plane what it did.
	control, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	run.Go(func() error { images.keep(loops, cfg.ClientConfig, cfg.Log); return nil })
	run.Go(func() error {
		return keep(control, &program{name: "control plane", path: cfg.Programs.ControlPlane, args: c.controlArgs, line: c.heard, grace: controlGrace,
			logFile: filepath.Join(cfg.Dir, "control-plane.log"), log: cfg.Log})
	})
	run.Go(func() error {
		defer end()
		select {
		case <-c.ready:
		case <-loops.Done():
			return nil
		}
		return keep(loops, &program{name: "virtual node", path: cfg.Programs.Node, args: c.nodeArgs, line: func(string) {}, grace: nodeGrace,
			logFile: filepath.Join(cfg.Dir, "node.log"), log: cfg.Log})
	})
	return run.Wait()
}

// cluster is what the children are told, and what they tell.
type cluster struct {
	cfg    Config
	addr   netip.Addr
	addons string

	// Both are written while the control plane speaks and read before it starts again.
	listen, endpoint string

	ready               chan struct{}
	onceReady, onceUsed sync.Once
}

func (c *cluster) controlArgs() []string {
	return []string{"--data-dir", c.cfg.Dir, "--listen", c.listen, "--advertise-address", c.addr.String(), "--advertise-port", "6443", "--addons", c.addons}
}

func (c *cluster) nodeArgs() []string {
	args := []string{"--kubeconfig", c.cfg.Kubeconfig(), "--config", c.cfg.ClientConfig, "--name", nodeName, "--no-taint",
		"--address", c.addr.String(), "--listen", net.JoinHostPort(c.addr.String(), "10250")}
	if len(c.cfg.Allow) > 0 {
		args = append(args, "--allow", strings.Join(c.cfg.Allow, ","))
	}
	return args
}

// heard reads what the control plane says on its standard output.
func (c *cluster) heard(line string) {
	switch endpoint, ok := strings.CutPrefix(line, "ready "); {
	case ok:
		c.endpoint, c.listen = endpoint, samePort(c.listen, endpoint)
		c.onceReady.Do(func() { close(c.ready) })
	case line == "usable":
		c.onceUsed.Do(func() { c.cfg.Usable(c.endpoint, c.cfg.Kubeconfig()) })
	}
}

// samePort makes a control plane that starts again listen where it did: the kubeconfigs that people hold go on working.
func samePort(listen, endpoint string) string {
	host, _, err := net.SplitHostPort(listen)
	u, parsed := url.Parse(endpoint)
	if err != nil || parsed != nil || u.Port() == "" {
		return listen
	}
	return net.JoinHostPort(host, u.Port())
}

// Purge removes what a cluster has on the machine outside its directory. It is idempotent.
func Purge(instance string) error {
	addr, err := address(instance)
	if err != nil {
		return err
	}
	if err := removeAddress(addr, instance); err != nil {
		return fmt.Errorf("remove the cluster's address %s: %w", addr, err)
	}
	return nil
}
