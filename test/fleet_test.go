package test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/keeper"
	store "spillway.dev/spillway/internal/store/etcd"
)

// beat is the hosts' in these tests: a host is lost after three.
const beat = 500 * time.Millisecond

// fleetHost is a `spillway agent`.
type fleetHost struct {
	*testing.T
	name, dir string
	on        *machine
	bin       binaries
	args, env []string // beside those of every host
	cmd       *exec.Cmd
	log       *os.File
	down      bool // killed, and to be started again
}

// joinHost starts a host that joins with a token; at the test's end it is purged and the machine looked over.
func joinHost(t *testing.T, on *machine, server, token string) *fleetHost {
	t.Helper()
	h := prepareHost(t, on)
	h.join(server, token)
	return h
}

// prepareHost makes a host's data directory.
func prepareHost(t *testing.T, on *machine) *fleetHost {
	t.Helper()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(work, "host-")
	if err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(dir + ".log")
	if err != nil {
		t.Fatal(err)
	}
	h := &fleetHost{T: t, name: on.name, on: on, dir: dir, bin: bin, log: log}
	if older := os.Getenv("SPILLWAY_OLD"); older != "" { // a directory with spillway and spillway-keeper of an earlier release
		h.bin, h.args = binaries{spillway: filepath.Join(older, "spillway"), keeper: filepath.Join(older, "spillway-keeper")}, nil
	}
	return h
}

// join starts the host with a token.
func (h *fleetHost) join(server, token string) {
	h.Helper()
	h.Cleanup(h.destroy)
	h.start("--server", server, "--token", token, "--name", h.name)
}

// limitDisk gives the host a disk of its own of so many MiB, before it joins.
func (h *fleetHost) limitDisk(size int) {
	h.Helper()
	if err := syscall.Mount("small", h.dir, "tmpfs", 0, fmt.Sprintf("size=%dm", size)); err != nil {
		h.Fatal(err)
	}
	h.Cleanup(func() { _ = syscall.Unmount(h.dir, syscall.MNT_DETACH) })
}

// start starts the process and waits for its ready line.
func (h *fleetHost) start(args ...string) {
	h.Helper()
	h.cmd = h.on.command(h.bin.spillway, append([]string{"agent", "--data-dir", h.dir, "--pool", "2"}, append(h.args, args...)...)...)
	h.cmd.Env = append(append(os.Environ(), "SPILLWAY_KEEPER="+h.bin.keeper, "SPILLWAY_CLOCK="+h.clock()), h.env...)
	h.cmd.Stderr = h.log
	stdout, err := h.cmd.StdoutPipe()
	if err == nil {
		err = h.cmd.Start()
	}
	if err != nil {
		h.Fatal(err)
	}
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "ready "+h.name+"\n" {
		body, _ := os.ReadFile(h.dir + ".log")
		h.Fatalf("host %s said %q\n%s", h.name, line, body)
	}
}

// clock is the file that says how far the host's clock is off.
func (h *fleetHost) clock() string { return h.dir + ".clock" }

func (h *fleetHost) signal(sig syscall.Signal) {
	_ = h.cmd.Process.Signal(sig)
	_ = h.cmd.Wait()
}

func (h *fleetHost) destroy() {
	end(h.cmd)
	id, gateway, err := instanceOf(h.dir)
	if err != nil {
		h.Error(err)
		return
	}
	if out, err := h.on.command(h.bin.spillway, "down", "--purge", "--data-dir", h.dir).CombinedOutput(); err != nil {
		h.Errorf("purge host %s: %v\n%s", h.name, err, out)
	}
	if err := h.on.inside(func() error { return leftovers(id, h.dir, gateway) }); err != nil {
		h.Errorf("host %s: %v", h.name, err)
	}
	if h.Failed() {
		body, _ := os.ReadFile(h.dir + ".log")
		h.Logf("log of host %s:\n%s", h.name, body[max(0, len(body)-6000):])
	}
}

// state waits until a host is in a state.
func awaitHost(t *testing.T, c *client.Client, name string, want host.State) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		h, err := c.Host(t.Context(), name)
		if err == nil && h.State == want {
			return
		}
		last = fmt.Sprintf("%+v, %v", h, err)
	}
	t.Fatalf("host %s did not become %q: %s", name, want, last)
}

// endpointOf is where the platform of a data directory answers, as other machines know it.
func endpointOf(t *testing.T, dir string) string {
	t.Helper()
	cfg, err := client.LoadConfig(filepath.Join(dir, "client.json"))
	if err != nil {
		t.Fatal(err)
	}
	return cfg.Endpoint
}

func token(t *testing.T, c *client.Client) string {
	t.Helper()
	made, err := c.CreateToken(t.Context(), client.JoinToken{}, 0)
	if err != nil {
		t.Fatal(err)
	}
	return made.Token
}

// TestFleet lets a second host join, runs groups there, kills it, and finds its groups on the first; then it comes back.
func TestFleet(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first, second := s.machine("first"), s.machine("second")
	p := startPlatform(t, options{on: first, args: []string{"--hosts-listen", first.addr + ":0", "--beat", beat.String()}})
	own, err := p.client.Hosts(t.Context())
	if err != nil || len(own) != 1 {
		t.Fatalf("hosts = %v, %v", own, err)
	}
	secret := token(t, p.client)
	h := joinHost(t, second, endpointOf(t, p.dir), secret)
	awaitHost(t, p.client, "second", host.Ready)
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	out, err := second.command(p.bin.spillway, "agent", "--data-dir", t.TempDir(), "--server", endpointOf(t, p.dir), "--token", secret, "--name", "third").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "used before") {
		t.Errorf("a token bought two hosts: %v, %s", err, out)
	}

	if _, err := p.client.HostAction(t.Context(), own[0].Name, "cordon"); err != nil {
		t.Fatal(err)
	}
	always := p.create("always", []M{container("c", sleeper)}, M{"restartPolicy": "Always"})
	once := p.create("once", []M{container("c", sleeper)}, M{"restartPolicy": "Never"})
	for _, n := range []string{always, once} {
		if g := p.running(n); g.Properties.Host != "second" {
			t.Fatalf("group %s runs on %s, which is cordoned", n, g.Properties.Host)
		}
	}
	// Streams go over the host's own connection.
	if out, code := p.exec(always, "c", "echo $((6*7)); exit 3"); out != "42" || code != 3 {
		t.Errorf("exec on the other host = %q, %d", out, code)
	}
	if _, err := p.client.HostAction(t.Context(), own[0].Name, "uncordon"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.client.RemoveHost(t.Context(), "second"); fault.KindOf(err) != fault.Conflict {
		t.Errorf("removal of a host with groups: %v, want a conflict", err)
	}

	h.signal(syscall.SIGKILL)
	awaitHost(t, p.client, "second", host.Lost)
	p.await(always, "a start on the first host", func(g *client.Group) bool { return g.Properties.Host == own[0].Name && g.State() == "Running" })
	p.await(once, "its failure", func(g *client.Group) bool { return g.State() == "Failed" })
	h.start()
	awaitHost(t, p.client, "second", host.Ready)
	id, _, err := instanceOf(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	nothingRuns(t, id)
	time.Sleep(2 * beat)
	nothingRuns(t, id) // it has not started again what was started elsewhere
	for _, n := range []string{always, once} {
		p.remove(n)
	}
	if _, err := p.client.RemoveHost(t.Context(), "second"); err != nil {
		t.Error(err)
	}
	if _, err := p.client.Host(t.Context(), "second"); fault.KindOf(err) != fault.NotFound {
		t.Errorf("a removed host: %v, want not found", err)
	}
}

// nothingRuns waits until all containers of an instance have ended.
func nothingRuns(t *testing.T, id string) {
	t.Helper()
	waitFor(t, "the end of all containers of "+id, func() bool {
		records, _ := (&process{id: id}).records()
		return !slices.ContainsFunc(records, func(r keeper.Container) bool { return !r.Exited })
	})
}

// etcdRole as an environment variable makes this program an etcd: where it listens.
const etcdRole = "SPILLWAY_TEST_ETCD"

// serveEtcd is an etcd until somebody ends it.
func serveEtcd() int {
	at := os.Getenv(etcdRole)
	cfg := embed.NewConfig()
	cfg.Dir, cfg.LogLevel = os.Getenv(etcdRole+"_DIR"), "fatal"
	at2, _, _ := net.SplitHostPort(at)
	listen, peer := url.URL{Scheme: "http", Host: at}, url.URL{Scheme: "http", Host: net.JoinHostPort(at2, "2380")}
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{listen}, []url.URL{listen}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer e.Close()
	<-e.Server.ReadyNotify()
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until whoever started it is gone
	return 0
}

// startEtcd runs an etcd on a machine of its own, at port 2379.
func (s *site) startEtcd() (*machine, *os.Process) {
	s.Helper()
	m := s.machine("etcd")
	at := m.addr + ":2379"
	self, err := os.Executable()
	if err != nil {
		s.Fatal(err)
	}
	cmd := m.command(self)
	cmd.Env = append(os.Environ(), etcdRole+"="+at, etcdRole+"_DIR="+s.TempDir())
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		s.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() {
		stdin.Close()
		_ = cmd.Wait()
	})
	if line, _ := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		s.Fatalf("etcd said %q", line)
	}
	return m, cmd.Process
}

// serverProcess is a `spillway server`.
type serverProcess struct {
	cmd      *exec.Cmd
	endpoint string
}

// servers are those of one fleet, each on a machine of its own, over an etcd of the test.
type servers struct {
	*site
	bin       binaries
	dir, etcd string
	reached   string // etcd, from here
	store     *os.Process
	on        map[string]*machine
	running   map[string]*serverProcess
}

// startServers runs three.
func startServers(t *testing.T) *servers {
	t.Helper()
	bin, err := built()
	if err != nil {
		t.Fatal(err)
	}
	s := &servers{site: newSite(t), bin: bin, dir: t.TempDir(), running: map[string]*serverProcess{}, on: map[string]*machine{}}
	at, store := s.startEtcd()
	s.store, s.etcd, s.reached = store, "http://"+at.addr+":2379", "http://"+at.reach(at.addr+":2379")
	t.Cleanup(func() {
		for name, r := range s.running {
			end(r.cmd)
			if body, _ := os.ReadFile(filepath.Join(s.dir, name+".log")); t.Failed() {
				t.Logf("log of server %s:\n%s", name, body[max(0, len(body)-4000):])
			}
		}
	})
	for _, name := range []string{"a", "b", "c"} {
		s.on[name] = s.machine(name)
		s.start(name)
	}
	waitFor(t, "an administrator", func() bool { return exists(s.admin()) })
	return s
}

// admin is where the server that led first has put the administrator's credentials.
func (s *servers) admin() string { return filepath.Join(s.dir, "a", "client.json") }

// clock is the file that says how far a server's clock is off.
func (s *servers) clock(name string) string { return filepath.Join(s.dir, name+".clock") }

func (s *servers) start(name string) {
	s.Helper()
	log, err := os.OpenFile(filepath.Join(s.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		s.Fatal(err)
	}
	defer log.Close()
	at := s.on[name].addr
	cmd := s.on[name].command(s.bin.spillway, "server", "--data-dir", filepath.Join(s.dir, name), "--listen", at+":8443", "--hosts-listen", at+":8444",
		"--etcd", s.etcd, "--store-key", filepath.Join(s.dir, "store.key"), "--beat", beat.String())
	cmd.Env = append(os.Environ(), "SPILLWAY_CLOCK="+s.clock(name))
	cmd.Stderr = log
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		s.Fatal(err)
	}
	s.running[name] = &serverProcess{cmd: cmd}
	line, _ := bufio.NewReader(stdout).ReadString('\n')
	endpoint, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	if !ok {
		s.Fatalf("server %s said %q", name, line)
	}
	s.running[name].endpoint = endpoint
}

// kill ends a server as nobody likes it.
func (s *servers) kill(name string) {
	_ = s.running[name].cmd.Process.Kill()
	_ = s.running[name].cmd.Wait()
	delete(s.running, name)
}

// at is a client of one server.
func (s *servers) at(name string) *client.Client {
	s.Helper()
	cfg, err := client.LoadConfig(s.admin())
	if err != nil {
		s.Fatal(err)
	}
	cfg.Endpoint = "https://" + s.on[name].reach(strings.TrimPrefix(s.running[name].endpoint, "https://"))
	c, err := client.New(*cfg)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(c.Close)
	return c
}

// TestServers runs three servers over one etcd with a host, and kills the one that leads, again and again: whichever is
// asked answers, what was written stays, and no container starts again.
func TestServers(t *testing.T) {
	t.Parallel()
	s := startServers(t)
	h := joinHost(t, s.machine("h1"), s.running["b"].endpoint, token(t, s.at("c")))
	awaitHost(t, s.at("b"), "h1", host.Ready)
	p := (&platform{process: &process{bin: s.bin, dir: h.dir}, client: s.at("c")}).in(t)
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	g := p.running(p.create("stays", []M{container("c", sleeper)}, M{"restartPolicy": "Always"}))
	for round := range 3 {
		lead := s.leader()
		began := time.Now()
		s.kill(lead)
		for name := range s.running {
			if _, err := s.at(name).PutResourceGroup(t.Context(), fmt.Sprintf("after-%d-%s", round, name), nil); err != nil {
				t.Errorf("a write by way of %s, %s after the leader's end: %v", name, time.Since(began), err)
			}
		}
		t.Logf("round %d: all servers wrote again after %s", round, time.Since(began).Round(time.Millisecond))
		s.start(lead)
		awaitHost(t, s.at(lead), "h1", host.Ready)
	}
	if after := p.running(g.Name); after.Properties.UID != g.Properties.UID || after.Properties.Epoch != g.Properties.Epoch || restarts(after, 0) != 0 {
		t.Errorf("group after the kills: uid %s, epoch %d, %d restarts", after.Properties.UID, after.Properties.Epoch, restarts(after, 0))
	}
	p.remove(g.Name)
}

// leader finds which server leads, by what etcd says.
func (s *servers) leader() string {
	s.Helper()
	var found string
	waitFor(s.T, "a leader", func() bool {
		value, err := leaderValue(s.Context(), s.reached)
		for name, r := range s.running {
			if err == nil && r.endpoint == value {
				found = name
			}
		}
		return found != ""
	})
	return found
}

func leaderValue(ctx context.Context, etcd string) (string, error) {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{etcd}, DialTimeout: patience, Logger: zap.NewNop()})
	if err != nil {
		return "", err
	}
	defer c.Close()
	text, err := store.New(c).Leader(ctx)
	if err != nil {
		return "", err
	}
	var place struct{ API string }
	if err := json.Unmarshal([]byte(text), &place); err != nil || place.API == "" {
		return "", errors.Join(err, fmt.Errorf("the leader says %q", text))
	}
	return place.API, nil
}
