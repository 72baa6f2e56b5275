package sandbox

// capNames are Linux's capabilities in the order of their numbers (linux/capability.h), without CAP_.
var capNames = []string{"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE",
	"SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME",
	"SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
	"WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"}

// defaultCaps are what a container has when it asks for nothing: the usual set of container engines without MKNOD,
// whose nodes would be dead anyway.
var defaultCaps = []string{"CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
	"NET_BIND_SERVICE", "NET_RAW", "SYS_CHROOT", "AUDIT_WRITE", "SETFCAP"}

// Caps is the set of capabilities after additions and removals. ALL may be dropped.
func Caps(add, drop []string) uint64 {
	var caps uint64
	set := func(names []string, on bool) {
		for _, name := range names {
			for i, known := range capNames {
				if name != known && name != "ALL" {
					continue
				}
				if on {
					caps |= 1 << i
				} else {
					caps &^= 1 << i
				}
			}
		}
	}
	set(defaultCaps, true)
	if len(drop) > 0 {
		set(drop, false)
	}
	set(add, true)
	return caps
}

// PrivilegedCaps is the set of all capabilities but some.
func PrivilegedCaps(drop []string) uint64 {
	return Caps([]string{"ALL"}, nil) &^ Caps(drop, []string{"ALL"})
}

// CapNames are the names of a set, with CAP_.
func CapNames(caps uint64) []string {
	names := []string{}
	for i, name := range capNames {
		if caps&(1<<i) != 0 {
			names = append(names, "CAP_"+name)
		}
	}
	return names
}
