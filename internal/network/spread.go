package network

import (
	"net/netip"
	"slices"
)

// target is an endpoint's address and port in one word: address<<16 | port. 0 is none.
type target uint64

func targetOf(a netip.AddrPort) target {
	b := a.Addr().As4()
	return target(b[0])<<40 | target(b[1])<<32 | target(b[2])<<24 | target(b[3])<<16 | target(a.Port())
}

func (t target) addr() netip.Addr {
	return netip.AddrFrom4([4]byte{byte(t >> 40), byte(t >> 32), byte(t >> 24), byte(t >> 16)})
}

func (t target) port() uint16 { return uint16(t) }

// scale makes n buckets of those that there are. They stand for equal parts of the values of a hash, in order: each new
// one has the target of the part that it is in, so that a client goes on with its endpoint.
func scale(old []target, n int) []target {
	if len(old) == 0 {
		return nil
	}
	out := make([]target, n)
	for i := range out {
		out[i] = old[i*len(old)/n]
	}
	return out
}

// spread gives each of n buckets to one of the wanted targets, evenly, and changes as few buckets as it can: those of
// targets that went, and of each that stays what it has above its share.
func spread(old, want []target, n int) []target {
	if len(want) == 0 {
		return nil
	}
	out := make([]target, n)
	held := map[target]int{}
	for i := range copy(out, old) {
		held[out[i]]++
	}
	left := shares(held, want, n)
	var free []int
	for i, t := range out {
		if left[t] == 0 {
			free = append(free, i)
			continue
		}
		left[t]--
	}
	for _, t := range want {
		for ; left[t] > 0; left[t]-- {
			out[free[0]] = t
			free = free[1:]
		}
	}
	return out
}

// shares is how many of n buckets each target gets. What cannot be shared evenly goes to those that hold the most.
func shares(held map[target]int, want []target, n int) map[target]int {
	most := slices.Clone(want)
	slices.SortStableFunc(most, func(a, b target) int { return held[b] - held[a] })
	out := make(map[target]int, len(want))
	for i, t := range most {
		out[t] = n / len(want)
		if i < n%len(want) {
			out[t]++
		}
	}
	return out
}
