package cli

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/agent"
	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/hostlink"
	"spillway.dev/spillway/internal/network"
	"spillway.dev/spillway/internal/platform"
)

// defaultDataDir is where a platform keeps its data.
const defaultDataDir = "/var/lib/spillway"

func (a *app) upCommand() *cobra.Command {
	cfg := platform.Config{Stdout: a.stdout, Getenv: a.getenv, Version: Version()}
	var public, shares, mirrors []string
	var cidr, services string
	var verbose, kubernetes bool
	kubernetesListen := ""
	c := &cobra.Command{
		Use:   "up",
		Short: "Run the platform on this machine, in the foreground",
		Long: "Runs server and agent in one process. It prints 'ready URL' when it serves; SIGTERM stops it and leaves the\n" +
			"groups running, the next 'up' on the same data directory adopts them.\n\n" +
			"With --kubernetes it also runs a Kubernetes whose only node is virtual, and prints 'kubernetes URL KUBECONFIG' when\n" +
			"pods run there and names can be asked.",
		Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg.Log = a.logger(verbose)
			var err error
			if cfg.Public, err = prefixes(public); err != nil {
				return err
			}
			if cfg.Network, err = rangeFlag(cidr); err != nil {
				return err
			}
			if cfg.Services, err = netip.ParsePrefix(services); err != nil {
				return usagef("--service-addresses %q: %v", services, err)
			}
			if cfg.Shares, err = pairs("--share", shares); err != nil {
				return err
			}
			if cfg.Mirrors, err = lists("--mirror", mirrors); err != nil {
				return err
			}
			if cfg.Pool == 0 {
				cfg.Pool = agent.PoolNone
			}
			switch {
			case kubernetes:
				cfg.Kubernetes = kubernetesListen
			case c.Flags().Changed("kubernetes-listen"):
				return usagef("--kubernetes-listen needs --kubernetes")
			}
			return platform.Up(c.Context(), cfg)
		},
	}
	f := c.Flags()
	f.StringVar(&cfg.DataDir, "data-dir", defaultDataDir, "where the platform keeps its data")
	f.StringVar(&cfg.Listen, "listen", "127.0.0.1:8443", "address of the API; port 0 picks a free one")
	f.StringVar(&cfg.Location, "location", "local", "region name of this platform")
	f.StringVar(&cfg.Runtime, "runtime", "parked", "parked, crun, runc, or the path of an OCI runtime")
	f.StringSliceVar(&public, "public-addresses", nil, "ranges out of which groups with a public IP address get one")
	f.StringVar(&cidr, "network", "", "range of the groups' own addresses (default: a free one, chosen once)")
	f.StringVar(&services, "service-addresses", controller.DefaultServices.String(), "range out of which service addresses get theirs")
	f.StringVar(&cfg.DNSListen, "dns-listen", "", "further address of the DNS server")
	f.StringArrayVar(&shares, "share", nil, "NAME=DIR: a directory that azureFile volumes may mount as share NAME")
	f.StringArrayVar(&mirrors, "mirror", nil, "REGISTRY=URL: ask URL first for images of REGISTRY")
	f.StringSliceVar(&cfg.PlainHTTP, "plain-http", nil, "registries that are asked without TLS")
	f.IntVar(&cfg.Pool, "pool", agent.DefaultPoolSize, "sandboxes that are parked in advance; 0 parks none")
	f.StringSliceVar(&cfg.Pack, "pack", nil, "pools whose hosts are filled one after the other; those of other pools are kept even")
	f.Float64Var(&cfg.CPUFactor, "cpu-overcommit", controller.DefaultCPUOvercommit, "requested cores that one real core carries")
	f.StringSliceVar(&cfg.Allow, "allow", nil, "what of this machine groups may have: host-network, host-pid, host-ipc, host-path, host-path=/DIR, privileged (default: nothing)")
	f.StringVar(&cfg.HostsListen, "hosts-listen", "", "address to which further hosts connect ('spillway agent'); without it this machine is the only one")
	f.DurationVar(&cfg.Beat, "beat", hostlink.DefaultBeat, "time between two signs of life of a further host; one that misses three is lost")
	f.BoolVar(&kubernetes, "kubernetes", false, "also run a Kubernetes: control plane, one virtual node, name server, metrics server")
	f.StringVar(&kubernetesListen, "kubernetes-listen", "127.0.0.1:6443", "address of the Kubernetes API; port 0 picks a free one")
	fastPathFlag(c, &cfg.FastPath)
	f.BoolVar(&verbose, "verbose", false, "log more")
	return c
}

// fastPathFlag is of all commands with a part in the network.
func fastPathFlag(c *cobra.Command, v *network.FastPath) {
	c.Flags().StringVar((*string)(v), "fast-path", string(network.FastAuto), "lead TCP between groups of several hosts around this machine's network stack, by BPF: on, off, or auto, where the machine has no firewall of its own")
}

// logger writes what happens to standard error.
func (a *app) logger(verbose bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: level}))
}

func (a *app) downCommand() *cobra.Command {
	dir, purge := defaultDataDir, false
	c := &cobra.Command{
		Use:   "down",
		Short: "Stop the platform of this machine; groups go on unless --purge",
		Args:  none,
		RunE: func(c *cobra.Command, _ []string) error {
			was, err := platform.Down(c.Context(), dir)
			if err != nil {
				return err
			}
			switch {
			case was:
				fmt.Fprintf(a.stdout, "stopped the platform of %s\n", dir)
			case !purge:
				fmt.Fprintf(a.stdout, "no platform runs on %s\n", dir)
			}
			if !purge {
				return nil
			}
			if err := platform.Purge(c.Context(), dir, slog.New(slog.NewTextHandler(a.stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))); err != nil {
				return fmt.Errorf("purge %s: %w", dir, err)
			}
			fmt.Fprintf(a.stdout, "removed everything of %s\n", dir)
			return nil
		},
	}
	c.Flags().StringVar(&dir, "data-dir", defaultDataDir, "data directory of the platform")
	c.Flags().BoolVar(&purge, "purge", false, "also remove every group, mount, namespace, cgroup, rule, link and file of it")
	return c
}

func prefixes(texts []string) ([]netip.Prefix, error) {
	var list []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, usagef("--public-addresses %q: %v", text, err)
		}
		list = append(list, p.Masked())
	}
	return list, nil
}

func pairs(flag string, texts []string) (map[string]string, error) {
	m := map[string]string{}
	for _, text := range texts {
		name, value, ok := strings.Cut(text, "=")
		if !ok || name == "" || value == "" {
			return nil, usagef("%s %q: must be NAME=VALUE", flag, text)
		}
		m[name] = value
	}
	return m, nil
}

func lists(flag string, texts []string) (map[string][]string, error) {
	m := map[string][]string{}
	for _, text := range texts {
		one, err := pairs(flag, []string{text})
		if err != nil {
			return nil, err
		}
		for name, value := range one {
			m[name] = append(m[name], value)
		}
	}
	return m, nil
}
