package vnet

import (
	"fmt"
	"net/netip"
	"testing"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestAddressesOfASubnet(t *testing.T) {
	for _, c := range []struct {
		prefix      string
		size        int
		first, last string
		none        []string
	}{
		{"10.64.128.0/24", 251, "10.64.128.4", "10.64.128.254", []string{"10.64.128.0", "10.64.128.3", "10.64.128.255", "10.64.129.4", "10.64.127.254"}},
		{"10.64.128.8/29", 3, "10.64.128.12", "10.64.128.14", []string{"10.64.128.11", "10.64.128.15"}},
		{"10.64.0.0/16", 65531, "10.64.0.4", "10.64.255.254", []string{"10.64.255.255"}},
	} {
		p := netip.MustParsePrefix(c.prefix)
		if got := Size(p); got != c.size {
			t.Errorf("Size(%s) = %d, want %d", p, got, c.size)
		}
		for n, want := range map[int]string{0: c.first, c.size - 1: c.last} {
			a := At(p, n)
			if a.String() != want || !Usable(p, a) || Index(p, a) != n {
				t.Errorf("At(%s, %d) = %s, place %d, want %s", p, n, a, Index(p, a), want)
			}
		}
		for _, a := range c.none {
			if Usable(p, netip.MustParseAddr(a)) {
				t.Errorf("Usable(%s, %s), which is reserved or outside", p, a)
			}
		}
	}
}

func TestOverlapping(t *testing.T) {
	for _, c := range []struct {
		list  []netip.Prefix
		a, b  int
		found bool
	}{
		{prefixes("10.0.0.0/24", "10.0.1.0/24"), 0, 0, false},
		{prefixes("10.0.0.0/24", "10.0.1.0/24", "10.0.0.128/25"), 0, 2, true},
		{prefixes("10.0.0.0/30", "10.0.0.0/8"), 0, 1, true},
		{prefixes("10.0.0.0/24", "10.0.0.0/24"), 0, 1, true},
	} {
		if a, b, found := Overlapping(c.list); a != c.a || b != c.b || found != c.found {
			t.Errorf("Overlapping(%v) = %d, %d, %v, want %d, %d, %v", c.list, a, b, found, c.a, c.b, c.found)
		}
	}
}

func TestFree(t *testing.T) {
	within := netip.MustParsePrefix("10.64.128.0/17")
	for _, c := range []struct {
		bits int
		used []netip.Prefix
		want string
	}{
		{20, nil, "10.64.128.0/20"},
		{20, prefixes("10.64.129.0/30"), "10.64.144.0/20"},
		{17, prefixes("10.64.255.252/30"), ""},
		{17, prefixes("10.64.0.0/17"), "10.64.128.0/17"},
		{16, nil, ""},
	} {
		got, ok := Free(within, c.bits, c.used)
		if ok != (c.want != "") || ok && got.String() != c.want {
			t.Errorf("Free(%d, %v) = %s, %v, want %q", c.bits, c.used, got, ok, c.want)
		}
	}
}

func TestWithin(t *testing.T) {
	n := Network{Prefixes: prefixes("10.64.128.0/24", "10.64.130.0/23"), Subnets: []Subnet{{Name: "Web"}}}
	for p, want := range map[string]bool{"10.64.128.0/24": true, "10.64.131.128/25": true, "10.64.128.0/23": false, "10.64.129.0/24": false} {
		if got := n.Within(netip.MustParsePrefix(p)); got != want {
			t.Errorf("Within(%s) = %v, want %v", p, got, want)
		}
	}
	if n.Subnet("wEB") == nil || n.Subnet("we") != nil {
		t.Error("subnets are found by their names in any case, and by nothing else")
	}
}

// TestWithout: what is left of a range has nothing of the others, and together with them is all of it.
func TestWithout(t *testing.T) {
	p := netip.MustParsePrefix
	for _, x := range []struct {
		of     string
		others []netip.Prefix
		want   string
	}{
		{"10.64.0.0/16", nil, "[10.64.0.0/16]"},
		{"10.64.0.0/16", []netip.Prefix{p("10.64.128.0/17")}, "[10.64.0.0/17]"},
		{"10.64.0.0/16", []netip.Prefix{p("10.64.128.0/18"), p("10.0.0.0/16")}, "[10.64.0.0/17 10.64.192.0/18]"},
		{"10.64.0.0/29", []netip.Prefix{p("10.64.0.3/32")}, "[10.64.0.0/31 10.64.0.2/32 10.64.0.4/30]"},
		{"10.64.0.0/16", []netip.Prefix{p("10.0.0.0/8")}, "[]"},
	} {
		if got := fmt.Sprint(Without(p(x.of), x.others)); got != x.want {
			t.Errorf("Without(%s, %v) = %s, want %s", x.of, x.others, got, x.want)
		}
	}
}

func TestPrivate(t *testing.T) {
	for text, want := range map[string]bool{"10.0.0.0/8": true, "10.0.0.0/7": false, "172.16.0.0/12": true, "172.32.0.0/16": false, "192.168.1.0/24": true,
		"192.169.0.0/16": false, "100.64.0.0/10": true, "100.128.0.0/16": false, "203.0.113.0/24": false, "127.0.0.0/8": false, "169.254.0.0/16": false} {
		if got := Private(netip.MustParsePrefix(text)); got != want {
			t.Errorf("Private(%s) = %v, want %v", text, got, want)
		}
	}
	used := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/15"), netip.MustParsePrefix("10.2.0.5/32")}
	if p, ok := FreeSpace(16, used); !ok || p.String() != "10.3.0.0/16" {
		t.Errorf("FreeSpace = %s, %v", p, ok)
	}
}
