package test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/host"
)

// The chaos goes on for SPILLWAY_CHAOS (a duration, default chaosTime) from SPILLWAY_SEED (default: the clock).
const (
	chaosTime   = 20 * time.Second
	chaosHosts  = 5
	chaosGroups = 10   // about so many are there at a time
	smallDisk   = 1200 // MiB, of the first host
)

// chaos is a fleet of three servers and five hosts under random use and random faults.
type chaos struct {
	*servers
	rng     *rand.Rand
	clients map[string]*client.Client // by server
	hosts   []*fleetHost
	known   map[string]bool // acknowledged groups, by name
	maybe   map[string]bool // creations and deletions of which nobody knows what became
	count   map[string]int  // by kind of fault, and what was checked
	made    int
}

// TestChaos breaks a fleet in every way that a seed gives, and looks after each time whether it has healed: nothing that
// was acknowledged is lost, every group runs once and where the API says, and nothing else runs.
func TestChaos(t *testing.T) {
	t.Parallel()
	length, seed := chaosTime, uint64(time.Now().UnixNano())
	if text := os.Getenv("SPILLWAY_CHAOS"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("SPILLWAY_CHAOS: %v", err)
		}
	}
	if text := os.Getenv("SPILLWAY_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("SPILLWAY_SEED: %v", err)
		}
	}
	t.Logf("SPILLWAY_SEED=%d", seed)
	c := startChaos(t, rand.New(rand.NewPCG(seed, 0)))
	c.work()
	c.verify("the start")
	for began := time.Now(); time.Since(began) < length && !t.Failed(); {
		c.round()
	}
	for name := range c.known {
		c.delete(name)
	}
	c.verify("the end")
	for _, what := range slices.Sorted(maps.Keys(c.count)) {
		t.Logf("%5d %s", c.count[what], what)
	}
}

func startChaos(t *testing.T, rng *rand.Rand) *chaos {
	c := &chaos{servers: startServers(t), rng: rng, clients: map[string]*client.Client{}, known: map[string]bool{}, maybe: map[string]bool{}, count: map[string]int{}}
	for name := range c.on {
		c.clients[name] = c.at(name)
	}
	for i := range chaosHosts {
		h := prepareHost(t, c.machine(fmt.Sprintf("h%d", i+1)))
		if i == 0 {
			h.limitDisk(smallDisk)
		}
		h.join(c.running["b"].endpoint, token(t, c.clients["b"]))
		c.hosts = append(c.hosts, h)
	}
	for _, h := range c.hosts {
		awaitHost(t, c.clients["a"], h.name, host.Ready)
	}
	p := &platform{process: &process{}, client: c.clients["a"]}
	if err := p.importImage(busybox()); err != nil {
		t.Fatal(err)
	}
	return c
}

// ask calls any server until one has answered.
func (c *chaos) ask(call func(context.Context, *client.Client) error) (err error) {
	for range 5 {
		names := slices.Sorted(maps.Keys(c.running))
		ctx, cancel := context.WithTimeout(c.Context(), patience/4)
		err = call(ctx, c.clients[names[c.rng.IntN(len(names))]])
		cancel()
		if e, ok := errors.AsType[*fault.Error](err); err == nil || ok && e.Kind != fault.Unavailable {
			return err
		}
	}
	return err
}

// create makes a group; what became of it without an answer nobody knows.
func (c *chaos) create() {
	c.made++
	name := fmt.Sprintf("g%d", c.made)
	serve := container("c", "mkdir -p /w && echo "+name+" > /w/index.html && exec httpd -f -p 8080 -h /w", M{"ports": []M{{"port": 8080}}})
	body := group([]M{serve}, M{"restartPolicy": "Always", "terminationGracePeriodSeconds": 0})
	c.maybe[name] = true
	err := c.ask(func(ctx context.Context, api *client.Client) error {
		_, err := api.PutGroup(ctx, "", name, body)
		return err
	})
	if err == nil {
		c.count["groups created"]++
		c.known[name] = true
		delete(c.maybe, name)
	}
}

func (c *chaos) delete(name string) {
	delete(c.known, name)
	c.maybe[name] = true
	err := c.ask(func(ctx context.Context, api *client.Client) error { return api.DeleteGroup(ctx, "", name, false) })
	if err == nil || fault.KindOf(err) == fault.NotFound {
		c.count["groups deleted"]++
		delete(c.maybe, name)
	}
}

// work creates and deletes some groups.
func (c *chaos) work() {
	for len(c.known) < chaosGroups {
		before := len(c.known)
		if c.create(); len(c.known) == before {
			break
		}
	}
	for range 2 {
		if names := slices.Sorted(maps.Keys(c.known)); len(names) > 2 {
			c.delete(names[c.rng.IntN(len(names))])
		}
	}
}

// round does some harm, works meanwhile, heals it and looks.
func (c *chaos) round() {
	var heal []func() error
	var did []string
	for range 1 + c.rng.IntN(2) {
		f := faults[c.rng.IntN(len(faults))]
		undo, err := f.do(c)
		if err != nil {
			c.Fatalf("%s: %v", f.name, err)
		}
		c.count["fault: "+f.name]++
		did, heal = append(did, f.name), append(heal, undo)
	}
	c.work()
	time.Sleep(time.Duration(c.rng.IntN(int(6 * beat))))
	for _, undo := range slices.Backward(heal) {
		if err := undo(); err != nil {
			c.Fatalf("heal %v: %v", did, err)
		}
	}
	c.verify(strings.Join(did, ", "))
}

// verify waits until the fleet is as it should be.
func (c *chaos) verify(after string) {
	c.Helper()
	var wrong error
	began := time.Now()
	for deadline := began.Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if wrong = c.wrong(); wrong == nil {
			c.count["states verified"]++
			c.Logf("healed %s after: %s", time.Since(began).Round(10*time.Millisecond), after)
			return
		}
	}
	c.Errorf("%s after %s: %v", patience, after, wrong)
}

// wrong says what is not as it should be.
func (c *chaos) wrong() error {
	var list []*client.Group
	err := c.ask(func(ctx context.Context, api *client.Client) (err error) {
		list, err = api.ListGroups(ctx, "")
		return err
	})
	if err != nil {
		return err
	}
	there, at := map[string]*client.Group{}, map[string]string{}
	for _, g := range list {
		there[g.Name] = g
		if !c.known[g.Name] && !c.maybe[g.Name] {
			return fmt.Errorf("group %s was deleted, or never made", g.Name)
		}
		if g.State() != "Running" {
			return fmt.Errorf("group %s on %s is %s", g.Name, g.Properties.Host, g.State())
		}
		at[g.Properties.UID] = g.Properties.Host
	}
	for name := range c.known {
		if there[name] == nil {
			return fmt.Errorf("group %s was acknowledged, and is lost", name)
		}
	}
	for name := range c.maybe { // whatever became of them is known now
		if delete(c.maybe, name); there[name] != nil {
			c.known[name] = true
		}
	}
	return errors.Join(c.hostsWrong(), c.kernelWrong(at), c.pathsWrong(list))
}

func (c *chaos) hostsWrong() error {
	return c.ask(func(ctx context.Context, api *client.Client) error {
		hosts, err := api.Hosts(ctx)
		for _, h := range hosts {
			if h.State != host.Ready || h.DiskFull {
				return fmt.Errorf("host %s is %q, disk full %t", h.Name, h.State, h.DiskFull)
			}
		}
		if err == nil && len(hosts) != chaosHosts {
			err = fmt.Errorf("%d hosts", len(hosts))
		}
		return err
	})
}

// kernelWrong compares what runs with where the API says that groups are.
func (c *chaos) kernelWrong(at map[string]string) error {
	copies := map[string]int{}
	for _, h := range c.hosts {
		id, _, err := instanceOf(h.dir)
		if err != nil {
			return err
		}
		records, err := (&process{id: id}).records()
		if err != nil {
			return err
		}
		for _, r := range records {
			if r.Exited || syscall.Kill(r.Pid, 0) != nil {
				continue
			}
			uid, _, _ := strings.Cut(r.ID, ".")
			if at[uid] != h.name {
				return fmt.Errorf("container %s runs on %s, its group is on %q", r.ID, h.name, at[uid])
			}
			copies[uid]++
		}
	}
	for uid := range at {
		if copies[uid] != 1 {
			return fmt.Errorf("group %s runs %d times on %s", uid, copies[uid], at[uid])
		}
	}
	return nil
}

// pathsWrong lets one group call some others by name.
func (c *chaos) pathsWrong(list []*client.Group) error {
	if len(list) < 2 {
		return nil
	}
	from := list[c.rng.IntN(len(list))]
	for range 3 {
		to := list[c.rng.IntN(len(list))]
		var out lockedBuffer
		err := c.ask(func(ctx context.Context, api *client.Client) error {
			_, err := api.Exec(ctx, client.Target{Group: from.Name, Container: "c"}, host.ExecRequest{Command: []string{"/bin/sh", "-c",
				"timeout 2 wget -qO- http://" + nameOf(to) + ":8080/ 2>&1"}}, host.Streams{Stdout: &out, Stderr: &out})
			return err
		})
		if got := strings.TrimSpace(out.String()); err != nil || got != to.Name {
			return fmt.Errorf("%s on %s calls %s on %s: %q, %w", from.Name, from.Properties.Host, to.Name, to.Properties.Host, got, err)
		}
		c.count["calls from group to group"]++
	}
	return nil
}
