package agent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"spillway.dev/spillway/internal/dns"
	"spillway.dev/spillway/internal/host"
)

// naming is an agent that knows names and does nothing else.
func naming(t *testing.T, dir string) *Agent {
	t.Helper()
	a := &Agent{cfg: Config{RunDir: dir, Names: dns.NewTable(), Log: slog.New(slog.DiscardHandler)}, named: map[string]bool{}, homes: map[string]home{}}
	a.span = newSpan(a)
	var err error
	if a.networks, err = openNetworks(filepath.Join(dir, "networks.json"), "00aa"); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *Agent) tellName(full, more bool, uids ...string) {
	u := host.Names{Full: full, More: more}
	for _, uid := range uids {
		u.Set = append(u.Set, host.Named{UID: uid, Names: []host.Name{{Name: uid, Addr: netip.MustParseAddr("10.64.0.9"), Public: true}}})
	}
	a.Name(u)
}

func (a *Agent) knows(names ...string) (known []string) {
	for _, n := range names {
		if len(a.cfg.Names.Lookup(n, netip.Addr{})) > 0 {
			known = append(known, n)
		}
	}
	return known
}

// TestNamesOutliveTheAgent: an agent that is started while nobody tells it anything answers as the one before it did, and
// forgets what it is not told again.
func TestNamesOutliveTheAgent(t *testing.T) {
	dir := t.TempDir()
	a := naming(t, dir)
	a.tellName(true, false, "one", "two")
	a.cfg.Names.Set("local", dns.Owner{Names: []dns.Name{{Name: "local", Addr: netip.MustParseAddr("10.64.0.1"), Public: true}}})
	a.cfg.Names.Set(routeOwner("svc"), dns.Owner{Names: []dns.Name{{Name: "svc", Addr: netip.MustParseAddr("10.80.0.1"), Public: true}}})
	ended, end := context.WithCancel(t.Context())
	end()
	a.rememberNames(ended)

	b := naming(t, dir)
	if err := b.recallNames(); err != nil {
		t.Fatal(err)
	}
	all := []string{"one", "two", "three", "local", "svc"}
	for _, x := range []struct {
		what string
		do   func()
		want string
	}{
		{"the recall", func() {}, "[one two local svc]"},
		{"the first part of all names elsewhere", func() { b.tellName(true, true, "three") }, "[one two three local svc]"},
		{"the rest of them", func() { b.tellName(false, false, "two") }, "[two three local svc]"},
		{"all service addresses", func() { b.settle(routeKind) }, "[two three local]"},
		{"all groups that are still here", func() { b.settleGroups(map[string]bool{"local": true}) }, "[two three local]"},
		{"none being here any more", func() { b.settleGroups(nil) }, "[two three]"},
	} {
		x.do()
		if got := fmt.Sprint(b.knows(all...)); got != x.want {
			t.Errorf("after %s it knows %s, want %s", x.what, got, x.want)
		}
	}
}

// TestUnreadableNames: a file that makes no sense is reported, and costs no more than its names.
func TestUnreadableNames(t *testing.T) {
	a := naming(t, t.TempDir())
	if err := os.WriteFile(a.namesFile(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := a.recallNames(); err == nil {
		t.Error("a broken file is taken for names")
	}
}
