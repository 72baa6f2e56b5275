package dns

import (
	"fmt"
	"net/netip"
	"testing"
)

// TestRecalledNames: what an earlier process knew counts until somebody knows better.
func TestRecalledNames(t *testing.T) {
	addr := netip.MustParseAddr
	named := func(name, at string) Owner {
		return Owner{Addr: addr(at), Network: 1, Names: []Name{{Name: name, Addr: addr(at)}}}
	}
	before := NewTable()
	before.Set("asker", named("asker", "10.64.0.1"))
	for _, name := range []string{"moved", "removed", "stale", "silent"} {
		before.Set(name, named(name, "10.64.0.2"))
	}
	owners, changes := before.Owners()
	if changes != before.Changes() || changes != 5 {
		t.Errorf("%d changes, then %d, want 5", changes, before.Changes())
	}

	table := NewTable()
	table.Set("here", named("here", "10.64.0.3"))
	owners["here"] = named("here", "10.64.0.4")
	table.Recall(owners)
	lookup := func(name string) string { return fmt.Sprint(table.Lookup(name, addr("10.64.0.1"))) }
	for name, want := range map[string]string{"silent": "[10.64.0.2]", "stale": "[10.64.0.2]", "here": "[10.64.0.3]"} {
		if got := lookup(name); got != want {
			t.Errorf("%s is at %s after the recall, want %s", name, got, want)
		}
	}
	table.Set("moved", named("moved", "10.64.0.5"))
	table.Remove("removed")
	table.Settle(func(owner string) bool { return owner != "silent" && owner != "asker" })
	for name, want := range map[string]string{"silent": "[10.64.0.2]", "stale": "[]", "removed": "[]", "moved": "[10.64.0.5]", "here": "[10.64.0.3]"} {
		if got := lookup(name); got != want {
			t.Errorf("%s is at %s in the end, want %s", name, got, want)
		}
	}
}

// TestAddressChangesHands: the end of an address's earlier owner does not take the newer one's questions away.
func TestAddressChangesHands(t *testing.T) {
	at := netip.MustParseAddr("10.64.0.1")
	table := NewTable()
	table.Set("old", Owner{Addr: at, Network: 1})
	table.Set("new", Owner{Addr: at, Network: 2, Names: []Name{{Name: "new", Addr: at}}})
	table.Remove("old")
	if got := table.Lookup("new", at); len(got) != 1 {
		t.Errorf("the newer owner sees %v of its network", got)
	}
}
