package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"

	"spillway.dev/spillway/internal/group"
)

// networks gives every network of a subscription a number of its own: numbers are counted, not hashed, so that no two
// networks ever share one. They are written down before they are used, for the rules outlive this process.
type networks struct {
	path string

	mu      sync.Mutex // guards numbers
	numbers map[string]uint32
}

func openNetworks(path string) (*networks, error) {
	n := &networks{path: path, numbers: map[string]uint32{}}
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
func (n *networks) of(subscription, network string) (uint32, error) {
	key := strings.ToLower(subscription)
	if network != group.DefaultNetwork {
		key += "/" + network
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if number, ok := n.numbers[key]; ok {
		return number, nil
	}
	var highest uint32
	for _, number := range n.numbers {
		highest = max(highest, number)
	}
	n.numbers[key] = highest + 1
	if err := n.write(); err != nil {
		delete(n.numbers, key)
		return 0, fmt.Errorf("write network numbers: %w", err)
	}
	return highest + 1, nil
}

// write puts the numbers on the disk: once for each new network.
func (n *networks) write() error {
	body, err := json.Marshal(n.numbers)
	if err != nil {
		return err
	}
	return writeSynced(n.path, body)
}

// writeSynced writes a file that must be there whole or not at all after a crash.
func writeSynced(path string, body []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// networkOf is the number of a group's network; 0, which joins nothing, when it cannot be written down.
func (a *Agent) networkOf(g *group.Group) uint32 {
	number, err := a.networks.of(g.Ref.Subscription, g.Spec.NetworkName())
	if err != nil {
		a.cfg.Log.Error("number a network", "subscription", g.Ref.Subscription, "network", g.Spec.NetworkName(), "error", err)
	}
	return number
}
