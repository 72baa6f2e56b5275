package doctor

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// needed are the capabilities without which the platform cannot work; wanted are those that it does less well without.
var (
	needed = map[uint]string{unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN", unix.CAP_NET_ADMIN: "CAP_NET_ADMIN", unix.CAP_SYS_CHROOT: "CAP_SYS_CHROOT",
		unix.CAP_MKNOD: "CAP_MKNOD", unix.CAP_CHOWN: "CAP_CHOWN", unix.CAP_DAC_OVERRIDE: "CAP_DAC_OVERRIDE", unix.CAP_FOWNER: "CAP_FOWNER",
		unix.CAP_SETUID: "CAP_SETUID", unix.CAP_SETGID: "CAP_SETGID", unix.CAP_SETPCAP: "CAP_SETPCAP", unix.CAP_KILL: "CAP_KILL",
		unix.CAP_SYS_PTRACE: "CAP_SYS_PTRACE", unix.CAP_NET_BIND_SERVICE: "CAP_NET_BIND_SERVICE"}
	wanted = map[uint]string{unix.CAP_SYS_RESOURCE: "CAP_SYS_RESOURCE"}
)

func evaluateCapabilities(f *Facts) []Finding {
	if f.UID != 0 {
		return nil // says nothing about root's
	}
	lacks := func(set map[uint]string) string {
		var names []string
		for c := range uint(unix.CAP_LAST_CAP + 1) {
			if name, ok := set[c]; ok && f.Capabilities&(1<<c) == 0 {
				names = append(names, name)
			}
		}
		return strings.Join(names, ", ")
	}
	var list []Finding
	if names := lacks(needed); names != "" {
		list = append(list, Finding{"capabilities", Error, "root lacks " + names, "Run on a machine, or in a container with these capabilities (docker run --privileged)."})
	}
	if names := lacks(wanted); names != "" {
		list = append(list, Finding{"capabilities", Warning, "root lacks " + names, "Limits cannot be raised and the keeper cannot be kept from the out-of-memory killer; all else works. Grant it if this machine is a container."})
	}
	if len(list) == 0 {
		list = append(list, Finding{"capabilities", OK, "all that are needed", ""})
	}
	return list
}

func evaluateNetwork(f *Facts) []Finding {
	var list []Finding
	if !f.Forwarding {
		list = append(list, Finding{"forwarding", Note, "net.ipv4.ip_forward is 0", "The platform sets it to 1 when it starts: groups reach nothing without it."})
	}
	if f.ForwardDrop != "" {
		list = append(list, Finding{"forwarding", Warning, f.ForwardDrop + " drops by default (Docker sets that)",
			"Groups reach nothing outside this machine until their links are let through: 'iptables -I FORWARD -i sw+ -j ACCEPT && iptables -I FORWARD -o sw+ -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT'."})
	}
	if f.ListenError != "" && f.Data.PID == 0 {
		list = append(list, Finding{"API port", Error, fmt.Sprintf("%s cannot be listened on: %s", f.Listen, f.ListenError), "Choose another with 'spillway up --listen HOST:PORT'; port 0 picks a free one."})
	}
	if f.DNSBusy {
		list = append(list, Finding{"DNS port", Error, "another server listens on port 53 of every address", "Bind it to its own addresses (dnsmasq: bind-interfaces; named: listen-on): the platform answers names on an address of its own."})
	}
	if len(list) == 0 {
		list = append(list, Finding{"network", OK, "forwards; ports are free", ""})
	}
	return list
}
