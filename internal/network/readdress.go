package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
)

// Readdress gives an attached slot another address, m.Addr, with membership m (network 0: none): the slot's own and its
// membership are gone then, and its connections forgotten. It is two netlink changes on the host and one inside. Doing it
// again changes nothing; after an error the slot has its old address, and its old membership. Errors: invalid; conflict when
// another slot has the address.
func (n *Network) Readdress(_ context.Context, s Slot, m Membership) error {
	done, err := n.checkReaddress(s, m)
	if err != nil {
		return err
	}
	to := s
	to.Addr = m.Addr
	inside, err := enterNetNS(s.NetNS)
	if err != nil {
		return fmt.Errorf("readdress slot %d: %w", s.Index, err)
	}
	defer inside.close()
	back := s
	if done { // its entries are of the new address: the rest of it stays as well
		back = to
	}
	if err := n.move(inside, move{s, to, back}, m); err != nil {
		return fmt.Errorf("readdress slot %d from %s to %s: %w", s.Index, s.Addr, to.Addr, err)
	}
	if s.Addr == to.Addr {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.forgetConnections([]netip.Addr{s.Addr})
}

// checkReaddress says whether the slot has the address already.
func (n *Network) checkReaddress(s Slot, m Membership) (done bool, err error) {
	joins := m
	joins.Network = max(m.Network, 1)
	if err := n.plan.check(joins); err != nil {
		return false, err
	}
	if s.NetNS == nil {
		return false, fault.New(fault.Invalid, "", "slot %d: its namespace must be open", s.Index)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	held, ok := n.have.guard[m.Addr]
	if done = held == guardElement(n.plan.link(s.Index), m.Addr); ok && !done {
		return false, fault.New(fault.Conflict, "", "address %s is in use by another slot", m.Addr)
	}
	return done, nil
}

// move is a slot with one address, with the one that it is to have, and with the one that it has again after an error.
type move struct{ from, to, back Slot }

// move leads an address's packets another way, outside and inside, and lets them pass last.
func (n *Network) move(inside *socket, c move, m Membership) error {
	if err := n.moveRoute(c.from, c.to); err != nil {
		return errors.Join(err, n.moveRoute(c.to, c.back))
	}
	err := moveInside(inside, c.from, c.to)
	if err == nil {
		err = n.moveEntries(c.from, c.to, m)
	}
	if err != nil {
		return errors.Join(err, moveInside(inside, c.to, c.back), n.moveRoute(c.to, c.back))
	}
	return nil
}

// moveRoute is the host's part: route and neighbour.
func (n *Network) moveRoute(from, to Slot) error {
	n.rtMu.Lock()
	defer n.rtMu.Unlock()
	index, err := n.rt.index(n.plan.link(from.Index))
	if err != nil {
		return err
	}
	mac := n.plan.mac(from.Index, true)
	msgs := append(n.plan.routesTo(index, to), neighbour(index, to.Addr.AsSlice(), mac))
	if from.Addr != to.Addr {
		for _, r := range n.plan.routesTo(index, from) {
			msgs = append(msgs, r.removal(unix.RTM_DELROUTE))
		}
		msgs = append(msgs, neighbour(index, from.Addr.AsSlice(), mac).removal(unix.RTM_DELNEIGH))
	}
	return n.rt.do(msgs...)
}

// moveInside changes the address of the group's device. The new one comes first: with its last address a device loses its
// routes.
func moveInside(inside *socket, from, to Slot) error {
	index, err := inside.index("eth0")
	if err != nil {
		return err
	}
	msgs := []*message{newAddress(index, to.Addr.AsSlice())}
	if from.Addr != to.Addr {
		msgs = append(msgs, newAddress(index, from.Addr.AsSlice()).removal(unix.RTM_DELADDR))
	}
	return inside.do(msgs...)
}

// moveEntries changes what the sets hold of a slot, in one batch.
func (n *Network) moveEntries(from, to Slot, m Membership) error {
	link := n.plan.link(from.Index)
	var want []element
	if m.Network != 0 {
		want = membershipElements(m)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.commit(func(have elements) (del, add []element) {
		del, add = have.replace(to.Addr, want)
		if old := guardElement(link, from.Addr); from.Addr != to.Addr {
			gone, _ := have.replace(from.Addr, nil)
			if del = append(del, gone...); have.guard[from.Addr] == old {
				del = append(del, old)
			}
		}
		if guard := guardElement(link, to.Addr); have.guard[to.Addr] != guard {
			add = append(add, guard)
		}
		return del, add
	})
}
