package dns

import (
	"net/netip"
	"strings"
	"sync"
)

// Owner is who names belong to: a group, or a service address, which asks nothing.
type Owner struct {
	Addr    netip.Addr `json:"addr,omitzero"`     // where its questions come from; invalid: nowhere
	Network uint32     `json:"network,omitempty"` // whose names it sees beside the public ones
	Names   []Name     `json:"names,omitempty"`
}

// Name is one name of an owner.
type Name struct {
	Name   string     `json:"name"`             // in full, without the final dot
	Addr   netip.Addr `json:"addr"`             // where it leads
	Public bool       `json:"public,omitempty"` // seen by all; else by owners of the same network
}

// Table is what names mean now. Safe for concurrent use; it does no IO.
type Table struct {
	mu      sync.RWMutex // guards all
	owners  map[string]Owner
	names   map[string]map[string][]Name     // name → owner → entries
	reverse map[netip.Addr]map[string][]Name // address → owner → entries
	sources map[netip.Addr]string            // address → owner
	changes int64
	// recalled are owners of an earlier process of which nobody has told anything since.
	recalled map[string]bool
	spaces   map[uint32][]netip.Prefix // network → its address space
}

// NewTable makes an empty table.
func NewTable() *Table {
	return &Table{owners: map[string]Owner{}, names: map[string]map[string][]Name{}, reverse: map[netip.Addr]map[string][]Name{},
		sources: map[netip.Addr]string{}, recalled: map[string]bool{}}
}

// Set replaces all names of an owner.
func (t *Table) Set(owner string, o Owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.set(owner, o)
}

func (t *Table) set(owner string, o Owner) {
	t.remove(owner)
	t.changes++
	t.owners[owner] = o
	if o.Addr.IsValid() {
		t.sources[o.Addr] = owner
	}
	for _, n := range o.Names {
		n.Name = fold(n.Name)
		put(t.names, n.Name, owner, n)
		put(t.reverse, n.Addr, owner, n)
	}
}

// Remove forgets an owner.
func (t *Table) Remove(owner string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.remove(owner)
}

func (t *Table) remove(owner string) {
	o, ok := t.owners[owner]
	if !ok {
		return
	}
	t.changes++
	delete(t.owners, owner)
	delete(t.recalled, owner)
	if t.sources[o.Addr] == owner { // else another has the address by now
		delete(t.sources, o.Addr)
	}
	for _, n := range o.Names {
		drop(t.names, fold(n.Name), owner)
		drop(t.reverse, n.Addr, owner)
	}
}

func put[K comparable](m map[K]map[string][]Name, key K, owner string, n Name) {
	if m[key] == nil {
		m[key] = map[string][]Name{}
	}
	m[key][owner] = append(m[key][owner], n)
}

func drop[K comparable](m map[K]map[string][]Name, key K, owner string) {
	if delete(m[key], owner); len(m[key]) == 0 {
		delete(m, key)
	}
}

// Lookup gives the addresses of a name as seen from a source. The names of the source's own network win over public
// ones: nobody takes a name of another network over by publishing it.
func (t *Table) Lookup(name string, source netip.Addr) []netip.Addr {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var own, public []netip.Addr
	for owner, list := range t.names[fold(name)] {
		for _, n := range list {
			switch {
			case !t.sees(source, owner, n):
			case n.Public:
				public = append(public, n.Addr)
			default:
				own = append(own, n.Addr)
			}
		}
	}
	if own != nil {
		return own
	}
	return public
}

// Reverse gives the names of an address as seen from a source.
func (t *Table) Reverse(a, source netip.Addr) []string {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var out []string
	for owner, list := range t.reverse[a] {
		for _, n := range list {
			if t.sees(source, owner, n) {
				out = append(out, n.Name)
			}
		}
	}
	return out
}

// SetSpaces says which ranges are networks' own, whatever they are to others.
func (t *Table) SetSpaces(spaces map[uint32][]netip.Prefix) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.spaces = spaces
}

// Within says whether an address is in the address space of a source's network.
func (t *Table) Within(a, source netip.Addr) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, p := range t.spaces[t.owners[t.sources[source]].Network] {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

func (t *Table) sees(source netip.Addr, owner string, n Name) bool {
	if n.Public {
		return true
	}
	asker, ok := t.owners[t.sources[source]]
	return ok && asker.Network != 0 && asker.Network == t.owners[owner].Network
}

func fold(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
