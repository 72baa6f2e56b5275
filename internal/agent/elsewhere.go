package agent

import (
	"maps"

	"spillway.dev/spillway/internal/dns"
	"spillway.dev/spillway/internal/host"
)

// elsewhere is the prefix of the owners of names, in the DNS table, of groups on other hosts. Groups' uids hold no slash.
const elsewhere = "elsewhere/"

// Name implements host.Link. What is not told again stays: a host that is cut off goes on to answer.
func (a *Agent) Name(u host.Names) {
	a.naming.Lock()
	defer a.naming.Unlock()
	gone := map[string]bool{}
	if u.Full {
		maps.Copy(gone, a.named)
	}
	for _, uid := range u.Gone {
		gone[uid] = true
	}
	for _, n := range u.Set {
		delete(gone, n.UID)
		a.named[n.UID] = true
		o := dns.Owner{}
		if n.Network != "" {
			number, err := a.networks.of(n.Subscription, n.Network)
			if err != nil {
				a.cfg.Log.Error("number a network", "subscription", n.Subscription, "network", n.Network, "error", err)
			}
			o.Network = number
		}
		o.Names = dnsNames(n.Names)
		a.cfg.Names.Set(elsewhere+n.UID, o)
	}
	for uid := range gone {
		delete(a.named, uid)
		a.cfg.Names.Remove(elsewhere + uid)
	}
}

func dnsNames(names []host.Name) []dns.Name {
	out := make([]dns.Name, len(names))
	for i, n := range names {
		out[i] = dns.Name{Name: n.Name, Addr: n.Addr, Public: n.Public}
	}
	return out
}
