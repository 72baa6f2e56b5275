package arm

import "strings"

// grantable are the capabilities that a container may ask for: the usual set of container engines, less what reaches
// out of a container that shares the host's user namespace. MKNOD makes the host's disks, SYS_PTRACE takes over the
// privileged process that joins a container for a command, SYS_NICE gets real-time scheduling past every CPU limit.
const grantable = " AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID IPC_LOCK KILL NET_BIND_SERVICE NET_RAW SETFCAP SETGID SETPCAP SETUID SYS_CHROOT "

// known are the other capabilities of Linux: they may be dropped, not added, for only a privileged container has them.
const known = " AUDIT_CONTROL AUDIT_READ BLOCK_SUSPEND BPF CHECKPOINT_RESTORE DAC_READ_SEARCH IPC_OWNER LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN NET_BROADCAST PERFMON SYSLOG SYS_ADMIN SYS_BOOT SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM "

// capabilities reads a list of capability names and gives them without the prefix CAP_; any: there may be all of them.
func (d *decoder) capabilities(o *object, name string, any bool) []string {
	var out []string
	for _, s := range o.strings(name) {
		c := strings.TrimPrefix(strings.ToUpper(s), "CAP_")
		word := " " + c + " "
		valid := c != "" && !strings.Contains(c, " ")
		switch {
		case valid && strings.Contains(grantable, word), valid && any && (c == "ALL" || strings.Contains(known, word)):
			out = append(out, c)
		case valid && (c == "ALL" || strings.Contains(known, word)):
			d.fault("", o.at(name), "The capability '%s' in '%s' cannot be granted: it reaches beyond the container. Grantable are:%s.", c, o.at(name), strings.TrimRight(grantable, " "))
		default:
			d.fault("", o.at(name), "The capability '%s' in '%s' does not exist.", clip(s), o.at(name))
		}
	}
	return out
}
