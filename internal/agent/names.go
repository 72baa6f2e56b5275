package agent

import (
	"net/netip"
	"strings"

	"spillway.dev/spillway/internal/dns"
	"spillway.dev/spillway/internal/group"
)

// setNames tells the DNS where a ready group is: by its label for everybody, by its own name for its subscription.
func (a *Agent) setNames(g *group.Group, addr, seen netip.Addr) {
	end := "." + strings.ToLower(a.cfg.Location) + "." + dns.Zone
	o := dns.Owner{Addr: addr, Network: a.networkOf(g)}
	o.Names = append(o.Names, dns.Name{Name: strings.ToLower(g.Ref.Name+"."+g.Ref.ResourceGroup) + end, Addr: addr})
	if g.Spec.IP != nil && g.Spec.IP.DNSLabel != "" {
		o.Names = append(o.Names, dns.Name{Name: strings.ToLower(g.Spec.IP.DNSLabel) + end, Addr: seen, Public: true})
	}
	a.cfg.Names.Set(g.UID, o)
}

// setAsker lets a group that is not ready ask already: it owns no names yet.
func (a *Agent) setAsker(g *group.Group, addr netip.Addr) {
	a.cfg.Names.Set(g.UID, dns.Owner{Addr: addr, Network: a.networkOf(g)})
}
