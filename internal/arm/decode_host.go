package arm

import (
	"net/netip"
	"path"
	"strings"

	"spillway.dev/spillway/internal/group"
)

// maxHostsComment bounds a line of /etc/hosts.
const maxHostsComment = 256

// hostAccess reads the group's fields that ask for something of the machine itself. Whether it is given is not decided
// here.
func (d *decoder) hostAccess(o *object, s *group.Spec) {
	s.HostNetwork = o.boolean(o.since(vOwn, "hostNetwork"))
	s.HostPID = o.boolean(o.since(vOwn, "hostPID"))
	s.HostIPC = o.boolean(o.since(vOwn, "hostIPC"))
	s.HostAddress = o.str(o.since(vOwn, "hostAddress"))
	if ip, err := netip.ParseAddr(s.HostAddress); s.HostAddress != "" && (err != nil || !ip.Is4()) {
		d.fault("", o.at("hostAddress"), "The field '%s' must be an IPv4 address, got '%s'.", o.at("hostAddress"), clip(s.HostAddress))
	}
	s.HostsComment = o.str(o.since(vOwn, "hostsComment"))
	if len(s.HostsComment) > maxHostsComment || strings.ContainsFunc(s.HostsComment, func(r rune) bool { return r < ' ' }) {
		d.fault("", o.at("hostsComment"), "The field '%s' must be one line of at most %d characters.", o.at("hostsComment"), maxHostsComment)
	}
}

// hostPath reads a file or directory of the machine.
func (d *decoder) hostPath(o *object) *group.HostPath {
	h := &group.HostPath{Path: o.required("path"), Type: group.HostPathType(o.choice("type", "", string(group.HostPathDirectory),
		string(group.HostPathDirectoryOrCreate), string(group.HostPathFile), string(group.HostPathFileOrCreate), string(group.HostPathSocket),
		string(group.HostPathCharDevice), string(group.HostPathBlockDevice)))}
	if h.Path != "" && (!path.IsAbs(h.Path) || badPath(h.Path)) {
		d.fault("", o.at("path"), "The path '%s' in '%s' must be absolute, without '..', at most %d characters.", clip(h.Path), o.at("path"), maxPath)
	} else if h.Path != "" {
		h.Path = path.Clean(h.Path)
	}
	o.done()
	return h
}

// privileged reads the field that Azure's versions have and this platform honours in its own only.
func (d *decoder) privileged(o *object) bool {
	if !o.boolean("privileged") {
		return false
	}
	if !d.version.Superset {
		d.fault("", o.at("privileged"), "The field '%s' cannot be honoured in api-version %s: privileged containers would own the host. Where the platform's administrator allows them, api-version %s has them. Remove it.",
			o.at("privileged"), d.version.Name, Superset)
	}
	return true
}

// host checks what cannot go together with parts of the machine.
func (d *decoder) host(s *group.Spec) {
	if s.Isolation == group.IsolationGVisor {
		for _, n := range s.Needs() {
			d.fault("", n.Field, "The field '%s' cannot be honoured with isolation gvisor: such a group has a kernel of its own. Remove one of them.", n.Field)
		}
	}
	clash := func(set bool, field, with, why string) {
		if set {
			d.fault("", "properties."+field, "The field 'properties.%s' cannot go together with '%s': %s. Remove one of them.", field, with, why)
		}
	}
	if s.HostNetwork {
		clash(s.Hostname != "", "hostname", "hostNetwork", "the group has the machine's own host name")
		clash(s.Network != "", "network", "hostNetwork", "the group is in no network of the platform")
		clash(s.Subnet != nil, "subnetIds", "hostNetwork", "the group is in no network of the platform")
		clash(s.IP != nil && s.IP.Public, "ipAddress", "hostNetwork", "the group has the machine's own addresses and ports")
		clash(s.HostsComment != "", "hostsComment", "hostNetwork", "the group has the machine's own /etc/hosts")
	} else if s.HostAddress != "" {
		d.fault("", "properties.hostAddress", "The field 'properties.hostAddress' needs 'hostNetwork'.")
	}
	for _, name := range sortedKeys(s.Sysctls) {
		clash(s.HostNetwork && strings.HasPrefix(name, "net."), "sysctls", "hostNetwork", name+" would change the machine's own network")
		clash(s.HostIPC && strings.HasPrefix(name, "kernel.shm"), "sysctls", "hostIPC", name+" would change the machine's own IPC objects")
	}
	clash(s.HostPID && s.ShareProcesses, "shareProcessNamespace", "hostPID", "all processes are in the machine's namespace")
	for _, list := range [][]group.Container{s.InitContainers, s.Containers, s.Ephemeral} {
		for i := range list {
			if list[i].IsPrivileged() && list[i].Security.Seccomp != "" {
				d.fault("", "properties.containers", "The container '%s' has a 'seccompProfile' and is 'privileged', which has no filter. Remove one of them.", list[i].Name)
			}
		}
	}
}

// reservedMount says whether a path in a container is the platform's. The machine's own files may be mounted over its
// devices and its view of the kernel: who gets them there asked for those of the machine.
func reservedMount(clean string, host bool) bool {
	devices := clean == "/dev" || clean == "/sys" || strings.HasPrefix(clean, "/sys/")
	return clean == "/" || clean == "/proc" || strings.HasPrefix(clean, "/proc/") || devices && !host
}
