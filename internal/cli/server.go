package cli

import (
	"crypto/tls"
	"crypto/x509"
	"net/netip"
	"os"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/hostlink"
	"spillway.dev/spillway/internal/platform"
)

// etcdFiles are the certificates with which a server speaks to etcd.
type etcdFiles struct{ ca, cert, key string }

func (a *app) serverCommand() *cobra.Command {
	cfg := platform.Config{Stdout: a.stdout, Getenv: a.getenv, Version: Version()}
	var kept platform.Store
	var files etcdFiles
	cidr, services, verbose := "", "", false
	c := &cobra.Command{
		Use: "server", Short: "Run a server of a fleet, without groups on this machine, in the foreground", Args: none,
		Long: "Several servers over one etcd cluster share the work of a fleet: one leads, any answers. Hosts join with 'spillway agent'.\n" +
			"It prints 'ready URL' when it serves; SIGTERM stops it.",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg.Log = a.logger(verbose)
			var err error
			if cfg.Network, err = rangeFlag(cidr); err != nil {
				return err
			}
			if cfg.Services, err = netip.ParsePrefix(services); err != nil {
				return usagef("--service-addresses %q: %v", services, err)
			}
			if kept.TLS, err = files.config(); err != nil {
				return err
			}
			return platform.Server(c.Context(), cfg, kept)
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.DataDir, "data-dir", defaultDataDir, "where the server keeps its keys, and its records without --etcd")
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:8443", "address of the API; port 0 picks a free one")
	f.StringVar(&cfg.HostsListen, "hosts-listen", "", "address to which hosts connect")
	f.StringVar(&cfg.Location, "location", "local", "region name of this fleet")
	f.StringSliceVar(&kept.Endpoints, "etcd", nil, "endpoints of an etcd cluster (default: a member of its own in the data directory)")
	f.StringVar(&files.ca, "etcd-ca", "", "certificate of the authority of etcd's servers")
	f.StringVar(&files.cert, "etcd-cert", "", "certificate for etcd")
	f.StringVar(&files.key, "etcd-key", "", "key of that certificate")
	f.StringVar(&kept.KeyFile, "store-key", "", "file of the key that seals what is in etcd: the same for all servers (default: store.key in the data directory)")
	f.StringVar(&cidr, "network", "", "range of all groups' own addresses, chosen once (default: "+platform.DefaultRange.String()+")")
	f.StringVar(&services, "service-addresses", controller.DefaultServices.String(), "range out of which service addresses get theirs")
	f.StringSliceVar(&cfg.Pack, "pack", nil, "pools whose hosts are filled one after the other; those of other pools are kept even")
	f.Float64Var(&cfg.CPUFactor, "cpu-overcommit", controller.DefaultCPUOvercommit, "requested cores that one real core carries")
	f.DurationVar(&cfg.Beat, "beat", hostlink.DefaultBeat, "time between two signs of life of a host; one that misses three is lost")
	f.BoolVar(&verbose, "verbose", false, "log more")
	return c
}

// rangeFlag reads --network; "" is none.
func rangeFlag(text string) (netip.Prefix, error) {
	if text == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return p, usagef("--network %q: %v", text, err)
	}
	return p, nil
}

// config reads the certificates; nil without any.
func (e etcdFiles) config() (*tls.Config, error) {
	if e == (etcdFiles{}) {
		return nil, nil
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if e.ca != "" {
		body, err := os.ReadFile(e.ca)
		if err != nil {
			return nil, usagef("--etcd-ca: %v", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(body) {
			return nil, usagef("--etcd-ca %s: there is no certificate in it", e.ca)
		}
	}
	if e.cert != "" || e.key != "" {
		pair, err := tls.LoadX509KeyPair(e.cert, e.key)
		if err != nil {
			return nil, usagef("--etcd-cert and --etcd-key: %v", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}
