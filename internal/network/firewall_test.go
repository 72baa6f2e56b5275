package network

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// rules changes the rules of a namespace.
func (w *world) rules(ns *os.File, change func(c *nftables.Conn)) {
	w.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		w.t.Fatal(err)
	}
	change(c)
	if err := c.Flush(); err != nil {
		w.t.Fatal(err)
	}
}

// TestFastPathBesideFirewall: packets pass the rules of a machine that has some, unless they are said to go past them.
func TestFastPathBesideFirewall(t *testing.T) {
	t.Parallel()
	_, a, b := newPair(t)
	a.group(2, 7)
	a.mirror(a.ns[2], "0.0.0.0:9000")
	talk, err := a.call(a.ns[1], "tcp4", b.addr(1).String()+":8080")
	if err != nil {
		t.Fatal(err)
	}
	a.goesFast("without a firewall", talk, true)

	theirs := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"}
	forward := &nftables.Chain{Name: "FORWARD", Table: theirs, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter}
	a.rules(a.host, func(c *nftables.Conn) {
		c.AddTable(theirs)
		c.AddChain(forward)
		nat := c.AddChain(&nftables.Chain{Name: "POSTROUTING", Table: theirs, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		c.AddRule(&nftables.Rule{Table: theirs, Chain: nat, Exprs: []expr.Any{&expr.Counter{}}})
		c.AddRule(&nftables.Rule{Table: theirs, Chain: c.AddChain(&nftables.Chain{Name: "unused", Table: theirs}), Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}})
	})
	a.goesFast("with chains that refuse nothing", talk, true)

	a.rules(a.host, func(c *nftables.Conn) {
		c.AddRule(&nftables.Rule{Table: theirs, Chain: forward, Exprs: []expr.Any{&expr.Counter{}}})
	})
	a.goesFast("with a rule", talk, false)
	if want := `chain "FORWARD" of table "filter"`; a.net.fast.rests != want {
		t.Errorf("packets take the stack because of %s, want %s", a.net.fast.rests, want)
	}
	start := a.sent(a.net.plan.link(2))
	if err := through(a.ns[1], a.addr(2).String()+":9000", 1<<20); err != nil || a.sent(a.net.plan.link(2)) < start+10 {
		t.Errorf("with a rule, on the same host: %v, by the stack %d packets", err, a.sent(a.net.plan.link(2))-start)
	}
	a.rules(a.host, func(c *nftables.Conn) { c.FlushChain(forward) })
	a.goesFast("without the rule", talk, true)

	drop := nftables.ChainPolicyDrop
	forward.Policy = &drop
	a.rules(a.host, func(c *nftables.Conn) { c.AddChain(forward) })
	a.follow()
	if name, _, err := talk.say(); err == nil {
		t.Errorf("what the firewall refuses is answered by %q", name)
	}
	a.net.Close()
	a.fastPath = FastOn
	a.open()
	a.set(a.overlay)
	again, err := a.call(a.ns[1], "tcp4", b.addr(1).String()+":8080")
	if err != nil {
		t.Fatalf("past the firewall: %v", err)
	}
	a.goesFast("past the firewall", again, true)
}

// TestForeignRules is about tables of the old kind, which are there as soon as somebody has looked for them.
func TestForeignRules(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, c := range []struct{ table, want string }{{"", ""}, {"nat", ""}, {"filter", "table filter of iptables (legacy)"}} {
		if c.table != "" && !w.legacy(c.table) {
			t.Skip("the kernel has no such tables")
		}
		if got, err := w.net.foreignRules(); err != nil || got != c.want {
			t.Errorf("with table %q: %q, %v, want %q", c.table, got, err, c.want)
		}
	}
}

// legacy asks for a table, which makes it.
func (w *world) legacy(table string) (made bool) {
	w.t.Helper()
	w.in(w.host, func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		const getInfo = 64
		info := slices.Concat([]byte(table), make([]byte, 84-len(table)))
		size := uint32(len(info))
		_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s), unix.SOL_IP, getInfo, uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&size)), 0)
		made = e == 0
		return nil
	})
	return made
}

func TestFastPathIsOneOfThree(t *testing.T) {
	t.Parallel()
	_, err := Open(context.Background(), Config{Instance: "00aa", CIDR: testCIDR, FastPath: "maybe"})
	if err == nil || !strings.Contains(err.Error(), `fast path "maybe": it must be auto, on or off`) {
		t.Errorf("%v, want a refusal", err)
	}
}
