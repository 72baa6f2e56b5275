package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"spillway.dev/spillway/internal/cgroup"
	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/keeper"
)

// member is a host of a cell: a `spillway agent`.
type member struct {
	on   *machine
	self string
	name string
	dir  string
	p    *process // nil while it is killed
}

// join adds a host.
func (c *cell) join(ctx context.Context, name string) error {
	on, err := c.machine(name)
	if err != nil {
		return err
	}
	m := &member{on: on, self: c.self, name: name, dir: filepath.Join(c.dir, name)}
	c.members = append(c.members, m)
	token, err := c.api().CreateToken(ctx, client.JoinToken{}, 0)
	if err != nil {
		return err
	}
	return m.start("--server", c.servers["a"].endpoint, "--token", token.Token, "--name", name)
}

// start starts the agent and waits until it works.
func (m *member) start(args ...string) (err error) {
	m.p, _, err = m.on.serve(m.log(), append([]string{m.self, "agent", "--data-dir", m.dir}, args...)...)
	return err
}

func (m *member) log() string { return m.dir + ".log" }

// killAgent kills the agent alone.
func (m *member) killAgent() {
	m.p.kill()
	m.p = nil
}

// vanish is the end of a machine: its cable is pulled out, then agent, keeper and all containers are killed.
func (m *member) vanish() error {
	id, err := m.instance()
	if err != nil {
		return err
	}
	run := runDir(id)
	keepers := findProcesses(func(argv []string) bool {
		return len(argv) > 1 && strings.HasSuffix(argv[0], "spillway-keeper") && argv[1] == run
	})
	tree, err := cgroup.Open("spillway-" + id)
	if err != nil {
		return err
	}
	if err := m.on.plug(false); err != nil {
		return err
	}
	m.killAgent()
	killAll(keepers)
	return tree.Kill("")
}

// comeBack plugs the machine in and starts its agent.
func (m *member) comeBack() error {
	return errors.Join(m.on.plug(true), m.start())
}

func runDir(id string) string { return filepath.Join("/run/spillway", id) }

// instance is the host's number on this machine.
func (m *member) instance() (string, error) {
	body, err := os.ReadFile(filepath.Join(m.dir, "instance.json"))
	if err != nil {
		return "", err
	}
	var i struct {
		ID string `json:"id"`
	}
	return i.ID, json.Unmarshal(body, &i)
}

// running are the processes of the host's containers, each told from a later one of the same number by its birth.
func (m *member) running(ctx context.Context) (map[string]bool, error) {
	id, err := m.instance()
	if err != nil {
		return nil, err
	}
	k, err := keeper.Dial(runDir(id), func(keeper.Container) {})
	if err != nil {
		return nil, err
	}
	defer k.Close()
	_, list, err := k.List(ctx)
	out := map[string]bool{}
	for _, c := range list {
		if !c.Exited {
			out[fmt.Sprint(c.Pid, " ", c.Birth)] = true
		}
	}
	return out, err
}

// purge ends the host and takes away all that it has made.
func (m *member) purge() error {
	m.p.stop()
	if _, err := os.Stat(m.dir); os.IsNotExist(err) {
		return nil
	}
	p, err := m.on.run(m.dir+".purge.log", m.self, "down", "--purge", "--data-dir", m.dir)
	if err != nil {
		return err
	}
	if <-p.done; !p.cmd.ProcessState.Success() {
		return fmt.Errorf("take host %s away: %w", m.name, tail(p.log))
	}
	return nil
}
