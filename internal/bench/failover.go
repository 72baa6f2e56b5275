package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
)

// How much is measured, as parts of the rounds that were asked for, and on how many groups.
const (
	movedGroups   = 10  // that run while hosts are killed
	managedGroups = 200 // of the host whose agent is killed
)

func (o Options) hostKills() int   { return max(o.Runs*2/5, 1) }
func (o Options) leaderKills() int { return max(o.Runs*3/5, 1) }
func (o Options) agentKills() int  { return max(o.Runs/5, 1) }

// The parts of it, as Options.Parts names them.
const (
	partCreates    = "creates"
	partHosts      = "hosts"
	partAgents     = "agents"
	partLeaders    = "leaders"
	partSaturation = "saturation"
)

// FailoverParts are the parts that failover can be confined to.
func FailoverParts() []string {
	return []string{partCreates, partHosts, partAgents, partLeaders, partSaturation}
}

func (o Options) takes(part string) bool { return len(o.Parts) == 0 || slices.Contains(o.Parts, part) }

// failover measures what a fleet does when parts of it are killed: three servers over one etcd and five hosts, each a
// network namespace of this machine. Docker Swarm, three daemons in namespaces of their own, is its peer.
func failover(ctx context.Context, o Options) (_ *Report, err error) {
	r := newReport("failover")
	r.Environment["fleet"] = fmt.Sprintf("%d servers over one etcd, %d hosts, each a namespace of this machine; beats of %s", cellServers, cellHosts, cellBeat)
	image, err := archive()
	if err != nil {
		return nil, err
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx)) // relays outlive ctx, so that the end is orderly
	defer end()
	c, err := openCell(life, filepath.Join(o.Dir, "cell"), image)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	for _, part := range []struct {
		name    string
		measure func(context.Context, Options, *Report) error
	}{{partCreates, c.measureCreates}, {partHosts, c.measureHostKills}, {partAgents, c.measureAgentKills}, {partLeaders, c.measureLeaderKills},
		{partSaturation, c.measureFalseLosses}} {
		if !o.takes(part.name) {
			continue
		}
		if err := part.measure(ctx, o, r); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	if o.takes(partHosts) && (len(o.Peers) == 0 || o.Peers["swarm"]) {
		if err := measureSwarm(ctx, o, r, image); err != nil {
			r.Missing["docker swarm"] = err.Error()
		}
	}
	return r, nil
}

// measureCreates compares a fleet's starts with those of one machine, in turn.
func (c *cell) measureCreates(ctx context.Context, o Options, r *Report) (err error) {
	one, alone, err := c.openLone(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, one.purge()) }()
	lead, err := c.leader(ctx)
	if err != nil {
		return err
	}
	follower := c.alive()[0]
	if follower == lead {
		follower = c.alive()[1]
	}
	apis := []*client.Client{alone, c.servers[lead].api, c.servers[follower].api}
	times, puts := make([]sample, len(apis)), make([]sample, len(apis))
	for i := range o.Runs + o.warmUp() {
		for j, api := range apis {
			id := fmt.Sprintf("c%d", i)
			time.Sleep(settle)
			begin := now()
			if _, err := api.PutGroup(ctx, "", id, payloadGroup(api, "Never")); err != nil {
				return err
			}
			answered := now()
			at, err := payloadStamp(ctx, api, id, begin)
			if err != nil {
				return err
			}
			if i >= o.warmUp() {
				times[j], puts[j] = append(times[j], at-begin), append(puts[j], answered-begin)
			}
			if err := api.DeleteGroup(ctx, "", id, true); err != nil {
				return err
			}
		}
		o.progress("failover: creates", i+1, o.Runs+o.warmUp())
	}
	theirs := Figures{}
	times[0].into(theirs, "firstInstruction")
	puts[0].into(theirs, "put")
	r.Peers["one machine"] = theirs
	times[1].into(r.Ours, "firstInstructionByTheLeader")
	puts[1].into(r.Ours, "putByTheLeader")
	puts[2].into(r.Ours, "putByAnotherServer")
	times[2].into(r.Ours, "firstInstructionByAnotherServer")
	r.Ratios["createToRunning5HostsOver1"] = pairedRatio(times[1], times[0])
	r.Ratios["createToRunning5HostsOver1ByAnotherServer"] = pairedRatio(times[2], times[0])
	return nil
}

// openLone runs a platform of one machine beside the cell, reached as the cell's servers are.
func (c *cell) openLone(ctx context.Context) (*member, *client.Client, error) {
	on, err := c.machine("one")
	if err != nil {
		return nil, nil, err
	}
	m := &member{on: on, self: c.self, name: on.name, dir: filepath.Join(c.dir, on.name)}
	var api *client.Client
	if m.p, _, err = on.serve(m.log(), c.self, "up", "--data-dir", m.dir, "--listen", on.addr+":8443", "--cpu-overcommit", "1000"); err == nil {
		api, err = on.client(c.ctx, filepath.Join(m.dir, "client.json"))
	}
	if err == nil {
		_, err = api.ImportImage(ctx, bytes.NewReader(c.image))
	}
	if err != nil {
		return nil, nil, errors.Join(err, m.purge())
	}
	return m, api, nil
}

// payloadGroup is the body of a PUT.
func payloadGroup(api *client.Client, restart string) map[string]any {
	return map[string]any{"location": api.Config().Location, "properties": map[string]any{"osType": "Linux", "restartPolicy": restart, "terminationGracePeriodSeconds": 0,
		"containers": []any{map[string]any{"name": "payload", "properties": map[string]any{"image": imageName,
			"resources": map[string]any{"requests": map[string]any{"cpu": 1, "memoryInGB": 0.02}}}}}}}
}

// payloadStamp is the payload's first time after a moment, out of its group's log; it waits for the start by watching.
func payloadStamp(ctx context.Context, api *client.Client, id string, after time.Duration) (time.Duration, error) {
	if _, err := api.WaitFor(ctx, "", id, started); err != nil {
		return 0, err
	}
	const patience = 5 * time.Second
	var at time.Duration
	err := until(ctx, patience, func() (err error) {
		var out bytes.Buffer
		if err := api.Logs(ctx, client.Target{Group: id, Container: "payload"}, host.LogOptions{}, &out); err != nil {
			return err
		}
		at, err = stampAfter(out.String(), after)
		return err
	})
	return at, err
}

// create makes n groups that are always started again, by way of the leader, and waits until they run.
func (c *cell) create(ctx context.Context, prefix string, n int) error {
	api := c.api()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range n {
		g.Go(func() error {
			id := fmt.Sprint(prefix, i)
			if _, err := api.PutGroup(gctx, "", id, payloadGroup(api, "Always")); err != nil {
				return err
			}
			_, err := api.WaitFor(gctx, "", id, started)
			return err
		})
	}
	return g.Wait()
}

func (c *cell) remove(ctx context.Context, prefix string, n int) error {
	api := c.api()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range n {
		g.Go(func() error { return api.DeleteGroup(gctx, "", fmt.Sprint(prefix, i), true) })
	}
	return g.Wait()
}

// measureHostKills lets machines vanish and takes the time until the first instruction of their groups elsewhere.
func (c *cell) measureHostKills(ctx context.Context, o Options, r *Report) error {
	if err := c.create(ctx, "f", movedGroups); err != nil {
		return err
	}
	var first, all sample
	for i := range o.hostKills() {
		took, err := c.hostKill(ctx)
		if err != nil {
			return fmt.Errorf("kill of a host: %w", err)
		}
		all = append(all, took...)
		first = append(first, slices.Min(took))
		o.progress("failover: hosts", i+1, o.hostKills())
	}
	all.into(r.Ours, "hostKillToReplacement")
	first.into(r.Ours, "hostKillToFirstReplacement")
	r.Counts["hostsKilled"], r.Counts["groupsReplaced"] = float64(len(first)), float64(len(all))
	return c.remove(ctx, "f", movedGroups)
}

// hostKill kills the host of one of the groups, at any moment between two beats; it is back at the end.
func (c *cell) hostKill(ctx context.Context) (sample, error) {
	api := c.api()
	list, err := api.ListGroups(ctx, "")
	if err != nil {
		return nil, err
	}
	name := list[rand.IntN(len(list))].Properties.Host
	var victims []string
	for _, g := range list {
		if g.Properties.Host == name {
			victims = append(victims, g.Name)
		}
	}
	m := c.member(name)
	time.Sleep(rand.N(cellBeat))
	killed := now()
	if err := m.vanish(); err != nil {
		return nil, err
	}
	took := make(sample, len(victims))
	g, gctx := errgroup.WithContext(ctx)
	for i, id := range victims {
		g.Go(func() error {
			if _, err := api.WaitFor(gctx, "", id, func(g *client.Group) (bool, error) {
				return g.Properties.Host != name && g.State() == "Running", nil
			}); err != nil {
				return err
			}
			at, err := payloadStamp(gctx, api, id, killed)
			took[i] = at - killed
			return err
		})
	}
	if err := errors.Join(g.Wait(), m.comeBack(), c.allReady(ctx)); err != nil {
		return nil, err
	}
	time.Sleep(time.Second) // its sandboxes are parked again
	return took, nil
}

func (c *cell) member(name string) *member {
	for _, m := range c.members {
		if m.name == name {
			return m
		}
	}
	return nil
}
