// Package controlplane runs a Kubernetes control plane in one process: etcd, kube-apiserver, kube-controller-manager
// and kube-scheduler, with nothing but a data directory. It has no nodes of its own: those are virtual.
//
// The components are upstream's, configured by their own flags; what is ours is the wiring, the certificates and the
// kubeconfigs. Start at Run.
package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"
)

// Config is a control plane.
type Config struct {
	DataDir       string
	Listen        string            // HOST:PORT of the API
	Advertise     netip.Addr        // address at which pods reach the API, never loopback; invalid: chosen
	AdvertisePort int               // port there; 0: that of Listen
	ServiceCIDR   netip.Prefix      // addresses of Services
	Names         []string          // further names and addresses in the API's certificate
	Addons        map[string]string // add-on → its image, which every node has: coredns, metrics-server
	Ready         func(endpoint string)
	Usable        func() // a node is there and the name server answers; never called without the add-on coredns
}

// files are the paths of what the components read.
type files struct {
	ca, caKey, serving, servingKey         string
	kubeletClient, kubeletClientKey        string
	metrics, metricsKey                    string
	proxyCA, proxyClient, proxyClientKey   string
	serviceAccounts                        string
	admin, manager, scheduler              string
	etcd, endpoint, host, port, advertised string
}

// Run runs the control plane until ctx ends, or until a component fails.
func Run(ctx context.Context, cfg Config) error {
	began := time.Now()
	if err := checkAddons(cfg.Addons); err != nil {
		return err
	}
	f, listener, err := prepare(&cfg)
	if err != nil {
		return err
	}
	m, err := startEtcd(ctx, filepath.Join(cfg.DataDir, "etcd"))
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	defer m.etcd.Close()
	f.etcd = m.endpoint
	// The store outlives the components: they write until they have ended.
	run, loops := errgroup.WithContext(ctx)
	run.Go(func() error { return ended(loops, "kube-apiserver", runServer(loops, &cfg, f, listener)) })
	run.Go(func() error {
		select {
		case err := <-m.etcd.Err():
			return fmt.Errorf("etcd has failed: %w", err)
		case <-loops.Done():
			return nil
		}
	})
	run.Go(func() error {
		if err := awaitReady(loops, f); err != nil {
			return err
		}
		run.Go(func() error { return ended(loops, "kube-controller-manager", runManager(loops, f, cfg.ServiceCIDR)) })
		run.Go(func() error { return ended(loops, "kube-scheduler", runScheduler(loops, f)) })
		if err := awaitAccounts(loops, f.admin); err != nil {
			return err
		}
		if cfg.Ready != nil {
			cfg.Ready(f.endpoint)
		}
		if err := runAddons(loops, &cfg, f, began); err != nil && loops.Err() == nil {
			return fmt.Errorf("add-ons: %w", err)
		}
		return nil
	})
	return run.Wait()
}

// ended names the component in its error; one that ends by itself has failed.
func ended(ctx context.Context, component string, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	if err == nil {
		err = errors.New("it has ended by itself")
	}
	return fmt.Errorf("%s: %w", component, err)
}

// prepare makes certificates, keys and kubeconfigs, and opens the listener, so that a free port is known to all.
func prepare(cfg *Config) (*files, net.Listener, error) {
	pki := filepath.Join(cfg.DataDir, "pki")
	if err := os.MkdirAll(pki, 0o700); err != nil {
		return nil, nil, err
	}
	if err := chooseAdvertised(cfg); err != nil {
		return nil, nil, err
	}
	listener, asked, err := listen(cfg)
	if err != nil {
		return nil, nil, err
	}
	f, err := makeFiles(cfg, pki, asked)
	if err == nil {
		f.host, f.port, err = net.SplitHostPort(listener.Addr().String())
	}
	if err != nil {
		return nil, nil, errors.Join(err, listener.Close())
	}
	return f, listener, nil
}

func makeFiles(cfg *Config, pki, address string) (*files, error) {
	f := &files{}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	f.endpoint, f.advertised = "https://"+net.JoinHostPort(host, port), cfg.Advertise.String()
	ca, err := openAuthority(pki, "ca")
	if err != nil {
		return nil, err
	}
	proxy, err := openAuthority(pki, "proxy-ca")
	if err != nil {
		return nil, err
	}
	f.ca, f.caKey, f.proxyCA = ca.file, filepath.Join(pki, "ca.key"), proxy.file
	if f.serviceAccounts, err = signingKey(pki); err != nil {
		return nil, err
	}
	if f.serving, f.servingKey, err = ca.keep(pki, "kube-apiserver", serverSubject(cfg, host)); err != nil {
		return nil, err
	}
	client := subject{name: "kube-apiserver-kubelet-client", organizations: []string{"system:masters"}, usage: x509.ExtKeyUsageClientAuth}
	if f.kubeletClient, f.kubeletClientKey, err = ca.keep(pki, "kubelet-client", client); err != nil {
		return nil, err
	}
	if f.metrics, f.metricsKey, err = ca.keep(pki, "metrics-server", metricsSubject()); err != nil {
		return nil, err
	}
	if f.proxyClient, f.proxyClientKey, err = proxy.keep(pki, "proxy-client", subject{name: "front-proxy-client", usage: x509.ExtKeyUsageClientAuth}); err != nil {
		return nil, err
	}
	return f, f.kubeconfigs(cfg.DataDir, ca)
}

// kubeconfigs writes them anew at every start: the address of the API may have changed.
func (f *files) kubeconfigs(dir string, ca *authority) error {
	f.admin, f.manager, f.scheduler = filepath.Join(dir, "kubeconfig"), filepath.Join(dir, "pki", "kube-controller-manager.kubeconfig"), filepath.Join(dir, "pki", "kube-scheduler.kubeconfig")
	user := func(name string, organizations ...string) subject {
		return subject{name: name, organizations: organizations, usage: x509.ExtKeyUsageClientAuth}
	}
	return errors.Join(ca.kubeconfig(f.admin, f.endpoint, user("kubernetes-admin", "system:masters")),
		ca.kubeconfig(f.manager, f.endpoint, user("system:kube-controller-manager")),
		ca.kubeconfig(f.scheduler, f.endpoint, user("system:kube-scheduler")))
}

func serverSubject(cfg *Config, host string) subject {
	first := cfg.ServiceCIDR.Masked().Addr().Next()
	s := subject{name: "kube-apiserver", usage: x509.ExtKeyUsageServerAuth,
		names:     []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		addresses: []net.IP{net.IPv4(127, 0, 0, 1), first.AsSlice(), cfg.Advertise.AsSlice()}}
	for _, n := range append(cfg.Names, host) {
		if ip := net.ParseIP(n); ip != nil {
			s.addresses = append(s.addresses, ip)
		} else {
			s.names = append(s.names, n)
		}
	}
	return s
}

// readyTimeout is how long the API may take to become ready.
const readyTimeout = 2 * time.Minute

// awaitReady waits until the API says that it is ready.
func awaitReady(ctx context.Context, f *files) error {
	ca, err := os.ReadFile(f.ca)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	defer client.CloseIdleConnections()
	for deadline := time.Now().Add(readyTimeout); ctx.Err() == nil; {
		resp, err := client.Get(f.endpoint + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
			err = errors.New("/readyz answers " + strconv.Itoa(resp.StatusCode))
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("kube-apiserver is not ready after %s: %w", readyTimeout, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	return ctx.Err()
}
