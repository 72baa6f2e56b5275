package platform

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"spillway.dev/spillway/internal/agent"
	"spillway.dev/spillway/internal/dns"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/image"
	"spillway.dev/spillway/internal/network"
	"spillway.dev/spillway/internal/volume"
)

// machine is this machine's part: images, network, names and the agent.
type machine struct {
	images  *image.Store
	network *network.Network
	dns     *dns.Server
	agent   *agent.Agent
}

func (h *machine) close() {
	if h.network != nil {
		h.network.Close()
	}
	if h.images != nil {
		h.images.Close()
	}
}

// openHost opens the parts of this machine; they work until ctx ends.
func openHost(ctx context.Context, site *site, report func(group.Status)) (_ *machine, err error) {
	cfg, inst, h := &site.Config, site.instance, &machine{}
	defer func() {
		if err != nil {
			h.close()
		}
	}()
	h.images, err = image.Open(ctx, image.Config{Root: filepath.Join(cfg.DataDir, "images"), Mirrors: cfg.Mirrors, PlainHTTP: cfg.PlainHTTP, Log: cfg.Log})
	if err != nil {
		return nil, fmt.Errorf("open images: %w", err)
	}
	h.network, err = network.Open(ctx, network.Config{Instance: inst.ID, CIDR: inst.CIDR, Public: cfg.Public, Log: cfg.Log, FastPath: cfg.FastPath})
	if err != nil {
		return nil, fmt.Errorf("open network: %w", err)
	}
	table := dns.NewTable()
	listen := []string{net.JoinHostPort(h.network.Gateway().String(), "53")}
	if cfg.DNSListen != "" {
		listen = append(listen, cfg.DNSListen)
	}
	ranges := append([]netip.Prefix{inst.CIDR}, cfg.Public...)
	if h.dns, err = dns.New(ctx, dns.Config{Listen: listen, Ranges: ranges, Log: cfg.Log}, table); err != nil {
		return nil, fault.New(fault.Unavailable, "", "The DNS server cannot listen: %v. Choose another address with --dns-listen.", err)
	}
	var held []netip.Prefix
	if site.hold != nil {
		if held, err = site.hold(ctx, h.network.Addresses()); err != nil {
			return nil, err
		}
	}
	var public *network.Pool
	if len(cfg.Public) > 0 {
		public = network.NewPublicPool(cfg.Public)
	}
	h.agent, err = agent.Open(ctx, agent.Config{Name: site.name(), DataDir: cfg.DataDir, RunDir: inst.runDir(), Instance: inst.ID, Version: cfg.Version,
		Runtime: site.runtimePath, GVisor: FindGVisor(cfg.DataDir), PoolSize: cfg.Pool, Leased: site.leased, Location: cfg.Location, Images: h.images, Network: h.network,
		Public: public, Volumes: volume.New(volume.Config{Shares: cfg.Shares, Allow: site.allow, Log: cfg.Log}), Allow: site.allow, Names: table, Report: report,
		Blocks: site.fleet, Held: held, Apart: site.apart, Changed: site.changed, Underlay: site.underlay, Log: cfg.Log, Getenv: cfg.Getenv})
	if err != nil {
		return nil, fmt.Errorf("open agent: %w", err)
	}
	return h, nil
}

// name is what the host is called.
func (s *site) name() string {
	if s.hostName != "" {
		return s.hostName
	}
	return hostName()
}

func hostName() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return name
}
