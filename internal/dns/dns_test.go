package dns

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"pgregory.net/rapid"
)

// upstream is a server that answers every name with 192.0.2.7 and counts.
func upstream(t *testing.T) (string, *atomic.Int32) {
	t.Helper()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", pc.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	h := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		asked.Add(1)
		a := new(dns.Msg).SetReply(q)
		n := 1
		if strings.HasPrefix(q.Question[0].Name, "many.") {
			if n = 200; w.RemoteAddr().Network() == "udp" {
				a.Truncated, n = true, 0
			}
		}
		for i := range n {
			rr, _ := dns.NewRR(fmt.Sprintf("%s 60 IN A 192.0.2.%d", q.Question[0].Name, 7+i%200))
			a.Answer = append(a.Answer, rr)
		}
		w.WriteMsg(a)
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: h}, {Listener: l, Handler: h}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	return pc.LocalAddr().String(), &asked
}

func start(t *testing.T) (*Server, string, *atomic.Int32) {
	t.Helper()
	up, asked := upstream(t)
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("# x\nnameserver "+up+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s, err := New(ctx, Config{Listen: []string{"127.0.0.1:0", "127.0.0.1:0"}, Ranges: []netip.Prefix{netip.MustParsePrefix("10.64.0.0/16")}, ResolvConf: conf}, NewTable())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
	return s, s.Addrs()[0], asked
}

func ask(t *testing.T, network, server, name string, kind uint16) string {
	t.Helper()
	c := &dns.Client{Net: network, Timeout: 3 * time.Second}
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), kind)
	a, _, err := c.Exchange(q, server)
	if err != nil {
		return err.Error()
	}
	out := []string{dns.RcodeToString[a.Rcode]}
	for _, rr := range a.Answer {
		out = append(out, strings.Fields(rr.String())[4])
	}
	sort.Strings(out[1:])
	return strings.Join(out, " ")
}

func ip(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestAnswers(t *testing.T) {
	s, at, asked := start(t)
	// Questions of this test come from 127.0.0.1: it plays a group of network 1.
	s.Set("me", Owner{Addr: ip("127.0.0.1"), Network: 1, Names: []Name{{Name: "me.rg.local.spillway.internal", Addr: ip("10.64.0.2")}}})
	s.Set("web", Owner{Addr: ip("10.64.0.3"), Network: 2, Names: []Name{
		{Name: "Web.local.spillway.internal", Addr: ip("10.64.0.3"), Public: true},
		{Name: "web.rg.local.spillway.internal", Addr: ip("10.64.0.3")},
	}})
	for _, network := range []string{"udp", "tcp"} {
		for _, c := range []struct {
			name string
			kind uint16
			want string
		}{
			{"web.LOCAL.spillway.internal", dns.TypeA, "NOERROR 10.64.0.3"},
			{"web.local.spillway.internal", dns.TypeAAAA, "NOERROR"},
			{"me.rg.local.spillway.internal", dns.TypeA, "NOERROR 10.64.0.2"},
			{"web.rg.local.spillway.internal", dns.TypeA, "NXDOMAIN"},
			{"nosuch.local.spillway.internal", dns.TypeA, "NXDOMAIN"},
			{"3.0.64.10.in-addr.arpa", dns.TypePTR, "NOERROR web.local.spillway.internal."},
			{"9.0.64.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN"},
			{"web.local.spillway.internal", dns.TypeANY, "REFUSED"},
		} {
			if got := ask(t, network, at, c.name, c.kind); got != c.want {
				t.Errorf("%s %s %s = %q, want %q", network, c.name, dns.TypeToString[c.kind], got, c.want)
			}
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("%d names of the platform were forwarded", n)
	}
	s.Set("web", Owner{Addr: ip("10.64.0.9"), Network: 1, Names: []Name{{Name: "web.rg.local.spillway.internal", Addr: ip("10.64.0.9")}}})
	if got := ask(t, "udp", at, "web.rg.local.spillway.internal", dns.TypeA); got != "NOERROR 10.64.0.9" {
		t.Errorf("after the move to network 1: %q", got)
	}
	if got := ask(t, "udp", at, "web.local.spillway.internal", dns.TypeA); got != "NXDOMAIN" {
		t.Errorf("after the label went: %q", got)
	}
	s.Remove("web")
	if got := ask(t, "udp", at, "web.rg.local.spillway.internal", dns.TypeA); got != "NXDOMAIN" {
		t.Errorf("after Remove: %q", got)
	}
}

func TestForwardsAndRemembers(t *testing.T) {
	_, at, asked := start(t)
	for range 3 {
		if got := ask(t, "udp", at, "example.test", dns.TypeA); got != "NOERROR 192.0.2.7" {
			t.Errorf("forwarded = %q", got)
		}
	}
	if n := asked.Load(); n != 1 {
		t.Errorf("upstream was asked %d times, want once", n)
	}
	if got := ask(t, "tcp", at, "many.test", dns.TypeA); strings.Count(got, "192.") != 200 {
		t.Errorf("large answer by TCP has %d addresses, want 200", strings.Count(got, "192."))
	}
	c := &dns.Client{Net: "udp", Timeout: 3 * time.Second}
	a, _, err := c.Exchange(new(dns.Msg).SetQuestion("many.test.", dns.TypeA), at)
	if err != nil {
		t.Fatal(err)
	}
	if a.Compress = true; !a.Truncated || a.Len() > 512 {
		t.Errorf("large answer by UDP: truncated %v, %d bytes", a.Truncated, a.Len())
	}
}

func TestFloodIsDropped(t *testing.T) {
	s, _, _ := start(t)
	allowed := 0
	for range 3 * burst {
		if s.allow(ip("10.64.0.5")) {
			allowed++
		}
	}
	if allowed < burst || allowed > 2*burst {
		t.Errorf("%d of %d questions allowed, want about %d", allowed, 3*burst, burst)
	}
	if !s.allow(ip("10.64.0.6")) {
		t.Error("one source's flood stops another")
	}
}

// TestNetworksNeverMix checks the table against the plain reading of the rule.
func TestNetworksNeverMix(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		table := NewTable()
		live := map[string]Owner{}
		name := rapid.SampledFrom([]string{"a.x", "b.x", "c.x"})
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			owner := fmt.Sprint("o", rapid.IntRange(0, 5).Draw(t, "owner"))
			if rapid.Bool().Draw(t, "remove") {
				table.Remove(owner)
				delete(live, owner)
				continue
			}
			a := ip("10.0.0." + owner[1:])
			o := Owner{Addr: a, Network: uint32(rapid.IntRange(0, 2).Draw(t, "network")),
				Names: []Name{{Name: name.Draw(t, "name"), Addr: a, Public: rapid.Bool().Draw(t, "public")}}}
			table.Set(owner, o)
			live[owner] = o
		}
		for _, from := range live {
			for _, n := range []string{"a.x", "b.x", "c.x"} {
				want, public := map[netip.Addr]bool{}, map[netip.Addr]bool{}
				for _, o := range live {
					switch {
					case o.Names[0].Name != n:
					case o.Names[0].Public:
						public[o.Addr] = true
					case o.Network == from.Network && o.Network != 0:
						want[o.Addr] = true
					}
				}
				if len(want) == 0 { // a network's own names win
					want = public
				}
				got := table.Lookup(n, from.Addr)
				if len(got) != len(want) {
					t.Fatalf("Lookup(%s) from %s = %v, want %v", n, from.Addr, got, want)
				}
				for _, a := range got {
					if !want[a] {
						t.Fatalf("Lookup(%s) from %s gave %s", n, from.Addr, a)
					}
				}
			}
		}
	})
}

func FuzzAnswer(f *testing.F) {
	q, _ := new(dns.Msg).SetQuestion("web.local.spillway.internal.", dns.TypeA).Pack()
	f.Add(q)
	s := &Server{Table: NewTable(), cfg: Config{Ranges: []netip.Prefix{netip.MustParsePrefix("10.64.0.0/16")}}, forward: newForwarder("/nonexistent", nil)}
	f.Fuzz(func(t *testing.T, b []byte) {
		m := new(dns.Msg)
		if m.Unpack(b) != nil {
			return
		}
		a := s.answer(m, ip("10.64.0.2"))
		if _, err := a.Pack(); err != nil {
			t.Errorf("answer to %v cannot be sent: %v", m, err)
		}
	})
}

// TestSpaces: who asks elsewhere than groups do is none, and what the addresses of a network's own space are called is nobody
// else's business.
func TestSpaces(t *testing.T) {
	s, at, asked := start(t)
	s.Set("me", Owner{Addr: ip("127.0.0.1"), Network: 1, Names: []Name{{Name: "me.rg.local.spillway.internal", Addr: ip("10.0.0.4")}}})
	s.SetSpaces(map[uint32][]netip.Prefix{1: {netip.MustParsePrefix("10.0.0.0/16")}, 2: {netip.MustParsePrefix("10.1.0.0/16")}})
	elsewhere := s.Addrs()[1]
	for _, c := range []struct {
		server, name string
		kind         uint16
		want         string
		forwarded    int32
	}{
		{at, "me.rg.local.spillway.internal", dns.TypeA, "NOERROR 10.0.0.4", 0},
		{at, "4.0.0.10.in-addr.arpa", dns.TypePTR, "NOERROR me.rg.local.spillway.internal.", 0},
		{at, "9.0.0.10.in-addr.arpa", dns.TypePTR, "NXDOMAIN", 0},
		{at, "9.0.1.10.in-addr.arpa", dns.TypePTR, "", 1},
		{elsewhere, "me.rg.local.spillway.internal", dns.TypeA, "NXDOMAIN", 1},
		{elsewhere, "8.0.0.10.in-addr.arpa", dns.TypePTR, "", 2},
	} {
		got := ask(t, "udp", c.server, c.name, c.kind)
		if c.want != "" && got != c.want || asked.Load() != c.forwarded {
			t.Errorf("%s = %q, %d forwarded, want %q, %d", c.name, got, asked.Load(), c.want, c.forwarded)
		}
	}
}
