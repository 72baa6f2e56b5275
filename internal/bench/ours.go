package bench

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
)

// ours is a platform of our own: the same binary, started as `spillway up` on a temporary directory.
type ours struct {
	label     string
	dir       string
	isolation string
	cmd       *exec.Cmd
	self      string
	api       *client.Client
}

func openOurs(ctx context.Context, dir string, image []byte, flags ...string) (*ours, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	e := &ours{label: "spillway", dir: dir, self: self}
	if err := e.up(flags...); err != nil {
		return nil, err
	}
	if _, err := e.api.ImportImage(ctx, bytes.NewReader(image)); err != nil {
		e.close()
		return nil, fmt.Errorf("import the payload: %w", err)
	}
	return e, nil
}

// up starts the platform and waits for its ready line.
func (e *ours) up(flags ...string) error {
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(e.dir, "bench-up.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	e.cmd = exec.Command(e.self, append([]string{"up", "--data-dir", e.dir, "--listen", "127.0.0.1:0", "--cpu-overcommit", "1000"}, flags...)...)
	e.cmd.Stderr = log
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := e.cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := e.cmd.Start(); err != nil {
		return err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "ready ") {
		body, _ := os.ReadFile(log.Name())
		return fmt.Errorf("spillway up did not start: %s", body)
	}
	go func() { _, _ = io.Copy(io.Discard, out) }()
	cfg, err := client.LoadConfig(e.config())
	if err != nil {
		return err
	}
	e.api, err = client.New(*cfg)
	return err
}

func (e *ours) config() string { return filepath.Join(e.dir, "client.json") }

func (e *ours) name() string { return e.label }

// group is the body of a PUT, with the limits that the peers get.
func (e *ours) group() map[string]any {
	body := payloadGroup(e.api, "Never")
	if e.isolation != "" {
		body["properties"].(map[string]any)["isolation"] = e.isolation
	}
	return body
}

func (e *ours) start(ctx context.Context, id string) (time.Duration, time.Duration, error) {
	body := e.group()
	wall, begin := time.Now(), now()
	if _, err := e.api.PutGroup(ctx, "", id, body); err != nil {
		return 0, 0, err
	}
	took := now() - begin
	if e.isolation == "gvisor" {
		at, err := e.arrival(ctx, id)
		return at.Sub(wall), took, err
	}
	at, err := e.stampOf(ctx, id)
	return at - begin, took, err
}

// arrival is when the payload's output reached the host, from the log: a guest kernel has a clock of its own.
func (e *ours) arrival(ctx context.Context, id string) (time.Time, error) {
	if _, err := e.stampOf(ctx, id); err != nil {
		return time.Time{}, err
	}
	var out bytes.Buffer
	if err := e.api.Logs(ctx, client.Target{Group: id, Container: "payload"}, host.LogOptions{Timestamps: true}, &out); err != nil {
		return time.Time{}, err
	}
	text, _, _ := strings.Cut(out.String(), " ")
	return time.Parse(time.RFC3339Nano, text)
}

// stampOf reads the payload's time; it waits by watching, so that reading disturbs no start.
func (e *ours) stampOf(ctx context.Context, id string) (time.Duration, error) {
	return payloadStamp(ctx, e.api, id, 0)
}

func started(g *client.Group) (bool, error) {
	view := g.Properties.InstanceView
	if view == nil {
		return false, nil
	}
	if view.State == "Failed" {
		return false, fmt.Errorf("group %s failed", g.Name)
	}
	return view.State == "Running" || view.State == "Succeeded", nil
}

// startCommand runs `spillway run --wait` as a command and gives how long it took.
func (e *ours) startCommand(ctx context.Context, id string) (time.Duration, error) {
	begin := now()
	_, err := command(ctx, []string{"SPILLWAY_CONFIG=" + e.config()}, e.self, "run", imageName, "--name", id, "--restart", "Never", "--memory", "0.1", "--grace", "0", "--wait")
	return now() - begin, err
}

func (e *ours) remove(ctx context.Context, id string) error {
	return e.api.DeleteGroup(ctx, "", id, true)
}

func (e *ours) close() {
	if e.api != nil {
		e.api.Close()
	}
	if e.cmd != nil && e.cmd.Process != nil {
		_ = e.cmd.Process.Signal(syscall.SIGTERM)
		_ = e.cmd.Wait()
	}
	if _, err := command(context.Background(), nil, e.self, "down", "--data-dir", e.dir, "--purge"); err != nil {
		fmt.Fprintln(os.Stderr, "bench: take the platform away:", err)
	}
	_ = os.RemoveAll(e.dir)
}
