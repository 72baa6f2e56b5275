package agent

import (
	"errors"
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
	if g.Spec.HostsComment != "" {
		fmt.Fprintf(&b, "# %s\n", g.Spec.HostsComment)
	}
	if g.Spec.HostNetwork {
		own, _ := os.ReadFile("/etc/hosts") // a machine without one has no names to tell
		b.Write(own)
	} else {
		fmt.Fprintf(&b, "127.0.0.1\tlocalhost\n%s\t%s\n", addr, hostname(g))
	}
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
	if g.Spec.HostNetwork {
		name, _ := os.Hostname()
		return name
	}
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
	switch {
	case w.g.Spec.DNS != nil:
		files["resolv.conf"] = resolvConf(w.g.Spec.DNS, w.a.cfg.Network.Gateway(), w.a.cfg.Location)
	case w.g.Spec.HostNetwork: // it asks whom the machine asks
		own, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		files["resolv.conf"] = string(own)
	}
	for name, body := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) resolvPath() string {
	if w.g.Spec.DNS == nil && !w.g.Spec.HostNetwork {
		return w.a.resolv
	}
	return w.a.files(w.m.UID, "resolv.conf")
}
