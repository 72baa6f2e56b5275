package test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestFullDiskRefusesNewGroupsOnly(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp(work, "small-")
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("small", dir, "tmpfs", 0, "size=1200m"); err != nil {
		t.Skipf("a small tmpfs cannot be mounted: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	p := startPlatform(t, options{dir: dir})
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	n := p.create("fits", []M{container("c", "while :; do echo alive; sleep 0.1; done")})
	g := p.running(n)
	before := starts(g)
	ballast := filepath.Join(dir, "ballast")
	if err := fill(ballast, 1200<<20); err == nil {
		t.Fatal("the small disk never became full")
	}
	var why string
	waitFor(t, "a refusal", func() bool {
		late := name("late")
		_, err := p.client.PutGroup(t.Context(), "", late, group([]M{container("c", "true")}))
		if err == nil {
			_ = p.client.DeleteGroup(t.Context(), "", late, false)
			return false
		}
		why = err.Error()
		return true
	})
	if !strings.Contains(strings.ToLower(why), "disk") {
		t.Errorf("refusal %q does not speak of the disk", why)
	}
	if now := starts(p.get(n)); now != before {
		t.Error("the group that runs was harmed")
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := p.up(); err != nil {
		t.Fatalf("start on a full disk: %v", err)
	}
	if now := starts(p.get(n)); now != before {
		t.Error("the group that runs was harmed by a restart on a full disk")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	late := name("late")
	deadline := time.Now().Add(patience)
	for {
		_, err := p.client.PutGroup(t.Context(), "", late, group([]M{container("c", "true")}))
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("with room again: %v", err)
		}
		time.Sleep(300 * time.Millisecond)
	}
	p.awaitState(late, "Succeeded")
	p.remove(late)
}

func fill(path string, most int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for range most / len(buf) {
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	return nil
}
