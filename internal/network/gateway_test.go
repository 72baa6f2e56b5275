package network

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"spillway.dev/spillway/internal/fault"
)

func TestARangeHasOneOwner(t *testing.T) {
	w := newWorld(t)
	w.attach(1)
	loser := Config{Instance: "00bb", CIDR: testCIDR}
	w.in(w.host, func() error {
		if err := Claim(context.Background(), Config{Instance: "00aa", CIDR: testCIDR}); err != nil {
			t.Errorf("claim of what is its own: %v", err)
		}
		if err := Claim(context.Background(), loser); fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), "10.99.0.0/16") {
			t.Errorf("claim of another's range = %v, want a conflict that names it", err)
		}
		if n, err := Open(context.Background(), loser); fault.KindOf(err) != fault.Conflict {
			t.Errorf("open on another's range = %v, %v, want a conflict", n, err)
		}
		return Purge(context.Background(), loser)
	})
	w.attach(2) // needs the gateway
	won := make(chan string, 8)
	free := netip.MustParsePrefix("10.98.0.0/16")
	w.in(w.host, func() error {
		var handles []*Network
		for i := range cap(won) {
			n, err := connect(Config{Instance: fmt.Sprintf("10%02d", i), CIDR: free})
			if err != nil {
				return err
			}
			handles = append(handles, n)
		}
		var all sync.WaitGroup
		for _, n := range handles {
			all.Go(func() {
				if n.claimGateway() == nil {
					won <- n.cfg.Instance
				}
			})
		}
		all.Wait()
		for _, n := range handles {
			n.Close()
		}
		return nil
	})
	if len(won) != 1 {
		t.Errorf("%d of %d claims at the same moment won, want 1", len(won), cap(won))
	}
}
