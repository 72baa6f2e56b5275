// Command mutants breaks invariants of the fleet one at a time, and looks whether the tests notice: a suite that lets one live
// does not watch that invariant. Sources are replaced for the build alone, so the tree stays as it is.
//
//	go run ./hack/mutants [NAME…]
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// mutant is one broken invariant: a text of a file that is replaced, and the tests that watch it.
type mutant struct {
	name     string
	file     string
	old, new string
	tests    []string // arguments of go test
}

const simulation = "./internal/sim/fleet"

var mutants = []mutant{
	{"a fenced group does not wait for the end of the lease", "internal/controller/fence.go",
		"a != nil && a.lost && now.Sub(a.since) >= leaseOver(length)", "a != nil && a.lost", []string{simulation}},
	{"a lost host is not withdrawn before its groups move", "internal/controller/failover.go",
		"if !a.lost || a.empty || !c.fenced(a) {", "if !a.lost || a.empty {", []string{"./internal/controller", "-run", "TestLostHostIsWithdrawn"}},
	{"a lost host is not withdrawn at all", "internal/controller/failover.go",
		"if c.loseHosts() {\n\t\t\tc.withdraw(ctx)", "if c.loseHosts() {\n\t\t\t_ = ctx", []string{"./internal/controller", "-run", "TestLostHostIsWithdrawn"}},
	{"a host is let in before it has stopped its old copies", "internal/controller/overlay.go",
		"h.State != host.Ready && (r.Lost || ", "false && (!takes || ", []string{simulation}},
	{"a host may report of others' groups", "internal/controller/report.go",
		"e == nil || e.group.Host != name || !current(e, &s)", "e == nil || !current(e, &s)", []string{simulation}},
	{"a false address is believed", "internal/controller/report.go",
		"c.truthful(name, e.group, &s)", "", []string{simulation}},
	{"an address block is given twice", "internal/controller/overlay.go",
		"!taken[b] && ", "i >= 0 && ", []string{simulation}},
	{"what a group holds is forgotten", "internal/controller/wait.go",
		"if e.holds() {\n\t\tc.idx.fleet.Assign(g)", "if e.holds() && e.status != nil {\n\t\tc.idx.fleet.Assign(g)", []string{simulation}},
	{"a running group's anti-affinity does not bind newcomers", "internal/place/selector.go",
		"t.sel.forbids[at].add(id, n)", "t.sel.forbids[at].add(id, 0)", []string{"./internal/place", "-rapid.nofailfile"}},
	{"a former leader's commits are not fenced", "internal/store/etcd/leader.go",
		"store.Op{Key: f.leader.key, Kind: store.Check, If: f.leader.term}", "store.Op{Key: f.leader.key, Kind: store.Check, If: store.Any}", []string{"./internal/store/embedded"}},
	{"a host listens to an older term", "internal/hostlink/client.go",
		"if w.Term < term {", "if false {", []string{"./internal/hostlink"}},
	{"a server speaks to a host that has seen a newer term", "internal/hostlink/server.go",
		"case h.Term > term:", "case false:", []string{"./internal/hostlink"}},
	{"a host may call itself by another's name", "internal/hostlink/server.go",
		"case h.Host.Name != id.Name:", "case false:", []string{"./internal/hostlink"}},
	{"a ticket is good for any host", "internal/hostlink/server.go",
		"if p == nil || p.host != id.Name {", "if p == nil {", []string{"./internal/hostlink"}},
	{"a join token is good twice", "internal/controller/join.go",
		"store.Op{Key: store.JoinTokenKey(t.ID), Kind: store.Delete, If: used})", "store.Op{Key: store.JoinTokenKey(t.ID), Kind: store.Check, If: used})", []string{"./internal/controller", "-run", "TestTokens"}},
	{"the fast path leads from one network into another", "internal/network/fastpath/way.go",
		"\tc.load(asm.R2, asm.RFP, atNetwork, asm.Word)\n\tc.add(asm.JNE.Reg(asm.R1, asm.R2, \"pass\"))\n", "", []string{"./internal/network", "-run", "TestFastPathForgedOnWire"}},
	{"a withdrawn peer stays on the fast path", "internal/network/fastpath/fastpath.go",
		"func (p *Path) Fence(v View) error {", "func (p *Path) Fence(v View) error {\n\tif len(v.Peers) == 0 {\n\t\treturn nil\n\t}", []string{"./internal/network", "-run", "TestFastPathFences"}},
	{"processors remember ways that have been taken out", "internal/network/fastpath/fastpath.go",
		"\tif p.changed {", "\tif p.changed && p.epoch == 0 {", []string{"./internal/network", "-run", "TestFastPathFences"}},
	{"a removed host is written down anew", "internal/controller/join.go",
		"r.revision == store.Absent && !connected", "r.revision < store.Absent && !connected", []string{"./internal/controller", "-run", "TestRemovedHost"}},
	{"a host's next connection does not wait for the end of the last", "internal/hostlink/server.go",
		"\t\t<-old.finished\n", "", []string{"./internal/hostlink", "-run", "TestConnections"}},
	{"a removed host's certificate is let in", "internal/controller/join.go",
		"r == nil || r.UID == \"\" || r.UID != uid", "r == nil && uid == \"\"", []string{"./internal/controller", "-run", "TestHostIsForgotten"}},
}

func main() {
	chosen := os.Args[1:]
	lived := 0
	for _, m := range mutants {
		if len(chosen) > 0 && !slices.ContainsFunc(chosen, func(c string) bool { return strings.Contains(m.name, c) }) {
			continue
		}
		began := time.Now()
		caught, by, err := m.try()
		verdict := "caught: " + by
		switch {
		case err != nil:
			verdict, lived = "cannot be tried: "+err.Error(), lived+1
		case !caught:
			verdict, lived = "LIVES", lived+1
		}
		fmt.Printf("%5.1fs  %-62s %s\n", time.Since(began).Seconds(), m.name, verdict)
	}
	if lived > 0 {
		fmt.Printf("%d broken invariants were not noticed\n", lived)
		os.Exit(1)
	}
}

// fits says whether the rule is where it was.
func (m mutant) fits(source string) error {
	if strings.Count(source, m.old) != 1 {
		return fmt.Errorf("%s does not have %q once", m.file, m.old)
	}
	return nil
}

// try runs the tests against the broken source.
func (m mutant) try() (caught bool, by string, err error) {
	path, err := filepath.Abs(m.file)
	if err != nil {
		return false, "", err
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return false, "", err
	}
	if err := m.fits(string(body)); err != nil {
		return false, "", err
	}
	dir, err := os.MkdirTemp("", "mutant-")
	if err != nil {
		return false, "", err
	}
	defer os.RemoveAll(dir)
	broken := filepath.Join(dir, filepath.Base(m.file))
	if err := os.WriteFile(broken, []byte(strings.Replace(string(body), m.old, m.new, 1)), 0o600); err != nil {
		return false, "", err
	}
	overlay, err := json.Marshal(map[string]map[string]string{"Replace": {path: broken}})
	if err != nil {
		return false, "", err
	}
	index := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(index, overlay, 0o600); err != nil {
		return false, "", err
	}
	out, err := exec.Command("go", append([]string{"test", "-count=1", "-overlay", index}, m.tests...)...).CombinedOutput()
	if err == nil {
		return false, "", nil
	}
	if strings.Contains(string(out), "[build failed]") {
		return false, "", fmt.Errorf("it does not build:\n%s", out)
	}
	for line := range strings.Lines(string(out)) {
		if line = strings.TrimSpace(line); strings.Contains(line, "_test.go:") {
			return true, line[:min(len(line), 140)], nil
		}
	}
	return true, "the tests fail", nil
}
