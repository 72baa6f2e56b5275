package test

import (
	"encoding/base64"
	"strings"
	"testing"

	"spillway.dev/spillway/internal/host"
)

func TestDefaultIsDeny(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("deny", []M{container("c", sleeper)})
	p.running(n)
	for script, want := range map[string]string{
		"grep NoNewPrivs /proc/self/status":                            "NoNewPrivs:\t1",
		"grep '^Seccomp:' /proc/self/status":                           "Seccomp:\t2",
		"grep CapEff /proc/self/status":                                "CapEff:\t00000000a00425fb",
		"cat /proc/kcore /proc/keys 2>/dev/null | wc -c":               "0",
		"(echo 1 >/proc/sys/kernel/panic) 2>/dev/null || echo refused": "refused",
		"mount -t tmpfs none /tmp || echo refused":                     "refused",
		"mknod /tmp/sda b 8 0 || echo refused":                         "refused",
		"dd if=/dev/mem count=1 || echo refused":                       "refused",
		"ls /sys/firmware | wc -l":                                     "0",
		"touch /sys/fs/cgroup/x || echo refused":                       "refused",
		"cat /proc/1/cgroup | grep -c spillway || true":                "0",
		"ls /proc | grep -c '^[0-9]*$' | awk '{print $1 < 12}'":        "1",
	} {
		// Two streams have no order between them: only one is looked at.
		if out, _ := p.exec(n, "c", "{ "+script+"; } 2>/dev/null"); !strings.HasSuffix(out, want) {
			t.Errorf("%s\n = %q, want %q", script, out, want)
		}
	}
}

func TestSecurityContext(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	profile := base64.StdEncoding.EncodeToString([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}`))
	n := p.create("context", []M{
		container("user", "id; touch /root/x || echo no-root; cat /proc/self/status | grep CapEff; "+sleeper, M{"securityContext": M{"runAsUser": 1000, "runAsGroup": 2000, "supplementalGroups": []int{3000}, "runAsNonRoot": true}}),
		container("caps", "grep CapEff /proc/self/status; grep NoNewPrivs /proc/self/status; "+sleeper, M{"securityContext": M{"allowPrivilegeEscalation": true, "capabilities": M{"drop": []string{"ALL"}, "add": []string{"NET_BIND_SERVICE"}}}}),
		container("readonly", "touch /x || echo read-only; touch /dev/shm/y && echo shm-fine; "+sleeper, M{"securityContext": M{"readOnlyRootFilesystem": true}}),
		container("profile", "mkdir /tmp/d || echo filtered; "+sleeper, M{"securityContext": M{"seccompProfile": profile}}),
	})
	p.running(n)
	p.awaitLog(n, "user", "CapEff")
	p.awaitLog(n, "caps", "NoNewPrivs")
	p.awaitLog(n, "readonly", "shm-fine")
	for c, wants := range map[string][]string{
		"user":     {"uid=1000(web) gid=2000(extra) groups=2000(extra),3000", "no-root", "CapEff:\t0000000000000000"},
		"caps":     {"CapEff:\t0000000000000400", "NoNewPrivs:\t0"},
		"readonly": {"read-only", "shm-fine"},
	} {
		log := p.logsOf(n, c, host.LogOptions{})
		for _, want := range wants {
			if !strings.Contains(log, want) {
				t.Errorf("%s lacks %q:\n%s", c, want, log)
			}
		}
	}
	p.awaitLog(n, "profile", "filtered")
	root := p.create("nonroot", []M{container("c", "id", M{"securityContext": M{"runAsNonRoot": true}})})
	if g := p.awaitState(root, "Failed"); !strings.Contains(detail(g, 0), "root") {
		t.Errorf("detail %q does not say why", detail(g, 0))
	}
	if why := p.refused(name("privileged"), group([]M{container("c", "id", M{"securityContext": M{"privileged": true}})})); !strings.Contains(why, "privileged") {
		t.Errorf("refusal %q does not name the field", why)
	}
}

func TestHostileImage(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	const ref = "registry.test/hostile:1"
	img, err := busyboxImage(
		entry{path: "proc", link: "/tmp"}, entry{path: "dev", link: "../../../../tmp"}, entry{path: "sys", link: "/"},
		entry{path: "mnt/out", link: "../../../../../../var/tmp"}, entry{path: "mnt/configmap", link: "/var/tmp"},
		entry{path: "etc/hosts", link: "/etc/passwd"}, entry{path: "etc/resolv.conf", link: "../../../../../../etc/shadow"})
	if err != nil {
		t.Skip(err)
	}
	path, err := archive(ref, img)
	if err := p.importImage(path, err); err != nil {
		t.Fatal(err)
	}
	n := p.create("hostile", []M{container("c", "mount | grep -c ' / '; ls -d /proc/self /dev/null /sys/kernel; touch /mnt/out/spillway-escape; cat /etc/hosts | head -1; "+sleeper, M{"image": ref,
		"volumeMounts": []M{{"name": "data", "mountPath": "/mnt/out/deep"}}, "configMap": M{"keyValuePairs": M{"k": "v"}}})},
		M{"volumes": []M{{"name": "data", "emptyDir": M{}}}})
	p.running(n)
	log := p.awaitLog(n, "c", "/sys/kernel")
	if !strings.Contains(log, "/dev/null") || !strings.Contains(log, "/proc/self") {
		t.Errorf("the platform's own file systems are not there:\n%s", log)
	}
	if exists("/var/tmp/spillway-escape") || exists("/var/tmp/deep") || exists("/var/tmp/c") {
		t.Error("the image's links led out to the host")
	}
}
