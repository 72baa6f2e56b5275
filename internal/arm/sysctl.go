package arm

import "strings"

// safeSysctls are the kernel settings that belong to a group's own namespaces and cannot harm others.
const safeSysctls = " kernel.shm_rmid_forced net.ipv4.ip_local_port_range net.ipv4.ip_local_reserved_ports net.ipv4.ip_unprivileged_port_start net.ipv4.ping_group_range net.ipv4.tcp_fin_timeout net.ipv4.tcp_keepalive_intvl net.ipv4.tcp_keepalive_probes net.ipv4.tcp_keepalive_time net.ipv4.tcp_rmem net.ipv4.tcp_syncookies net.ipv4.tcp_wmem "

func (d *decoder) sysctl(path, name, value string) {
	if strings.ContainsAny(name, " ") || !strings.Contains(safeSysctls, " "+name+" ") {
		d.fault("", path, "The sysctl '%s' in '%s' cannot be set for one group. Allowed are:%s.", clip(name), path, strings.TrimRight(safeSysctls, " "))
	}
	if value == "" || len(value) > 256 || strings.ContainsAny(value, "\n\x00") {
		d.fault("", path, "The value of the sysctl '%s' in '%s' is invalid.", clip(name), path)
	}
}
