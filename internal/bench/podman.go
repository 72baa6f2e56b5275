package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// podman runs without a daemon, with crun underneath and its default bridge network.
type podman struct{ path, dir string }

// podmanConf: the defaults of podman's limits are above what a machine without CAP_SYS_RESOURCE may set.
const podmanConf = "[containers]\ndefault_ulimits=[\"nofile=1024:1024\",\"nproc=1024:1024\"]\n[engine]\ncgroup_manager=\"cgroupfs\"\nevents_logger=\"file\"\nruntime=\"crun\"\n"

func openPodman(ctx context.Context, o peerOptions) (engine, error) {
	path, err := find("podman")
	if err != nil {
		return nil, err
	}
	e := &podman{path: path, dir: filepath.Join(o.dir, "podman")}
	if err := os.MkdirAll(e.dir, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(e.dir, "containers.conf"), []byte(podmanConf), 0o644); err != nil {
		return nil, err
	}
	archive := filepath.Join(e.dir, "image.tar")
	if err := os.WriteFile(archive, o.image, 0o644); err != nil {
		return nil, err
	}
	if _, err := e.run(ctx, "load", "--input", archive); err != nil {
		e.close()
		return nil, fmt.Errorf("podman does not work here: %w", err)
	}
	return e, nil
}

func (e *podman) run(ctx context.Context, args ...string) (string, error) {
	argv := []string{e.path, "--root", filepath.Join(e.dir, "root"), "--runroot", filepath.Join(e.dir, "run"), "--log-level", "error"}
	return enclosedCommand(ctx, []string{"CONTAINERS_CONF=" + filepath.Join(e.dir, "containers.conf")}, append(argv, args...)...)
}

func (e *podman) name() string { return "podman" }

func (e *podman) start(ctx context.Context, id string) (time.Duration, time.Duration, error) {
	begin := now()
	if _, err := e.run(ctx, "run", "-d", "--pull=never", "--name", id, "--cpus", "1", "--memory", "1g", "--pids-limit", "4096", "localhost/"+imageName); err != nil {
		return 0, 0, err
	}
	took := now() - begin
	return stampOf(ctx, begin, took, func() (string, error) { return e.run(ctx, "logs", id) })
}

func (e *podman) remove(ctx context.Context, id string) error {
	_, err := e.run(ctx, "rm", "--force", "--time", "0", id)
	return err
}

func (e *podman) close() {
	ctx := context.Background()
	_, _ = e.run(ctx, "rm", "--all", "--force", "--time", "0")
	_, _ = command(ctx, nil, "umount", "--recursive", filepath.Join(e.dir, "root", "overlay"))
	_ = os.RemoveAll(e.dir)
}
