package bench

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// engine is something that starts the payload in a container with a network namespace of its own.
type engine interface {
	name() string
	// start runs the payload once. started is the time from the request to the payload's first instruction; command
	// is how long the request itself took.
	start(ctx context.Context, id string) (started, command time.Duration, err error)
	// remove takes the container away; it is not timed.
	remove(ctx context.Context, id string) error
	close()
}

// peerOptions are what makes the peers comparable.
type peerOptions struct {
	dir   string // scratch
	image []byte // docker archive
	only  map[string]bool
}

// openPeers starts every peer that is on the machine; the others are named with the reason.
func openPeers(ctx context.Context, o peerOptions, missing map[string]string) []engine {
	makers := []struct {
		name string
		open func(context.Context, peerOptions) (engine, error)
	}{{"crun", openCrun}, {"docker", openDocker}, {"podman", openPodman}, {"ctr", openCtr}}
	var peers []engine
	for _, m := range makers {
		if len(o.only) > 0 && !o.only[m.name] {
			continue
		}
		e, err := m.open(ctx, o)
		if err != nil {
			missing[m.name] = err.Error()
			continue
		}
		peers = append(peers, e)
	}
	return peers
}

// command runs a program and gives its output; its error is what the program said.
func command(ctx context.Context, env []string, argv ...string) (string, error) {
	return collect(ctx, env, (*exec.Cmd).Start, argv)
}

// enclosedCommand runs a program in the peers' network.
func enclosedCommand(ctx context.Context, env []string, argv ...string) (string, error) {
	network, err := enclosed()
	if err != nil {
		return "", err
	}
	return collect(ctx, env, network.start, argv)
}

func collect(ctx context.Context, env []string, start func(*exec.Cmd) error, argv []string) (string, error) {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Env = append(os.Environ(), env...)
	var out, errs strings.Builder
	c.Stdout, c.Stderr = &out, &errs
	err := start(c)
	if err == nil {
		err = c.Wait()
	}
	if err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", strings.Join(argv[:min(len(argv), 4)], " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// foreground starts a program that runs a container in the foreground and waits for the payload's line: when the
// request began, when the line arrived, and the line.
func foreground(ctx context.Context, argv ...string) (begin, arrived time.Duration, line string, err error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, 0, "", err
	}
	begin = now()
	if err := cmd.Start(); err != nil {
		return 0, 0, "", err
	}
	line, err = bufio.NewReader(out).ReadString('\n')
	arrived = now()
	go func() { _ = cmd.Wait() }()
	if err != nil {
		err = fmt.Errorf("%s: %w", strings.Join(argv[:min(len(argv), 4)], " "), err)
	}
	return begin, arrived, line, err
}

// until calls f until it is content or the patience is over.
func until(ctx context.Context, patience time.Duration, f func() error) error {
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil || time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// find looks a program up, Debian's own first: another client of the same name may stand before it on the path.
func find(names ...string) (string, error) {
	for _, name := range names {
		for _, dir := range []string{"/usr/bin", "/usr/sbin"} {
			if path := filepath.Join(dir, name); exec.Command("test", "-x", path).Run() == nil {
				return path, nil
			}
		}
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not installed", names[0])
}
