// Command spillway-node is a virtual node: it registers in a Kubernetes cluster and runs the pods bound to it as
// container groups of a Spillway platform.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	apinet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/virtualnode"
)

// version is set by the build.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "spillway-node:", err)
		os.Exit(1)
	}
}

// options are the flags as they are given.
type options struct {
	kubeconfig, platform, capacity string
	isolation, labels              map[string]string
	allow                          []string
	noTaint                        bool
	debug                          bool
	cfg                            virtualnode.Config
}

func command() *cobra.Command {
	o := &options{}
	c := &cobra.Command{Use: "spillway-node", Short: "A virtual node: pods run as container groups", Version: version, Args: cobra.NoArgs, SilenceUsage: true, SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error { return o.run(c.Context()) }}
	f := c.Flags()
	c.PersistentFlags().StringVar(&o.kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"), "the cluster; without it, that of the pod this process runs in")
	f.StringVar(&o.platform, "config", "", "the platform's client.json (default: as the spillway command finds it)")
	f.StringVar(&o.cfg.Name, "name", "spillway", "name of the node")
	f.StringVar(&o.cfg.Address, "address", os.Getenv("POD_IP"), "address at which the API server reaches this process (default: this machine's)")
	f.StringVar(&o.cfg.Listen, "listen", ":10250", "HOST:PORT of the kubelet API")
	f.StringVar(&o.cfg.Zone, "zone", "", "zone of the node")
	f.BoolVar(&o.noTaint, "no-taint", false, "register without the taint virtual-kubelet.io/provider=spillway:NoSchedule")
	f.StringVar(&o.capacity, "capacity", "unlimited", "what the scheduler may count on: unlimited, or the subscription's quota")
	f.StringToStringVar(&o.labels, "labels", nil, "further labels of the node")
	f.StringVar(&o.cfg.ResourceGroup, "resource-group", "", "resource group of the container groups (default: that of the configuration)")
	f.StringVar(&o.cfg.Network, "network", "", "virtual network of the pods (default: one of the cluster's own)")
	f.StringVar(&o.cfg.ClusterDNS, "cluster-dns", "", "address of the cluster's name server (default: that of the Service kube-system/kube-dns)")
	f.StringVar(&o.cfg.ClusterDomain, "cluster-domain", "cluster.local", "domain of the cluster")
	f.StringToStringVar(&o.isolation, "runtime-class", map[string]string{"gvisor": "gvisor"}, "handlers of runtime classes and the isolation class of each")
	f.StringSliceVar(&o.allow, "allow", nil, "what a shared platform does not give, but this node may: "+virtualnode.PermissionWords())
	f.DurationVar(&o.cfg.RoomTimeout, "room-timeout", time.Minute, "how long a pod may find no room before it fails")
	f.BoolVar(&o.cfg.Services, "services", true, "make the cluster's Services reachable from pods")
	f.BoolVar(&o.debug, "debug", false, "log more")
	c.AddCommand(benchCommand(&o.kubeconfig), drainCommand(&o.kubeconfig))
	return c
}

func (o *options) run(ctx context.Context) error {
	level := slog.LevelInfo
	if o.debug {
		level = slog.LevelDebug
	}
	o.cfg.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	o.cfg.Version, o.cfg.Taint, o.cfg.Isolation, o.cfg.Labels = version, !o.noTaint, maps.Clone(o.isolation), o.labels
	switch o.capacity {
	case "unlimited":
	case "quota":
		o.cfg.Quota = true
	default:
		return fmt.Errorf("--capacity %q: must be unlimited or quota", o.capacity)
	}
	var err error
	if o.cfg.Allow, err = virtualnode.ParsePermissions(o.allow); err != nil {
		return err
	}
	if err := o.address(); err != nil {
		return err
	}
	if o.cfg.Kube, err = kubeConfig(o.kubeconfig); err != nil {
		return err
	}
	platform, err := client.LoadConfig(client.FindConfig(o.platform, os.Getenv))
	if err != nil {
		return err
	}
	if o.cfg.Platform, err = client.New(*platform); err != nil {
		return err
	}
	defer o.cfg.Platform.Close()
	return virtualnode.Run(ctx, o.cfg)
}

// address finds the address at which the API server reaches this process.
func (o *options) address() error {
	host, _, err := net.SplitHostPort(o.cfg.Listen)
	if err != nil {
		return fmt.Errorf("--listen %q: %w", o.cfg.Listen, err)
	}
	if ip := net.ParseIP(host); o.cfg.Address == "" && ip != nil && !ip.IsUnspecified() && !ip.IsLoopback() {
		o.cfg.Address = host
	}
	if o.cfg.Address == "" {
		ip, err := apinet.ChooseHostInterface()
		if err != nil {
			return fmt.Errorf("this machine has no address that the API server could reach: give one with --address (%w)", err)
		}
		o.cfg.Address = ip.String()
	}
	if ip := net.ParseIP(o.cfg.Address); ip == nil || ip.IsLoopback() {
		return errors.New("--address " + o.cfg.Address + ": must be an IP address, and not loopback: the API server refuses to proxy to such nodes")
	}
	return nil
}

func kubeConfig(path string) (*rest.Config, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		return nil, fmt.Errorf("configuration of the cluster: %w", err)
	}
	// A node of unlimited capacity has thousands of pods: the server's fair queues are limit enough.
	cfg.QPS, cfg.Burst = -1, 0
	cfg.UserAgent = "spillway-node/" + strings.TrimPrefix(version, "v")
	return cfg, nil
}
