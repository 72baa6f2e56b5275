package dns

import "maps"

// Changes counts the changes of the table.
func (t *Table) Changes() int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.changes
}

// Owners are all owners, and Changes as they stand.
func (t *Table) Owners() (owners map[string]Owner, changes int64) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return maps.Clone(t.owners), t.changes
}

// Recall takes over the owners of an earlier process. Each counts until somebody sets or removes it, or Settle does.
func (t *Table) Recall(owners map[string]Owner) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for owner, o := range owners {
		if _, known := t.owners[owner]; !known {
			t.set(owner, o)
			t.recalled[owner] = true
		}
	}
}

// Settle removes those recalled owners of which it is known by now that there is nothing to tell.
func (t *Table) Settle(gone func(owner string) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for owner := range t.recalled {
		if gone(owner) {
			t.remove(owner)
		}
	}
}
