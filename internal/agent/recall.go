package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"spillway.dev/spillway/internal/dns"
	"spillway.dev/spillway/internal/wholefile"
)

// rememberEvery is how often names that have changed are written down.
const rememberEvery = time.Second

func (a *Agent) namesFile() string { return filepath.Join(a.cfg.RunDir, "names.json") }

// recallNames takes over what an earlier agent knew of names, here and elsewhere: one that is started while the servers are
// away goes on to answer. After a reboot there is nobody here who could ask, and nothing to recall.
func (a *Agent) recallNames() error {
	body, err := os.ReadFile(a.namesFile())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var owners map[string]dns.Owner
	if err == nil {
		err = json.Unmarshal(body, &owners)
	}
	if err != nil {
		return fmt.Errorf("read the names of an earlier agent: %w", err)
	}
	a.cfg.Names.Recall(owners)
	a.naming.Lock()
	defer a.naming.Unlock()
	for owner := range owners {
		if uid, ok := strings.CutPrefix(owner, elsewhere); ok {
			a.named[uid] = true
		}
	}
	return nil
}

// rememberNames writes names down while they change, until ctx ends. Not synced: they only have to outlive this process.
func (a *Agent) rememberNames(ctx context.Context) {
	written := int64(-1)
	write := func() {
		if a.cfg.Names.Changes() == written {
			return
		}
		owners, changes := a.cfg.Names.Owners()
		body, err := json.Marshal(owners)
		if err == nil {
			err = wholefile.Write(a.namesFile(), body)
		}
		if err != nil {
			a.cfg.Log.Warn("write names down", "error", err)
			return
		}
		written = changes
	}
	defer write()
	for ctx.Err() == nil {
		began := time.Now()
		write()
		sleep(ctx, max(rememberEvery, 20*time.Since(began))) // many names take their time
	}
}

// settleGroups forgets recalled names of groups that this host does not have any more.
func (a *Agent) settleGroups(uids map[string]bool) {
	a.cfg.Names.Settle(func(owner string) bool { return !strings.Contains(owner, "/") && !uids[owner] })
}

// settle forgets recalled names of a kind that all have been told of.
func (a *Agent) settle(kind string) {
	a.cfg.Names.Settle(func(owner string) bool { return strings.HasPrefix(owner, kind) })
}
