package runtime_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/runtime"
	"spillway.dev/spillway/internal/runtime/runtimetest"
)

// program builds the keeper once.
func program(t *testing.T) string {
	t.Helper()
	path, err := keeperProgram()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var keeperProgram = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "spillway-keeper-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "spillway-keeper")
	cmd := exec.Command("go", "build", "-o", path, "spillway.dev/spillway/cmd/spillway-keeper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	return path, cmd.Run()
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := keeperProgram(); err == nil && path != "" {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func TestParked(t *testing.T) {
	runtimetest.Run(t, program(t), runtimetest.Subject{Make: func(k func() runtime.Keeper, tree *cgroup.Tree, _ string) runtime.Runtime {
		return runtime.NewParked(k, tree)
	}})
}

func TestCrun(t *testing.T) { conformOCI(t, "crun", runtime.OCIConfig{}) }

func TestRunc(t *testing.T) { conformOCI(t, "runc", runtime.OCIConfig{}) }

func TestRunsc(t *testing.T) {
	conformOCI(t, "runsc", gVisor)
}

func TestRunscBeside(t *testing.T) {
	conformOCI(t, "runsc", gVisor, func(s *runtimetest.Subject) { s.Beside = true })
}

var gVisor = runtime.OCIConfig{GVisor: true, Args: []string{"--platform=systrap", "--network=sandbox", "--overlay2=none"}}

func conformOCI(t *testing.T, name string, cfg runtime.OCIConfig, more ...func(*runtimetest.Subject)) {
	path, err := exec.LookPath(name)
	if own, abs := filepath.Abs("../../bin/" + name); abs == nil && err != nil {
		if _, missing := os.Stat(own); missing == nil {
			path, err = own, nil
		}
	}
	if err != nil {
		how := "apt-get install " + name
		if cfg.GVisor {
			how = "make runsc"
		}
		t.Skipf("%s is missing: %s", name, how)
	}
	s := runtimetest.Subject{Guest: cfg.GVisor, Make: func(k func() runtime.Keeper, tree *cgroup.Tree, state string) runtime.Runtime {
		cfg.Path, cfg.Root = path, state
		return runtime.NewOCI(cfg, k, tree)
	}}
	for _, change := range more {
		change(&s)
	}
	runtimetest.Run(t, program(t), s)
}
