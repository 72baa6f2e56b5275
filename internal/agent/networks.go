package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strings"
	"sync"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/network"
	"spillway.dev/spillway/internal/wholefile"
)

// networks gives every network of a subscription a number of its own: numbers are counted, not hashed, so that no two
// networks ever share one. They are written down before they are used, for the rules outlive this process.
type networks struct {
	path     string
	instance string

	mu      sync.Mutex // guards numbers
	numbers map[string]uint32
}

func openNetworks(path, instance string) (*networks, error) {
	n := &networks{path: path, instance: instance, numbers: map[string]uint32{}}
	body, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return n, nil
	}
	if err == nil {
		err = json.Unmarshal(body, &n.numbers)
	}
	if err != nil {
		return nil, fmt.Errorf("read network numbers: %w", err)
	}
	return n, nil
}

// of numbers a network of a subscription; 0 means none and is never given. The default network has the subscription's
// own name, as when there was no other.
func (n *networks) of(subscription, name string) (uint32, error) {
	key := strings.ToLower(subscription)
	if name != group.DefaultNetwork {
		key += "/" + name
	}
	return n.number(key, 0, network.Machine-1)
}

// outside ends the key of a virtual network with addresses outside the groups' range. No name of a network ends so.
const outside = "/outside"

// outside numbers a virtual network with addresses outside the groups' range, as the rules about those want it.
func (n *networks) outside(subscription, name string) (uint32, error) {
	first := network.VirtualNetwork(n.instance, 1)
	return n.number(strings.ToLower(subscription)+"/"+name+outside, first-1, first-1+network.MaxVirtual)
}

// number gives a key its number, above one that is none and up to the last.
func (n *networks) number(key string, none, last uint32) (uint32, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if number, ok := n.numbers[key]; ok {
		return number, nil
	}
	highest := none
	for other, number := range n.numbers {
		if strings.HasSuffix(other, outside) == strings.HasSuffix(key, outside) {
			highest = max(highest, number)
		}
	}
	if highest >= last {
		return 0, fault.New(fault.Exhausted, "", "this host has had %d networks, the most that it can know: restart its agent, which forgets virtual networks without groups here", last-none)
	}
	n.numbers[key] = highest + 1
	if err := n.write(); err != nil {
		delete(n.numbers, key)
		return 0, fmt.Errorf("write network numbers: %w", err)
	}
	return highest + 1, nil
}

// forget lets numbers of virtual networks be given again that nothing on this machine has. It is called before anything is
// numbered: only what the kernel holds can have a number from before.
func (n *networks) forget(held map[uint32]bool) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	before := len(n.numbers)
	maps.DeleteFunc(n.numbers, func(key string, number uint32) bool { return strings.HasSuffix(key, outside) && !held[number] })
	if len(n.numbers) == before {
		return nil
	}
	return n.write()
}

// write puts the numbers on the disk: once for each new network.
func (n *networks) write() error {
	body, err := json.Marshal(n.numbers)
	if err != nil {
		return err
	}
	return wholefile.WriteSynced(n.path, body)
}

// networkOf is the number of a group's network; 0, which joins nothing, when it cannot be written down.
func (a *Agent) networkOf(g *group.Group) uint32 {
	return a.numberOf(g.Ref.Subscription, g.Spec.NetworkName(), g.Address)
}

// numberOf is the number of a network in which something has an address of a virtual network; invalid: has none.
func (a *Agent) numberOf(subscription, name string, at netip.Addr) uint32 {
	give := a.networks.of
	if a.isOutside(at) {
		give = a.networks.outside
	}
	number, err := give(subscription, name)
	if err != nil {
		a.cfg.Log.Error("number a network", "subscription", subscription, "network", name, "error", err)
	}
	return number
}

// isOutside says whether an address of a virtual network is outside the groups' range, as all are but those that networks of
// an earlier version have.
func (a *Agent) isOutside(at netip.Addr) bool {
	return at.IsValid() && !a.cfg.Network.CIDR().Contains(at)
}
