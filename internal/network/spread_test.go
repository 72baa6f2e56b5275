package network

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"spillway.dev/spillway/internal/service"
)

func TestTargetKeepsAddressAndPort(t *testing.T) {
	for _, text := range []string{"10.1.2.3:80", "255.255.255.254:65535", "1.0.0.0:1"} {
		a := netip.MustParseAddrPort(text)
		if got := targetOf(a); got.addr() != a.Addr() || got.port() != a.Port() {
			t.Errorf("targetOf(%s) is %s:%d", text, got.addr(), got.port())
		}
	}
}

// count is how many buckets each target has.
func count(buckets []target) map[target]int {
	out := map[target]int{}
	for _, b := range buckets {
		out[b]++
	}
	return out
}

// checkEven says whether the buckets belong to the wanted targets alone, and evenly.
func checkEven(t *rapid.T, buckets, want []target) {
	have := count(buckets)
	low, high := len(buckets), 0
	for _, w := range want {
		low, high = min(low, have[w]), max(high, have[w])
		delete(have, w)
	}
	if len(have) > 0 || len(want) > 0 && high-low > 1 {
		t.Fatalf("spread over %d targets has shares from %d to %d and strangers %v", len(want), low, high, have)
	}
}

// TestSpreadChangesLittle follows a port through random changes of its endpoints.
func TestSpreadChangesLittle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var have, want []target
		sticky := rapid.Bool().Draw(t, "sticky")
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			old := slices.Clone(want)
			if len(want) > 0 && rapid.Bool().Draw(t, "remove") {
				i := rapid.IntRange(0, len(want)-1).Draw(t, "which")
				want = slices.Delete(slices.Clone(want), i, i+1)
			} else if n := target(rapid.IntRange(1, 40).Draw(t, "new")); !slices.Contains(want, n) {
				want = append(slices.Clone(want), n)
				slices.Sort(want)
			}
			n := service.Buckets(len(want), sticky)
			next := spread(have, want, n)
			checkEven(t, next, want)
			if again := spread(next, want, n); !slices.Equal(again, next) {
				t.Fatalf("spread of the same targets changed %v to %v", next, again)
			}
			switch {
			case len(next) == len(have):
				step{have, next, old, want}.checkMinimal(t)
			case len(want) == len(next) && len(old) == len(have): // one bucket each, before and now
				changed := 0
				for i := range min(len(have), len(next)) {
					if have[i] != next[i] {
						changed++
					}
				}
				if changed > 1 {
					t.Fatalf("from %v to %v %d buckets changed", have, next, changed)
				}
			}
			have = next
		}
	})
}

// step is a change of targets and of the buckets.
type step struct{ have, next, old, want []target }

// checkMinimal says whether only what had to change did: buckets of targets that went, and as many more as new targets
// need.
func (s step) checkMinimal(t *rapid.T) {
	changed, lost := 0, 0
	for i := range s.next {
		if s.next[i] == s.have[i] {
			continue
		}
		changed++
		if !slices.Contains(s.want, s.have[i]) {
			lost++
		}
	}
	gained := 0
	for w, n := range count(s.next) {
		if !slices.Contains(s.old, w) {
			gained += n
		}
	}
	if gone := len(s.old) > len(s.want); gone && changed != lost || !gone && changed != gained {
		t.Fatalf("from %v to %v %d buckets changed; %d were of targets that went, %d go to new ones", s.old, s.want, changed, lost, gained)
	}
}

// TestSpreadSurvivesAChangeOfClass grows and shrinks the number of buckets: a hash keeps its part, so a client keeps its
// endpoint unless a new one took it over.
func TestSpreadSurvivesAChangeOfClass(t *testing.T) {
	four := []target{1, 2, 3, 4}
	five := []target{1, 2, 3, 4, 5}
	small := spread(nil, four, 16)
	large := spread(scale(small, 64), five, 64)
	moved := 0
	for i, now := range large {
		if now != small[i*16/64] {
			moved++
			if now != 5 {
				t.Errorf("bucket %d went from %d to %d, not to the new target", i, small[i*16/64], now)
			}
		}
	}
	if want := count(large)[5]; moved != want {
		t.Errorf("%d buckets moved, want %d", moved, want)
	}
	back := spread(scale(large, 16), four, 16)
	for i, now := range back {
		if was := large[i*64/16]; was != 5 && now != was {
			t.Errorf("on the way back bucket %d went from %d to %d", i, was, now)
		}
	}
}

// TestServiceStateFollowsElements applies every difference to a plain set and reads the state back out of it, as a
// restart does.
func TestServiceStateFollowsElements(t *testing.T) {
	k := ServiceKey{7, netip.MustParseAddr("10.96.0.10")}
	rapid.Check(t, func(t *rapid.T) {
		held := map[element]bool{}
		var state serviceState
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			var want serviceState
			if rapid.IntRange(0, 4).Draw(t, "gone") > 0 {
				want = drawService(t, k).state(state)
			}
			del, add := serviceDifference(k, state, want)
			for _, e := range del {
				if !held[e] {
					t.Fatalf("%v is removed and was not there", e)
				}
				delete(held, e)
			}
			for _, e := range add {
				if held[e] {
					t.Fatalf("%v is added and was there", e)
				}
				held[e] = true
			}
			read := serviceStates{}
			for e := range held {
				read.read(e)
			}
			state = read[k]
			if del, add := serviceDifference(k, state, want); len(del)+len(add) > 0 {
				t.Fatalf("what was read back differs: %v %v", del, add)
			}
		}
	})
}

func drawService(t *rapid.T, k ServiceKey) Service {
	s := Service{ServiceKey: k, Sticky: rapid.Bool().Draw(t, "sticky"), Hosts: rapid.Bool().Draw(t, "hosts")}
	for i, proto := range []string{"TCP", "UDP"} {
		p := service.RoutePort{Number: 53 + i, Protocol: proto}
		for n := range rapid.IntRange(0, 6).Draw(t, "targets") {
			p.Targets = append(p.Targets, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 99, 1, byte(n)}), uint16(rapid.IntRange(1, 3).Draw(t, "port"))))
		}
		s.Ports = append(s.Ports, p)
	}
	return s
}

func TestServiceAddressesOfGroupsAreRefused(t *testing.T) {
	p := plan{cidr: testCIDR}
	for addr, ok := range map[string]bool{"10.96.0.1": true, "100.64.0.1": true, "10.99.0.1": false, "10.99.1.1": false} {
		if err := p.checkService(Service{ServiceKey: ServiceKey{1, netip.MustParseAddr(addr)}}); (err == nil) != ok {
			t.Errorf("checkService(%s) = %v", addr, err)
		}
	}
	if err := p.checkService(Service{ServiceKey: ServiceKey{0, netip.MustParseAddr("10.96.0.1")}}); err == nil {
		t.Error("network 0 was taken")
	}
}
