package tidy

import (
	"path"
	"slices"
	"strings"
	"testing"
)

// layers are the storeys of the house, lowest first. A package may import packages of lower storeys; of its own storey
// only those that sideways lists.
var layers = []struct {
	name     string
	packages []string
}{
	{"vocabulary", []string{"fault", "group", "host", "service", "store", "vnet"}},
	{"pure", []string{"arm", "converge", "network/overlay", "place", "seccomp", "stream"}},
	{"adapter", []string{"cgroup", "client", "dns", "hostlink", "identity", "image", "keeper", "network", "network/fastpath", "port", "probe", "runtime", "sandbox",
		"store/embedded", "store/etcd", "store/mem", "store/sealed", "volume", "wholefile"}},
	{"service", []string{"agent", "controller", "httpapi", "nodeless", "sim", "virtualnode"}},
	{"command", []string{"bench", "cli", "doctor", "platform", "podbench", "sim/fleet", "tidy"}},
}

// sideways are imports within a storey, each with its reason.
var sideways = map[string]string{
	"host -> group":               "a host is asked to run groups: one vocabulary in two files",
	"host -> service":             "and to carry service addresses",
	"service -> group":            "a service address leads to groups, and is named as they are",
	"vnet -> group":               "subnets are what groups have addresses of, and virtual networks are named as they are",
	"dns -> port":                 "it listens, and may be started again the moment it was killed",
	"keeper -> wholefile":         "the end of a lease must be in its file whole",
	"keeper -> sandbox":           "the keeper starts the sandbox's init and hands it its specification",
	"network -> network/fastpath": "links have programs, which stand apart from how they get there",
	"runtime -> cgroup":           "a runtime is put together of cgroups, keeper and sandbox",
	"runtime -> keeper":           "a runtime is put together of cgroups, keeper and sandbox",
	"runtime -> sandbox":          "a runtime is put together of cgroups, keeper and sandbox",
	"httpapi -> controller":       "the surface in front of the control plane's decisions",
	"platform -> doctor":          "the start-up log names the security floors that doctor knows",
	"cli -> bench":                "a command line reaches every command",
	"cli -> doctor":               "a command line reaches every command",
	"cli -> platform":             "a command line reaches every command",
}

// programs are what a main package, or a package that must know no more of this house, may import.
var programs = map[string][]string{
	"cmd/spillway":      {"internal/cli"},
	"cmd/spillway-node": {"internal/client", "internal/podbench", "internal/virtualnode"},
	// The virtual node is a client of the API as any other; the vocabulary is the client's, too.
	"internal/virtualnode": {"internal/client", "internal/fault", "internal/host"},
	"cmd/spillway-keeper":  {"internal/keeper", "internal/sandbox"},
}

// outside are the storeys' rules about other people's code: vocabulary uses none, and the keeper, which carries every
// container, as little as possible.
var outside = map[string][]string{
	"internal/fault":      {},
	"internal/group":      {},
	"internal/host":       {},
	"internal/service":    {},
	"internal/store":      {},
	"internal/vnet":       {},
	"internal/place":      {},
	"internal/converge":   {},
	"internal/sandbox":    {"golang.org/x/sys/unix"},
	"internal/keeper":     {"golang.org/x/sys/unix"},
	"cmd/spillway-keeper": {"golang.org/x/sys/unix"},
}

func storey(pkg string) int {
	for i, l := range layers {
		if slices.Contains(l.packages, pkg) {
			return i
		}
	}
	return -1
}

func TestImportsGoOneWay(t *testing.T) {
	side := allow(sideways)
	seen := map[string]bool{}
	for _, s := range sources(t) {
		name, ok := strings.CutPrefix(s.pkg, "internal/")
		if s.test || !ok || strings.HasSuffix(s.pkg, "test") {
			continue
		}
		at := storey(name)
		if at < 0 && !seen[name] {
			t.Errorf("package %s stands in no storey: give it one in layers", s.pkg)
		}
		seen[name] = true
		for _, i := range s.imports() {
			to, ok := own(i)
			if !ok || at < 0 {
				continue
			}
			to = strings.TrimPrefix(to, "internal/")
			below := storey(to)
			if below < 0 || below > at || below == at && !side.has(name+" -> "+to) {
				t.Errorf("%s: %s (%s) must not import %s", s.path, name, layers[at].name, to)
			}
		}
	}
	for _, l := range layers {
		for _, name := range l.packages {
			if !seen[name] {
				t.Errorf("package %s of storey %s does not exist", name, l.name)
			}
		}
	}
	side.stale(t)
}

func TestProgramsImportOnlyTheirPart(t *testing.T) {
	for _, s := range sources(t) {
		for _, i := range s.imports() {
			to, ok := own(i)
			if want, listed := programs[s.pkg]; ok && listed && !slices.Contains(want, to) {
				t.Errorf("%s must not import %s", s.path, to)
			}
		}
	}
}

// clustered are the packages that may link Kubernetes: everything else works where there is none.
var clustered = []string{"cmd/spillway-node", "internal/podbench", "internal/virtualnode", "test"}

func TestKubernetesStaysInTheVirtualNode(t *testing.T) {
	n := 0
	for _, s := range sources(t) {
		if strings.HasPrefix(s.pkg, "kubernetes") {
			continue
		}
		for _, i := range s.imports() {
			if !strings.HasPrefix(i, "k8s.io/") {
				continue
			}
			if n++; !slices.Contains(clustered, s.pkg) {
				t.Errorf("%s must not import %s: Kubernetes stays in the virtual node", s.path, i)
			}
		}
	}
	if n == 0 {
		t.Error("nothing imports Kubernetes: the rule is of no use")
	}
}

func TestLowStoreysStandAlone(t *testing.T) {
	found := map[string]bool{}
	for _, s := range sources(t) {
		want, listed := outside[s.pkg]
		found[s.pkg] = true
		if !listed || s.test {
			continue
		}
		for _, i := range s.imports() {
			_, ours := own(i)
			if first, _, _ := strings.Cut(i, "/"); !ours && strings.Contains(first, ".") && !slices.Contains(want, i) {
				t.Errorf("%s must not import %s: package %s stands on the standard library", s.path, i, path.Base(s.pkg))
			}
		}
	}
	for pkg := range outside {
		if !found[pkg] {
			t.Errorf("package %s does not exist", pkg)
		}
	}
}
