package test

import (
	"crypto/rand"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
)

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func mounts(list ...M) M { return M{"volumeMounts": list} }

func TestEmptyDir(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("scratch", []M{
		container("a", "echo x >/disk/f; echo y >/memory/f; stat -f -c %T /memory /disk; touch /sub/file; "+sleeper,
			mounts(M{"name": "disk-volume", "mountPath": "/disk"}, M{"name": "memory-volume", "mountPath": "/memory"}, M{"name": "disk-volume", "mountPath": "/sub", "subPath": "in/side"})),
		container("b", "sleep 0.5; cat /disk/f /memory/f; ls /disk/in/side; touch /disk/z 2>/dev/null || echo read-only; "+sleeper,
			mounts(M{"name": "disk-volume", "mountPath": "/disk", "readOnly": true}, M{"name": "memory-volume", "mountPath": "/memory"})),
	}, M{"volumes": []M{{"name": "disk-volume", "emptyDir": M{}}, {"name": "memory-volume", "emptyDir": M{"medium": "Memory", "sizeLimitInGB": 0.01}}}})
	if log := p.awaitLog(n, "b", "read-only"); !strings.HasPrefix(log, "x\ny\nfile\n") {
		t.Errorf("b saw %q, want x, y, file", log)
	}
	if log := p.logsOf(n, "a", host.LogOptions{}); !strings.HasPrefix(log, "tmpfs\n") {
		t.Errorf("the memory volume is %q, want tmpfs", log)
	}
	if _, code := p.exec(n, "a", "dd if=/dev/zero of=/memory/big bs=1M count=20 2>/dev/null"); code == 0 {
		t.Error("20 MB fit into a memory volume of 10 MB")
	}
}

func TestEmptyDirOverItsSize(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("toobig", []M{container("c", "dd if=/dev/zero of=/data/big bs=1M count=30 2>/dev/null; "+sleeper, mounts(M{"name": "data", "mountPath": "/data"}))},
		M{"volumes": []M{{"name": "data", "emptyDir": M{"sizeLimitInGB": 0.01}}}})
	g := p.awaitState(n, "Failed")
	if !strings.Contains(events(g), "Evicted") {
		t.Errorf("events do not tell of the eviction:\n%s", events(g))
	}
}

func TestSecretVolume(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	// The container shows the beginning alone: its log is a file on the disk. The rest is found nowhere by chance.
	// Not a constant: images of other tests hold this very program.
	secret := "hush-" + rand.Text()
	value := base64.StdEncoding.EncodeToString([]byte(secret))
	n := p.create("secret", []M{container("c", "cut -c1-4 /run/secret/key; stat -L -c '%a' /run/secret/key /run/secret/tool; df /run/secret | grep -c tmpfs; touch /run/secret/new 2>/dev/null || echo read-only; "+sleeper,
		mounts(M{"name": "secret", "mountPath": "/run/secret", "readOnly": true}))},
		M{"volumes": []M{{"name": "secret", "secret": M{"key": value, "tool": value}, "mode": "0400", "modes": M{"tool": "0755"}}}})
	if log := p.awaitLog(n, "c", "read-only"); !strings.HasPrefix(log, "hush\n400\n755\n1\n") {
		t.Errorf("log %q, want hush, 400, 755, on tmpfs", log)
	}
	if g := p.get(n); strings.Contains(string(g.Raw), value) || strings.Contains(string(g.Raw), secret) {
		t.Error("the answer shows the secret")
	}
	found := false
	_ = filepath.WalkDir(p.dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.Contains(path, "/agent/volumes/") {
			body, _ := os.ReadFile(path)
			found = found || strings.Contains(string(body), secret) || strings.Contains(string(body), value)
		}
		return nil
	})
	if found {
		t.Error("the secret is on disk in the clear")
	}
}

func TestConfigMapUpdatesLive(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	body := func(v string) ([]M, M) {
		return []M{container("c", "while :; do cat /config/key /mnt/configmap/c/own; echo; sleep 0.1; done", mounts(M{"name": "config", "mountPath": "/config"}),
				M{"configMap": M{"keyValuePairs": M{"own": "own-" + v}}})},
			M{"volumes": []M{{"name": "config", "configMap": M{"keyValuePairs": M{"key": "key-" + v}}}}}
	}
	c, v := body("1")
	n := p.create("config", c, v)
	p.awaitLog(n, "c", "key-1own-1")
	c, v = body("2")
	p.put(n, group(c, v))
	p.awaitLog(n, "c", "key-2own-2")
	if g := p.get(n); restarts(g, 0) != 0 || strings.Contains(events(g), "Killing") {
		t.Errorf("the update of a config map restarted the container:\n%s", events(g))
	}
}

func TestAzureFileShare(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	file := name("file")
	t.Cleanup(func() { os.Remove(filepath.Join(work, "share", file)) })
	n := p.create("share", []M{container("c", "echo shared >/share/"+file+"; touch /locked/x || echo read-only; "+sleeper,
		mounts(M{"name": "share", "mountPath": "/share"}, M{"name": "locked", "mountPath": "/locked"}))},
		M{"volumes": []M{{"name": "share", "azureFile": M{"shareName": "media", "storageAccountName": "acc", "storageAccountKey": "a2V5"}},
			{"name": "locked", "azureFile": M{"shareName": "media", "storageAccountName": "acc", "storageAccountKey": "a2V5", "readOnly": true}}}})
	p.awaitLog(n, "c", "read-only")
	if body, err := os.ReadFile(filepath.Join(work, "share", file)); err != nil || string(body) != "shared\n" {
		t.Errorf("the share has %q, %v; want shared", body, err)
	}
	missing := name("noshare")
	p.put(missing, group([]M{container("c", "true", mounts(M{"name": "share", "mountPath": "/share"}))},
		M{"volumes": []M{{"name": "share", "azureFile": M{"shareName": "nosuch", "storageAccountName": "acc", "storageAccountKey": "a2V5"}}}}))
	t.Cleanup(func() { p.remove(missing) })
	p.await(missing, "the reason", func(g *client.Group) bool { return strings.Contains(events(g), "nosuch") })
}

func TestSubPathCannotEscape(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("subpath", []M{container("c", "ls /in", mounts(M{"name": "data", "mountPath": "/in", "subPath": "out"}))},
		M{"volumes": []M{{"name": "data", "emptyDir": M{}}},
			"initContainers": []M{initContainer("trick", "ln -s /etc /data/out", mounts(M{"name": "data", "mountPath": "/data"}))}})
	g := p.awaitState(n, "Failed")
	if !strings.Contains(detail(g, 0), "sub-path") {
		t.Errorf("detail %q, want the sub-path refused", detail(g, 0))
	}
	if why := p.refused(name("dots"), group([]M{container("c", "true", mounts(M{"name": "data", "mountPath": "/in", "subPath": "../x"}))}, M{"volumes": []M{{"name": "data", "emptyDir": M{}}}})); !strings.Contains(why, "../x") {
		t.Errorf("refusal %q does not name the sub-path", why)
	}
}

func TestEphemeralStorageLimit(t *testing.T) {
	t.Parallel()
	p := sharedPlatform(t)
	n := p.create("layer", []M{container("c", "dd if=/dev/zero of=/big bs=1M count=40 2>/dev/null; "+sleeper)}, M{"ephemeralStorageInGB": 0.01})
	begun := time.Now()
	g := p.awaitState(n, "Failed")
	if !strings.Contains(events(g), "Evicted") {
		t.Errorf("after %s the events do not tell of the eviction:\n%s", time.Since(begun), events(g))
	}
}
