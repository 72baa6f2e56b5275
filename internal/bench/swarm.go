package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// swarmRounds is how many workers are killed at each setting: a round takes about half a minute.
const swarmRounds = 3

// swarm is Docker Swarm: a manager that runs nothing and two workers, each a dockerd on a machine of its own.
type swarm struct {
	*site
	dir             string
	docker, dockerd string
	nodes           []*swarmNode
}

// swarmNode is one dockerd.
type swarmNode struct {
	s   *swarm
	on  *machine
	dir string
	p   *process
}

// measureSwarm kills workers of a Docker Swarm as hosts are killed: at its own heartbeat, which is 5 s, and at ours.
func measureSwarm(ctx context.Context, o Options, r *Report, image []byte) (err error) {
	s, err := newSwarm(filepath.Join(o.Dir, "swarm"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := s.open(ctx, image); err != nil {
		return err
	}
	ours := r.Ours["hostKillToReplacementP50Ms"]
	for _, beat := range []struct{ flag, name string }{{"5s", "docker swarm"}, {cellBeat.String(), "docker swarm at a heartbeat of " + cellBeat.String()}} {
		if _, err := s.nodes[0].docker(ctx, "swarm", "update", "--dispatcher-heartbeat", beat.flag); err != nil {
			return err
		}
		var took sample
		for i := range swarmRounds {
			at, err := s.kill(ctx)
			if err != nil {
				return fmt.Errorf("kill of a worker: %w", err)
			}
			took = append(took, at)
			o.progress("failover: "+beat.name, i+1, swarmRounds)
		}
		f := Figures{"runs": swarmRounds}
		took.into(f, "hostKillToReplacement")
		r.Peers[beat.name] = f
		r.Ratios["hostKillToReplacement/"+beat.name] = round(ours / f["hostKillToReplacementP50Ms"])
	}
	return nil
}

func newSwarm(dir string) (*swarm, error) {
	s := &swarm{dir: dir}
	var err error
	if s.docker, err = find("docker"); err != nil {
		return nil, err
	}
	if s.dockerd, err = find("dockerd"); err != nil {
		return nil, err
	}
	s.site, err = newSite()
	return s, err
}

// open starts the daemons, joins them and runs the payload as a service of one replica.
func (s *swarm) open(ctx context.Context, image []byte) error {
	for _, name := range []string{"manager", "worker1", "worker2"} {
		on, err := s.machine(name)
		if err != nil {
			return err
		}
		n := &swarmNode{s: s, on: on, dir: filepath.Join(s.dir, name)}
		s.nodes = append(s.nodes, n)
		if err := os.MkdirAll(n.dir, 0o700); err != nil {
			return err
		}
		if err := n.start(ctx); err != nil {
			return err
		}
		archive := filepath.Join(n.dir, "image.tar")
		if err := os.WriteFile(archive, image, 0o600); err != nil {
			return err
		}
		if _, err := n.docker(ctx, "load", "--input", archive); err != nil {
			return err
		}
	}
	manager := s.nodes[0]
	if _, err := manager.docker(ctx, "swarm", "init", "--advertise-addr", manager.on.addr); err != nil {
		return err
	}
	token, err := manager.docker(ctx, "swarm", "join-token", "--quiet", "worker")
	if err != nil {
		return err
	}
	for _, n := range s.nodes[1:] {
		if _, err := n.docker(ctx, "swarm", "join", "--token", strings.TrimSpace(token), manager.on.addr+":2377"); err != nil {
			return err
		}
	}
	_, err = manager.docker(ctx, "service", "create", "--detach", "--no-resolve-image", "--name", "payload", "--replicas", "1",
		"--constraint", "node.role==worker", "--endpoint-mode", "dnsrr", "--network", "host", imageName)
	return err
}

// start starts the daemon and waits until it answers.
func (n *swarmNode) start(ctx context.Context) (err error) {
	n.p, err = n.on.run(filepath.Join(n.dir, "dockerd.log"), n.s.dockerd, "--data-root", filepath.Join(n.dir, "data"), "--exec-root", filepath.Join(n.dir, "exec"),
		"--host", n.socket(), "--pidfile", filepath.Join(n.dir, "pid"), "--exec-opt", "native.cgroupdriver=cgroupfs", "--storage-driver", "overlay2")
	if err != nil {
		return err
	}
	if err := until(ctx, readyPatience, func() error { _, err := n.docker(ctx, "info"); return err }); err != nil {
		return errors.Join(err, tail(n.p.log))
	}
	return nil
}

func (n *swarmNode) socket() string { return "unix://" + filepath.Join(n.dir, "sock") }

func (n *swarmNode) docker(ctx context.Context, args ...string) (string, error) {
	return command(ctx, nil, append([]string{n.s.docker, "--host", n.socket()}, args...)...)
}

// stampAfter is when the service's payload started on the node, if that was after a moment.
func (n *swarmNode) stampAfter(ctx context.Context, after time.Duration) (time.Duration, error) {
	ids, err := n.docker(ctx, "ps", "--quiet", "--filter", "label=com.docker.swarm.service.name=payload")
	if err != nil {
		return 0, err
	}
	for _, id := range strings.Fields(ids) {
		out, err := n.docker(ctx, "logs", id)
		if err != nil {
			continue
		}
		if at, err := stampAfter(out, after); err == nil {
			return at, nil
		}
	}
	return 0, fmt.Errorf("no payload started on %s", n.on.name)
}

// kill lets the worker that runs the payload vanish, and gives the time until the first instruction on the other.
func (s *swarm) kill(ctx context.Context) (time.Duration, error) {
	const patience = 2 * time.Minute
	var victim, other *swarmNode
	err := until(ctx, patience, func() error {
		for i, n := range s.nodes[1:] {
			if _, err := n.stampAfter(ctx, 0); err == nil {
				victim, other = n, s.nodes[2-i]
				return nil
			}
		}
		return errors.New("the service runs on no worker")
	})
	if err != nil {
		tasks, _ := s.nodes[0].docker(ctx, "service", "ps", "--no-trunc", "--format", "{{.CurrentState}} {{.Error}}", "payload")
		return 0, fmt.Errorf("%w: %s", err, strings.TrimSpace(tasks))
	}
	if err := s.allReady(ctx); err != nil {
		return 0, err
	}
	killed := now()
	if err := victim.vanish(); err != nil {
		return 0, err
	}
	var at time.Duration
	err = until(ctx, patience, func() (err error) {
		at, err = other.stampAfter(ctx, killed)
		return err
	})
	if err != nil {
		return 0, err
	}
	if err := errors.Join(victim.on.plug(true), victim.start(ctx)); err != nil {
		return 0, err
	}
	return at - killed, s.allReady(ctx)
}

// allReady waits until the manager counts on both workers, and for two of its heartbeats more.
func (s *swarm) allReady(ctx context.Context) error {
	err := until(ctx, time.Minute, func() error {
		out, err := s.nodes[0].docker(ctx, "node", "ls", "--format", "{{.Status}}")
		if err == nil && strings.Count(out, "Ready") < len(s.nodes) {
			err = fmt.Errorf("nodes of the swarm: %q", out)
		}
		return err
	})
	time.Sleep(10 * time.Second)
	return err
}

// vanish pulls out the cable and kills the daemon, its containerd, their shims and containers.
func (n *swarmNode) vanish() error {
	if err := n.on.plug(false); err != nil {
		return err
	}
	n.p.kill()
	killAll(n.processes())
	return nil
}

// processes are those that the daemon leaves when it is killed.
func (n *swarmNode) processes() []int {
	mine := findProcesses(func(argv []string) bool { return strings.Contains(strings.Join(argv, " "), n.dir+"/") })
	parents := map[int]bool{}
	for _, pid := range mine {
		parents[pid] = true
	}
	for _, pid := range findProcesses(func(argv []string) bool { return argv[0] == "/payload" }) {
		if parents[parentOf(pid)] {
			mine = append(mine, pid)
		}
	}
	return mine
}

// parentOf is the parent of a process, 0 when it is gone.
func parentOf(pid int) int {
	body, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(body[strings.LastIndexByte(string(body), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(fields[1])
	return n
}

// close ends the daemons with their containers.
func (s *swarm) close() error {
	for _, n := range s.nodes {
		ctx, cancel := context.WithTimeout(context.Background(), readyPatience)
		_, _ = n.docker(ctx, "swarm", "leave", "--force") // its containers go with it
		cancel()
		n.p.stop()
		killAll(n.processes())
		unmountBelow(n.dir)
	}
	s.site.close()
	return os.RemoveAll(s.dir)
}
