package agent

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"spillway.dev/spillway/internal/group"
)

// The files that every container of a group sees below /etc. They are in the run directory: made when a slot is
// claimed, gone with a reboot, never on a disk.

func (a *Agent) files(parts ...string) string {
	return filepath.Join(append([]string{a.cfg.RunDir, "files"}, parts...)...)
}

// writeResolv writes the resolver configuration that groups share unless they bring their own.
func (a *Agent) writeResolv() error {
	a.resolv = a.files("resolv.conf")
	return os.WriteFile(a.resolv, []byte(resolvConf(nil, a.cfg.Network.Gateway(), a.cfg.Location)), 0o644)
}

// resolvConf is pure: the group's own configuration, or the platform's DNS.
func resolvConf(dns *group.DNSConfig, gateway netip.Addr, location string) string {
	var b strings.Builder
	if dns == nil {
		fmt.Fprintf(&b, "search %s.spillway.internal\nnameserver %s\noptions ndots:1\n", location, gateway)
		return b.String()
	}
	if len(dns.Search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.Search, " "))
	}
	for _, s := range dns.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(dns.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.Options, " "))
	}
	return b.String()
}

func hostsFile(g *group.Group, addr netip.Addr) string {
	var b strings.Builder
	fmt.Fprintf(&b, "127.0.0.1\tlocalhost\n%s\t%s\n", addr, hostname(g))
	for _, alias := range g.Spec.HostAliases {
		fmt.Fprintf(&b, "%s\t%s\n", alias.IP, strings.Join(alias.Names, "\t"))
	}
	if g.Spec.Placeholder != "" {
		return strings.ReplaceAll(b.String(), g.Spec.Placeholder, addr.String())
	}
	return b.String()
}

// maxHostname is the kernel's limit less the final zero.
const maxHostname = 63

func hostname(g *group.Group) string {
	name := g.Spec.Hostname
	if name == "" {
		name = g.Ref.Name
	}
	return name[:min(len(name), maxHostname)]
}

// writeFiles makes the group's own files and log directories.
func (w *worker) writeFiles(addr netip.Addr) error {
	dir := w.a.files(w.m.UID)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	files := map[string]string{"hosts": hostsFile(w.g, addr), "hostname": hostname(w.g) + "\n"}
	if w.g.Spec.DNS != nil {
		files["resolv.conf"] = resolvConf(w.g.Spec.DNS, w.a.cfg.Network.Gateway(), w.a.cfg.Location)
	}
	for name, body := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) resolvPath() string {
	if w.g.Spec.DNS == nil {
		return w.a.resolv
	}
	return w.a.files(w.m.UID, "resolv.conf")
}
