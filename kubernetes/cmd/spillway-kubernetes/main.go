// Command spillway-kubernetes is a Kubernetes control plane in one process: etcd, API server, controller manager and
// scheduler. Its nodes are virtual.
package main

import (
	"context"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"spillway.dev/spillway/kubernetes/internal/controlplane"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "spillway-kubernetes:", err)
		os.Exit(1)
	}
}

func run() error {
	cfg := controlplane.Config{ServiceCIDR: netip.MustParsePrefix("10.96.0.0/16")}
	flags := flag.NewFlagSet("spillway-kubernetes", flag.ExitOnError)
	flags.StringVar(&cfg.DataDir, "data-dir", "/var/lib/spillway-kubernetes", "state, certificates and the kubeconfig")
	flags.StringVar(&cfg.Listen, "listen", "127.0.0.1:6443", "HOST:PORT of the API; port 0 picks a free one")
	flags.TextVar(&cfg.ServiceCIDR, "service-cidr", cfg.ServiceCIDR, "addresses of Services")
	flags.TextVar(&cfg.Advertise, "advertise-address", netip.Addr{}, "address at which pods reach the API (default: the one it listens on, or this machine's when that is loopback)")
	flags.IntVar(&cfg.AdvertisePort, "advertise-port", 0, "port there (default: that of --listen)")
	names := flags.String("cert-names", "", "further names and addresses in the API's certificate, separated by commas")
	addons := flags.String("addons", "", "NAME=IMAGE,…: what runs in the cluster as pods; there are coredns and metrics-server")
	klog.InitFlags(flags)
	if err := flags.Parse(os.Args[1:]); err != nil {
		return err
	}
	if *names != "" {
		cfg.Names = strings.Split(*names, ",")
	}
	cfg.Addons = map[string]string{}
	for _, pair := range strings.FieldsFunc(*addons, func(r rune) bool { return r == ',' }) {
		name, image, _ := strings.Cut(pair, "=")
		cfg.Addons[name] = image
	}
	cfg.Usable = func() { fmt.Println("usable") }
	cfg.Ready = func(endpoint string) { fmt.Println("ready", endpoint) }
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	return controlplane.Run(ctx, cfg)
}
