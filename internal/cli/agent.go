package cli

import (
	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/agent"
	"spillway.dev/spillway/internal/platform"
)

func (a *app) agentCommand() *cobra.Command {
	cfg := platform.Config{Stdout: a.stdout, Getenv: a.getenv, Version: Version()}
	var j platform.Joining
	var shares, mirrors []string
	var verbose bool
	c := &cobra.Command{
		Use: "agent", Short: "Run this machine as a further host of a fleet, in the foreground", Args: none,
		Long: "Joins the fleet with a token at its first start and connects to its servers from then on. It prints 'ready NAME'\n" +
			"when it does; SIGTERM stops it and leaves the groups running, the next start on the same data directory adopts them.",
		RunE: func(c *cobra.Command, _ []string) error {
			cfg.Log = a.logger(verbose)
			var err error
			if cfg.Shares, err = pairs("--share", shares); err != nil {
				return err
			}
			if cfg.Mirrors, err = lists("--mirror", mirrors); err != nil {
				return err
			}
			if cfg.Pool == 0 {
				cfg.Pool = agent.PoolNone
			}
			return platform.Agent(c.Context(), cfg, j)
		},
	}
	f := c.Flags()
	f.StringVar(&j.Server, "server", "", "URL of the servers' API, to join")
	f.StringVar(&j.Token, "token", "", "join token, from 'spillway token create'")
	f.StringVar(&j.Name, "name", "", "name of the host (default: the machine's)")
	f.StringVar(&j.Pool, "pool-name", "", "pool of the host (default: default)")
	f.StringVar(&j.Zone, "zone", "", "zone in which the machine stands")
	f.StringVar(&j.FaultDomain, "fault-domain", "", "what the machine fails with, within its zone: a rack, say")
	f.StringToStringVar(&j.Labels, "labels", nil, "labels by which groups choose hosts")
	f.StringVar(&cfg.DataDir, "data-dir", defaultDataDir, "where the host keeps its data")
	f.StringVar(&cfg.Location, "location", "local", "region name of the fleet")
	f.StringVar(&cfg.Runtime, "runtime", "parked", "parked, crun, runc, or the path of an OCI runtime")
	f.StringVar(&cfg.DNSListen, "dns-listen", "", "further address of the DNS server")
	f.StringArrayVar(&shares, "share", nil, "NAME=DIR: a directory that azureFile volumes may mount as share NAME")
	f.StringArrayVar(&mirrors, "mirror", nil, "REGISTRY=URL: ask URL first for images of REGISTRY")
	f.StringSliceVar(&cfg.PlainHTTP, "plain-http", nil, "registries that are asked without TLS")
	f.IntVar(&cfg.Pool, "pool", agent.DefaultPoolSize, "sandboxes that are parked in advance; 0 parks none")
	f.StringSliceVar(&cfg.Allow, "allow", nil, "what of this machine groups may have; see 'spillway up --help'")
	fastPathFlag(c, &cfg.FastPath)
	f.BoolVar(&verbose, "verbose", false, "log more")
	return c
}
