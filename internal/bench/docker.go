package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// daemon is a process of ours that serves an engine, ended by its process id.
type daemon struct{ cmd *exec.Cmd }

func startDaemon(dir string, argv ...string) (*daemon, error) {
	log, err := os.Create(filepath.Join(dir, filepath.Base(argv[0])+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	d := &daemon{exec.Command(argv[0], argv[1:]...)}
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	network, err := enclosed()
	if err != nil {
		return nil, err
	}
	return d, network.start(d.cmd)
}

func (d *daemon) stop() {
	const patience = 20 * time.Second
	if d == nil || d.cmd.Process == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = d.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		_ = d.cmd.Process.Kill()
		<-done
	}
}

// docker is a Docker engine of our own, on directories and a socket of its own, with crun underneath and its default
// bridge network.
type docker struct {
	path, socket, dir string
	d                 *daemon
}

func openDocker(ctx context.Context, o peerOptions) (engine, error) {
	path, err := find("docker")
	if err != nil {
		return nil, err
	}
	dockerd, err := find("dockerd")
	if err != nil {
		return nil, err
	}
	crun, err := find("crun")
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(o.dir, "docker")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	e := &docker{path: path, dir: dir, socket: "unix://" + filepath.Join(dir, "docker.sock")}
	e.d, err = startDaemon(dir, dockerd, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--host", e.socket, "--pidfile", filepath.Join(dir, "pid"), "--add-runtime", "crun="+crun, "--default-runtime", "crun",
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--storage-driver", "overlay2")
	if err != nil {
		return nil, err
	}
	const patience = 30 * time.Second
	err = until(ctx, patience, func() error { _, err := e.run(ctx, "info"); return err })
	if err == nil {
		err = e.load(ctx, o.image)
	}
	if err != nil {
		e.close()
		return nil, fmt.Errorf("dockerd does not work here: %w", errors.Join(err, tail(filepath.Join(dir, "dockerd.log"))))
	}
	return e, nil
}

// tail is the end of a daemon's log as an error.
func tail(path string) error {
	body, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(string(body)), "\n")
	return errors.New(lines[len(lines)-1])
}

func (e *docker) run(ctx context.Context, args ...string) (string, error) {
	return command(ctx, nil, append([]string{e.path, "--host", e.socket}, args...)...)
}

func (e *docker) load(ctx context.Context, image []byte) error {
	path := filepath.Join(e.dir, "image.tar")
	if err := os.WriteFile(path, image, 0o644); err != nil {
		return err
	}
	_, err := e.run(ctx, "load", "--input", path)
	return err
}

func (e *docker) name() string { return "docker" }

func (e *docker) start(ctx context.Context, id string) (time.Duration, time.Duration, error) {
	begin := now()
	if _, err := e.run(ctx, "run", "-d", "--name", id, "--cpus", "1", "--memory", "1g", "--pids-limit", "4096", imageName); err != nil {
		return 0, 0, err
	}
	took := now() - begin
	return stampOf(ctx, begin, took, func() (string, error) { return e.run(ctx, "logs", id) })
}

// stampOf reads the payload's time out of an engine's log.
func stampOf(ctx context.Context, begin, took time.Duration, logs func() (string, error)) (time.Duration, time.Duration, error) {
	const patience = 5 * time.Second
	var at time.Duration
	err := until(ctx, patience, func() error {
		out, err := logs()
		if err != nil {
			return err
		}
		at, err = stamp(out)
		return err
	})
	return at - begin, took, err
}

func (e *docker) remove(ctx context.Context, id string) error {
	_, err := e.run(ctx, "rm", "--force", id)
	return err
}

func (e *docker) close() {
	e.d.stop()
	_ = os.RemoveAll(e.dir)
}
