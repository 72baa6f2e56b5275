package bench

import (
	"fmt"
	"testing"
)

// BenchmarkPlace is one group that goes and one that is placed, in a fleet that stays as full as it is.
func BenchmarkPlace(b *testing.B) {
	for _, hosts := range placeSizes {
		for _, pack := range []bool{true, false} {
			b.Run(fmt.Sprintf("%d hosts, pack %t", hosts, pack), func(b *testing.B) {
				f := newFleet(hosts, pack)
				b.ReportAllocs()
				for b.Loop() {
					f.turn()
				}
			})
		}
	}
}

func TestPackingIsTight(t *testing.T) {
	for seed := range uint64(3) {
		ratio := packing(20_000, seed)
		t.Logf("hosts used over the lower bound: %.4f", ratio)
		if ratio > 1.05 {
			t.Errorf("packing(seed %d) = %.4f, want at most 1.05", seed, ratio)
		}
	}
}
