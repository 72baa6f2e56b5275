// Package test proves the platform on a real machine: the binary as it is shipped, real namespaces, cgroups, mounts,
// links and rules, and nothing left of them afterwards.
//
// It needs root; what else a test needs and does not find is named when it is skipped. It must never touch what the
// tests have not made. Start at harness_test.go: platform is one running `spillway up`.
package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// work is a directory of this test run: binaries, images, data of platforms.
var work string

func TestMain(m *testing.M) {
	if os.Getenv(healthRole) != "" {
		os.Exit(serveHealth())
	}
	if os.Getenv(etcdRole) != "" {
		os.Exit(serveEtcd())
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "SKIP: the host tests need root")
		return 0
	}
	var err error
	if work, err = os.MkdirTemp("", "spillway-test-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(work)
	if err := os.Setenv("XDG_CACHE_HOME", filepath.Join(work, "cache")); err != nil { // of platforms that end with the tests
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := endShared(); err != nil {
		fmt.Fprintln(os.Stderr, "shared platform:", err)
		return 1
	}
	return code
}

// binaries are the programs under test, built from the tree once.
type binaries struct {
	spillway, keeper string
}

var built = sync.OnceValues(func() (binaries, error) { return build("..", filepath.Join(work, "bin")) })

// build makes the programs of a source tree.
func build(tree, dir string) (binaries, error) {
	b := binaries{filepath.Join(dir, "spillway"), filepath.Join(dir, "spillway-keeper")}
	for out, pkg := range map[string]string{b.spillway: "./cmd/spillway", b.keeper: "./cmd/spillway-keeper"} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
		cmd.Dir = tree
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if msg, err := cmd.CombinedOutput(); err != nil {
			return b, fmt.Errorf("build %s: %w\n%s", pkg, err, msg)
		}
	}
	return b, nil
}

// shared is a platform that tests without wishes of their own use side by side.
var shared struct {
	sync.Mutex
	p   *platform
	err error
}

func sharedPlatform(t *testing.T) *platform {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.p == nil && shared.err == nil {
		share := filepath.Join(work, "share")
		shared.err = os.MkdirAll(share, 0o755)
		if shared.err == nil {
			shared.p, shared.err = newPlatform(options{args: []string{"--share", "media=" + share, "--public-addresses", "198.51.100.0/26"}})
		}
		if shared.err == nil {
			shared.err = shared.p.importImage(busybox())
		}
	}
	if shared.err != nil {
		t.Fatalf("start the shared platform: %v", shared.err)
	}
	return shared.p.in(t)
}

func endShared() error {
	if shared.p == nil {
		return nil
	}
	return shared.p.destroy()
}
