package network

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"

	"spillway.dev/spillway/internal/fault"
)

func TestPool(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cidr := netip.MustParsePrefix("10.1.2.0/27")
		p := NewGroupPool(cidr)
		now := time.Unix(0, 0)
		held := map[netip.Addr]bool{}
		freed := map[netip.Addr]time.Time{}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 60).Draw(t, "seconds")) * time.Second)
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0, 1:
				a, err := p.Alloc(now)
				if err != nil {
					if len(held) != 29 {
						t.Fatalf("exhausted with %d of 29 held", len(held))
					}
					continue
				}
				if held[a] || !cidr.Contains(a) || a == cidr.Addr() || a == cidr.Addr().Next() || a.String() == "10.1.2.31" {
					t.Fatalf("Alloc gave %s (held %v)", a, held[a])
				}
				if at, ok := freed[a]; ok && now.Sub(at) < Quarantine && len(held)+len(freed) < 29 {
					t.Fatalf("%s reused after %s while others were free", a, now.Sub(at))
				}
				held[a] = true
				delete(freed, a)
			case 2:
				for a := range held {
					p.Release(a, now)
					p.Release(a, now)
					delete(held, a)
					freed[a] = now
					break
				}
			case 3:
				a := netip.AddrFrom4([4]byte{10, 1, 2, byte(rapid.IntRange(0, 40).Draw(t, "host"))})
				err := p.Reserve(a)
				last := a.As4()[3]
				want := fault.Internal
				if last < 2 || last > 30 {
					want = fault.Invalid
				} else if held[a] {
					want = fault.Conflict
				}
				if (err == nil) != (want == fault.Internal) || err != nil && fault.KindOf(err) != want {
					t.Fatalf("Reserve(%s) = %v, want kind %v", a, err, want)
				}
				if err == nil {
					held[a] = true
					delete(freed, a)
				}
			}
			if p.InUse() != len(held) {
				t.Fatalf("InUse = %d, want %d", p.InUse(), len(held))
			}
		}
	})
}

func TestPublicPoolUsesEveryAddress(t *testing.T) {
	p := NewPublicPool([]netip.Prefix{netip.MustParsePrefix("192.0.2.8/31"), netip.MustParsePrefix("192.0.2.20/32")})
	var got []string
	for range 3 {
		a, err := p.Alloc(time.Unix(0, 0))
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a.String())
	}
	if want := "[192.0.2.8 192.0.2.9 192.0.2.20]"; fmt.Sprint(got) != want {
		t.Errorf("addresses = %v, want %v", got, want)
	}
	if _, err := p.Alloc(time.Unix(0, 0)); fault.KindOf(err) != fault.Exhausted {
		t.Errorf("fourth Alloc = %v, want exhausted", err)
	}
}

func TestChooseCIDR(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var used []netip.Prefix
		for range rapid.IntRange(0, 80).Draw(t, "n") {
			used = append(used, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(rapid.IntRange(60, 130).Draw(t, "b")), 3, 0}), rapid.IntRange(9, 32).Draw(t, "bits")).Masked())
		}
		used = append(used, netip.MustParsePrefix("0.0.0.0/0"))
		c, err := ChooseCIDR("12ab", used)
		if err != nil {
			if fault.KindOf(err) != fault.Exhausted {
				t.Fatal(err)
			}
			return
		}
		if c.Bits() != 16 || !pool.Contains(c.Addr()) || overlapsAny(c, used) {
			t.Fatalf("ChooseCIDR = %s, used %v", c, used)
		}
	})
}

func TestConfigRefusals(t *testing.T) {
	good := netip.MustParsePrefix("10.64.0.0/16")
	for name, cfg := range map[string]Config{
		"short instance": {Instance: "1", CIDR: good},
		"upper case":     {Instance: "00AA", CIDR: good},
		"host bits":      {Instance: "00aa", CIDR: netip.MustParsePrefix("10.64.0.1/16")},
		"too small":      {Instance: "00aa", CIDR: netip.MustParsePrefix("10.64.0.0/30")},
		"six":            {Instance: "00aa", CIDR: netip.MustParsePrefix("fd00::/16")},
		"public inside":  {Instance: "00aa", CIDR: good, Public: []netip.Prefix{netip.MustParsePrefix("10.64.1.0/24")}},
	} {
		if _, err := newPlan(cfg); fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: newPlan = %v, want invalid", name, err)
		}
	}
	p, err := newPlan(Config{Instance: "00aa", CIDR: good})
	if err != nil {
		t.Fatal(err)
	}
	if name := p.link(0xffffffff); len(name) > 15 {
		t.Errorf("link name %q is longer than the kernel allows", name)
	}
	if err := p.check(Membership{Addr: p.gateway, Network: 1}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("joining the gateway = %v, want invalid", err)
	}
	if err := p.check(Membership{Addr: p.gateway.Next(), Network: 1, Public: netip.MustParseAddr("1.2.3.4")}); fault.KindOf(err) != fault.Invalid {
		t.Errorf("foreign public address = %v, want invalid", err)
	}
}
