package network

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"spillway.dev/spillway/internal/fault"
)

func TestBlockPool(t *testing.T) {
	cidr := netip.MustParsePrefix("10.1.0.0/16")
	p := NewBlockPool(cidr)
	now := time.Unix(0, 0)
	if _, err := p.Alloc(now); fault.KindOf(err) != fault.Exhausted || !strings.Contains(err.Error(), "no block") {
		t.Errorf("without a block: %v", err)
	}
	for _, bad := range []string{"10.2.0.0/24", "10.0.0.0/15", "10.1.0.5/24"} {
		if err := p.Add(netip.MustParsePrefix(bad)); fault.KindOf(err) != fault.Invalid {
			t.Errorf("Add(%s) = %v, want invalid", bad, err)
		}
	}
	first := netip.MustParsePrefix("10.1.0.0/29")
	for range 2 {
		if err := p.Add(first); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Add(netip.MustParsePrefix("10.1.0.4/30")); fault.KindOf(err) != fault.Conflict {
		t.Errorf("an overlap: %v, want a conflict", err)
	}
	if got := p.Free(); got != 6 { // all but the network address and the gateway
		t.Errorf("Free = %d, want 6", got)
	}
	for range 6 {
		if a, err := p.Alloc(now); err != nil || !first.Contains(a) {
			t.Fatalf("Alloc = %s, %v", a, err)
		}
	}
	if _, err := p.Alloc(now); fault.KindOf(err) != fault.Exhausted || !strings.Contains(err.Error(), "all 6 addresses of [10.1.0.0/29]") {
		t.Errorf("full: %v", err)
	}
	if err := p.Add(netip.MustParsePrefix("10.1.255.252/30")); err != nil {
		t.Fatal(err)
	}
	var got []string
	for range 3 { // all but the broadcast address
		a, err := p.Alloc(now)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, a.String())
	}
	if want := "10.1.255.252 10.1.255.253 10.1.255.254"; strings.Join(got, " ") != want {
		t.Errorf("of the second block: %v, want %s", got, want)
	}
	if _, err := p.Alloc(now); fault.KindOf(err) != fault.Exhausted || p.Free() != 0 {
		t.Errorf("full again: %v, %d free", err, p.Free())
	}
}

// TestBlockPoolGrows adds blocks while addresses come and go: none is given twice, and all are given in the end.
func TestBlockPoolGrows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := NewBlockPool(netip.MustParsePrefix("10.1.0.0/16"))
		now := time.Unix(0, 0)
		held := map[netip.Addr]bool{}
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "op") {
			case 0:
				b := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(rapid.IntRange(0, 9).Draw(t, "block")), 0}), 29)
				if err := p.Add(b); err != nil {
					t.Fatal(err)
				}
			case 1, 2, 3:
				free := p.Free()
				a, err := p.Alloc(now)
				if (err == nil) != (free > 0) || err == nil && held[a] {
					t.Fatalf("Alloc = %s, %v, with %d free, held %v", a, err, free, held[a])
				}
				if err == nil {
					held[a] = true
				}
			case 4:
				for a := range held {
					p.Release(a, now)
					delete(held, a)
					break
				}
			}
			if p.InUse() != len(held) {
				t.Fatalf("InUse = %d, want %d", p.InUse(), len(held))
			}
		}
	})
}
