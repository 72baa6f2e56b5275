package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// ctr is a containerd of our own with crun underneath. ctr connects a container to no network: it is a lower bound.
type ctr struct {
	path, dir, address, crun string
	d                        *daemon
}

const containerdConf = `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = %q
[plugins."io.containerd.runtime.v1.linux"]
no_shim = false
`

func openCtr(ctx context.Context, o peerOptions) (engine, error) {
	path, err := find("ctr")
	if err != nil {
		return nil, err
	}
	containerd, err := find("containerd")
	if err != nil {
		return nil, err
	}
	crunPath, err := find("crun")
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(o.dir, "containerd")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	e := &ctr{path: path, dir: dir, address: filepath.Join(dir, "sock"), crun: crunPath}
	conf := filepath.Join(dir, "config.toml")
	body := fmt.Sprintf(containerdConf, filepath.Join(dir, "root"), filepath.Join(dir, "state"), e.address)
	if err := os.WriteFile(conf, []byte(body), 0o644); err != nil {
		return nil, err
	}
	if e.d, err = startDaemon(dir, containerd, "--config", conf); err != nil {
		return nil, err
	}
	const patience = 20 * time.Second
	err = until(ctx, patience, func() error { _, err := e.run(ctx, "version"); return err })
	if err == nil {
		archive := filepath.Join(dir, "image.tar")
		if err = os.WriteFile(archive, o.image, 0o644); err == nil {
			_, err = e.run(ctx, "images", "import", archive)
		}
	}
	if err != nil {
		e.close()
		return nil, fmt.Errorf("containerd does not work here: %w", err)
	}
	return e, nil
}

func (e *ctr) argv(args ...string) []string {
	return append([]string{e.path, "--address", e.address}, args...)
}

func (e *ctr) run(ctx context.Context, args ...string) (string, error) {
	return command(ctx, nil, e.argv(args...)...)
}

func (e *ctr) name() string { return "ctr" }

func (e *ctr) start(ctx context.Context, id string) (time.Duration, time.Duration, error) {
	begin, _, line, err := foreground(ctx, e.argv("run", "--runc-binary", e.crun, "docker.io/library/"+imageName, id)...)
	if err != nil {
		return 0, 0, err
	}
	at, err := stamp(line)
	return at - begin, 0, err
}

func (e *ctr) remove(ctx context.Context, id string) error {
	_, _ = e.run(ctx, "tasks", "kill", "--signal", "KILL", id)
	const patience = 5 * time.Second
	return until(ctx, patience, func() error {
		_, err := e.run(ctx, "containers", "delete", id)
		return err
	})
}

func (e *ctr) close() {
	e.d.stop()
	_ = os.RemoveAll(e.dir)
}
