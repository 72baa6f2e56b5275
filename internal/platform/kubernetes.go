package platform

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/nodeless"
)

// findPrograms finds what --kubernetes starts. Errors: invalid, with all that is missing.
func findPrograms(dataDir string) (nodeless.Programs, error) {
	var p nodeless.Programs
	var missing []string
	for _, f := range []struct {
		name string
		to   *string
	}{{"spillway-kubernetes", &p.ControlPlane}, {"spillway-node", &p.Node}, {"coredns", &p.CoreDNS}} {
		if *f.to = findProgram(dataDir, f.name); *f.to == "" {
			missing = append(missing, f.name)
		}
	}
	if len(missing) > 0 {
		return p, fault.New(fault.Invalid, "", "--kubernetes: missing %s. 'make build kubernetes' builds what it needs; put it beside spillway, into %s, or on the path.",
			strings.Join(missing, ", "), filepath.Join(dataDir, "bin"))
	}
	p.MetricsServer = findProgram(dataDir, "metrics-server")
	return p, nil
}

// kubernetes runs a cluster beside the platform until ctx ends. The platform serves already: the cluster is its client.
func (s *site) kubernetes(ctx context.Context) error {
	if s.programs.MetricsServer == "" {
		s.Log.Warn("there is no metrics-server: kubectl top and autoscaling have no figures ('make kubernetes' builds it)")
	}
	return nodeless.Run(ctx, nodeless.Config{Dir: filepath.Join(s.DataDir, "kubernetes"), Listen: s.Kubernetes, Instance: s.instance.ID,
		ClientConfig: filepath.Join(s.DataDir, "client.json"), Programs: s.programs, Log: s.Log, Allow: s.allow.Words(),
		Usable: func(endpoint, kubeconfig string) { fmt.Fprintf(s.Stdout, "kubernetes %s %s\n", endpoint, kubeconfig) }})
}
