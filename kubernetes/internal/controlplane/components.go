package controlplane

import (
	"context"
	"net"
	"net/netip"

	"github.com/spf13/pflag"
	"k8s.io/client-go/rest"
	cliflag "k8s.io/component-base/cli/flag"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	apiserveroptions "k8s.io/kubernetes/cmd/kube-apiserver/app/options"
	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	manageroptions "k8s.io/kubernetes/cmd/kube-controller-manager/app/options"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	scheduleroptions "k8s.io/kubernetes/cmd/kube-scheduler/app/options"
)

// parse sets a component's options by its own flags: they are what its documentation explains.
func parse(sets cliflag.NamedFlagSets, args ...string) error {
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	for _, set := range sets.FlagSets {
		all.AddFlagSet(set)
	}
	return all.Parse(args)
}

func runServer(ctx context.Context, cfg *Config, f *files, l net.Listener) error {
	o := apiserveroptions.NewServerRunOptions()
	err := parse(o.Flags(),
		"--etcd-servers="+f.etcd,
		"--bind-address="+f.host, "--secure-port="+f.port, "--advertise-address="+f.advertised,
		"--tls-cert-file="+f.serving, "--tls-private-key-file="+f.servingKey, "--client-ca-file="+f.ca,
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--enable-bootstrap-token-auth",
		"--service-cluster-ip-range="+cfg.ServiceCIDR.String(),
		// Who checks tokens inside the cluster finds issuer and keys under the same name.
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local", "--service-account-jwks-uri=https://kubernetes.default.svc.cluster.local/openid/v1/jwks",
		"--service-account-key-file="+f.serviceAccounts, "--service-account-signing-key-file="+f.serviceAccounts,
		// Nodes are reached at their addresses, and prove that they are nodes of this cluster.
		"--kubelet-preferred-address-types=InternalIP,Hostname", "--kubelet-certificate-authority="+f.ca,
		"--kubelet-client-certificate="+f.kubeletClient, "--kubelet-client-key="+f.kubeletClientKey,
		"--requestheader-client-ca-file="+f.proxyCA, "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group", "--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file="+f.proxyClient, "--proxy-client-key-file="+f.proxyClientKey,
		// Webhooks and aggregated APIs are reached at their pods: this machine knows the way to them, not to Services.
		"--enable-aggregator-routing",
		"--allow-privileged", "--profiling=false")
	if err != nil {
		return err
	}
	o.SecureServing.Listener = l
	if err := o.GenericServerRunOptions.ComponentGlobalsRegistry.Set(); err != nil {
		return err
	}
	rest.SetDefaultWarningHandler(rest.NoWarnings{}) // a server that talks to itself need not warn itself
	completed, err := o.Complete(ctx)
	if err != nil {
		return err
	}
	if errs := completed.Validate(); len(errs) > 0 {
		return errs[0]
	}
	return apiserver.Run(ctx, completed)
}

func runManager(ctx context.Context, f *files, services netip.Prefix) error {
	o, err := manageroptions.NewKubeControllerManagerOptions()
	if err != nil {
		return err
	}
	all, off, aliases := manager.KnownControllers(), manager.ControllersDisabledByDefault(), manager.ControllerAliases()
	sets := o.Flags(all, off, aliases)
	o.ParsedFlags = &sets
	err = parse(sets,
		"--kubeconfig="+f.manager, "--authentication-kubeconfig="+f.manager, "--authorization-kubeconfig="+f.manager,
		"--controllers=*,bootstrap-signer-controller,token-cleaner-controller", "--use-service-account-credentials",
		"--service-account-private-key-file="+f.serviceAccounts, "--root-ca-file="+f.ca,
		"--cluster-signing-cert-file="+f.ca, "--cluster-signing-key-file="+f.caKey,
		"--service-cluster-ip-range="+services.String(), "--allocate-node-cidrs=false",
		"--leader-elect=false", "--secure-port=0", "--profiling=false")
	if err != nil {
		return err
	}
	c, err := o.Config(ctx, all, off, aliases)
	if err != nil {
		return err
	}
	return manager.Run(ctx, c.Complete())
}

func runScheduler(ctx context.Context, f *files) error {
	o := scheduleroptions.NewOptions()
	err := parse(*o.Flags,
		"--kubeconfig="+f.scheduler, "--authentication-kubeconfig="+f.scheduler, "--authorization-kubeconfig="+f.scheduler,
		"--leader-elect=false", "--secure-port=0", "--profiling=false")
	if err != nil {
		return err
	}
	c, s, err := scheduler.Setup(ctx, o)
	if err != nil {
		return err
	}
	return scheduler.Run(ctx, c, s)
}
