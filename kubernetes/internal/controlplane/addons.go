package controlplane

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"spillway.dev/spillway/kubernetes/internal/addon"
)

// domain of the cluster's names.
const domain = "cluster.local"

// metricsSubject is whom the API server expects when it asks the metrics server.
func metricsSubject() subject {
	const name = addon.MetricsServer + ".kube-system.svc"
	return subject{name: name, names: []string{name}, usage: x509.ExtKeyUsageServerAuth}
}

// dnsOffset is where in the range of Services the name server has its address, as everywhere.
const dnsOffset = 10

func clusterDNS(services netip.Prefix) netip.Addr {
	a := services.Masked().Addr()
	for range dnsOffset {
		a = a.Next()
	}
	return a
}

// runAddons applies the add-ons until that has worked, and waits until names of the cluster can be asked.
func runAddons(ctx context.Context, cfg *Config, f *files, began time.Time) error {
	kube, err := clientcmd.BuildConfigFromFlags("", f.admin)
	if err != nil {
		return err
	}
	v := addon.Values{Domain: domain, ClusterDNS: clusterDNS(cfg.ServiceCIDR).String()}
	for _, p := range []struct {
		file string
		to   *string
	}{{f.metrics, &v.Certificate}, {f.metricsKey, &v.Key}, {f.ca, &v.Authority}} {
		body, err := os.ReadFile(p.file)
		if err != nil {
			return err
		}
		*p.to = base64.StdEncoding.EncodeToString(body)
	}
	const retry = time.Second
	for name, image := range cfg.Addons {
		v.Image = image
		for {
			err := addon.Apply(ctx, kube, name, v)
			if err == nil {
				break
			}
			klog.FromContext(ctx).Error(err, "add-on", "name", name)
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(retry):
			}
		}
	}
	if cfg.Addons[addon.CoreDNS] == "" {
		return nil
	}
	if err := addon.AwaitDNS(ctx, kube, began); err != nil {
		return err
	}
	if cfg.Usable != nil {
		cfg.Usable()
	}
	return nil
}

// checkAddons refuses what does not exist.
func checkAddons(addons map[string]string) error {
	var faults []error
	for name, image := range addons {
		if !addon.Known(name) || image == "" {
			faults = append(faults, fmt.Errorf("add-on %s=%s: there are %s and %s, each with its image", name, image, addon.CoreDNS, addon.MetricsServer))
		}
	}
	return errors.Join(faults...)
}
