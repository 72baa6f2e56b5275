package agent

import (
	"net/netip"

	"spillway.dev/spillway/internal/dns"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// setNames tells the DNS where a ready group is: by its label for everybody, by its own name for its network.
func (a *Agent) setNames(g *group.Group, addr, seen netip.Addr) {
	a.cfg.Names.Set(g.UID, dns.Owner{Addr: addr, Network: a.networkOf(g), Names: dnsNames(host.NamesOf(g, dns.Zone, addr, seen))})
}

// setAsker lets a group that is not ready ask already: it owns no names yet.
func (a *Agent) setAsker(g *group.Group, addr netip.Addr) {
	a.cfg.Names.Set(g.UID, dns.Owner{Addr: addr, Network: a.networkOf(g)})
}
