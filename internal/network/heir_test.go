package network

import (
	"context"
	"errors"
	"testing"
)

// TestAnAddressGoesFromSlotToSlot: what goes with a slot whose address another has by now leaves that one alone.
func TestAnAddressGoesFromSlotToSlot(t *testing.T) {
	w := newWorld(t)
	w.members(7, 1, 2, 3)
	ctx := context.Background()
	heir := w.slot(3)
	heir.Addr = addr(1)
	if err := w.net.Detach(ctx, w.slot(3)); err != nil {
		t.Fatal(err)
	}
	ns := w.ns[3]
	heir.NetNS = ns
	if err := w.net.Attach(ctx, heir); err != nil {
		t.Fatal(err)
	}
	if err := w.net.Join(ctx, Membership{Addr: addr(1), Network: 7}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.net.LeaveSlots(ctx, w.slot(1)), w.net.Detach(ctx, w.slot(1))); err != nil {
		t.Fatal(err)
	}
	if w.net.have.guard[addr(1)] != guardElement(w.net.plan.link(3), addr(1)) || len(w.net.have.member[addr(1)]) == 0 {
		t.Errorf("the address's new slot has lost its entries: %v", w.net.have)
	}
	if err := w.net.Detach(ctx, heir); err != nil || w.net.have.guard[addr(1)] != (element{}) {
		t.Errorf("after the end of the new slot: %v, %v", err, w.net.have)
	}
}
