package arm

import (
	"strings"
	"testing"
)

// TestHostAccessIsDecoded reads the fields that ask for the machine itself: which are taken, and what of them clashes.
func TestHostAccessIsDecoded(t *testing.T) {
	type part = map[string]any
	volumes := func(hostPath part) part {
		return part{"volumes": []any{part{"name": "data1", "hostPath": hostPath}}}
	}
	mounted := func(at string, source part) part {
		return part{"volumes": []any{source}, "mounts": []any{part{"name": "data1", "mountPath": at}}}
	}
	host, empty := part{"name": "data1", "hostPath": part{"path": "/dev"}}, part{"name": "data1", "emptyDir": part{}}
	for _, test := range []struct {
		properties part
		words      string // "": fine
	}{
		{part{"hostNetwork": true, "hostPID": true, "hostIPC": true, "hostAddress": "192.0.2.1"}, ""},
		{part{"hostNetwork": true, "dnsConfig": part{"nameServers": []any{"192.0.2.1"}}, "sysctls": part{"kernel.shm_rmid_forced": "1"}}, ""},
		{part{"hostNetwork": "yes"}, "true or false"},
		{part{"hostAddress": "192.0.2.1"}, "needs 'hostNetwork'"},
		{part{"hostNetwork": true, "hostAddress": "fd00::1"}, "IPv4"},
		{part{"hostNetwork": true, "hostname": "x"}, "properties.hostname"},
		{part{"hostNetwork": true, "network": "blue"}, "properties.network"},
		{part{"hostNetwork": true, "hostsComment": "x"}, "/etc/hosts"},
		{part{"hostsComment": "managed"}, ""},
		{part{"hostsComment": "one\ntwo"}, "one line"},
		{part{"hostNetwork": true, "ipAddress": part{"type": "Public", "ports": []any{part{"port": 80}}}}, "own addresses"},
		{part{"hostNetwork": true, "sysctls": part{"net.ipv4.tcp_syncookies": "1"}}, "machine's own network"},
		{part{"hostIPC": true, "sysctls": part{"kernel.shm_rmid_forced": "1"}}, "IPC objects"},
		{part{"hostPID": true, "shareProcessNamespace": true}, "shareProcessNamespace"},
		{part{"hostPID": true, "isolation": "gvisor"}, "properties.hostPID' cannot be honoured with isolation gvisor"},
		{part{"isolation": "gvisor", "volumes": []any{host}}, "properties.volumes[0].hostPath' cannot be honoured with isolation gvisor"},
		{part{"security": part{"privileged": true, "capabilities": part{"add": []any{"SYS_ADMIN"}}}}, ""},
		{part{"security": part{"privileged": true, "capabilities": part{"add": []any{"NOPE"}}}}, "does not exist"},
		{part{"security": part{"privileged": true, "seccompProfile": "e30="}}, "has no filter"},
		{part{"security": part{"capabilities": part{"add": []any{"SYS_ADMIN"}}}}, "cannot be granted"},
		{part{"security": part{"privileged": true}, "isolation": "gvisor"}, "securityContext.privileged' cannot be honoured"},
		{volumes(part{"path": "/var/log", "type": "directoryorcreate"}), ""},
		{volumes(part{"path": "/var/log", "type": "Disk"}), "one of Directory, DirectoryOrCreate"},
		{volumes(part{"path": "var/log"}), "must be absolute"},
		{volumes(part{"path": "/var/../etc"}), "without '..'"},
		{volumes(part{"type": "File"}), "required"},
		{volumes(part{"path": "/x", "readOnly": true}), "unknown"},
		{mounted("/dev", host), ""},
		{mounted("/sys/fs/bpf", host), ""},
		{mounted("/proc", host), "belongs to the platform"},
		{mounted("/dev", empty), "belongs to the platform"},
	} {
		properties := part{}
		main := container("main")
		for k, v := range test.properties {
			switch k {
			case "security":
				main["properties"].(obj)["securityContext"] = v
			case "mounts":
				main["properties"].(obj)["volumeMounts"] = v
			default:
				properties[k] = v
			}
		}
		properties["containers"] = []any{main}
		_, err := Decode(edit(t, "properties", properties), vOwn, "web")
		switch {
		case test.words == "" && err != nil:
			t.Errorf("%v: Decode = %v, want nil", test.properties, err)
		case test.words != "" && (err == nil || !strings.Contains(err.Error(), test.words)):
			t.Errorf("%v: Decode = %v, want %q", test.properties, err, test.words)
		}
		if _, err := Decode(edit(t, "properties", properties), v2025, "web"); test.words == "" && err == nil {
			t.Errorf("%v: Decode took it in an older api-version", test.properties)
		}
	}
}
