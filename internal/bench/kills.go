package bench

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
)

// measureAgentKills kills the agent of a host with many groups and starts it again at once: how long until every group
// answers a question that only its agent can answer, and whether a container was touched.
func (c *cell) measureAgentKills(ctx context.Context, o Options, r *Report) error {
	m := c.members[0]
	if err := c.cordonOthers(ctx, m, "cordon"); err != nil {
		return err
	}
	if err := c.create(ctx, "k", managedGroups); err != nil {
		return err
	}
	var took sample
	restarted := 0
	for i := range o.agentKills() {
		before, err := m.running(ctx)
		if err != nil {
			return err
		}
		m.killAgent()
		began := now()
		if err := m.start(); err != nil {
			return err
		}
		if err := c.allAnswer(ctx, "k", managedGroups); err != nil {
			return fmt.Errorf("after the kill of an agent: %w", err)
		}
		took = append(took, now()-began)
		after, err := m.running(ctx)
		if err != nil {
			return err
		}
		for process := range before {
			if !after[process] {
				restarted++
			}
		}
		if len(before) < managedGroups {
			return fmt.Errorf("%d containers of %d ran", len(before), managedGroups)
		}
		o.progress("failover: agents", i+1, o.agentKills())
	}
	took.into(r.Ours, "agentKillToAllManaged")
	r.Counts["groupsManaged"], r.Counts["agentsKilled"], r.Counts["containersRestarted"] = managedGroups, float64(len(took)), float64(restarted)
	if err := c.remove(ctx, "k", managedGroups); err != nil {
		return err
	}
	return c.cordonOthers(ctx, m, "uncordon")
}

func (c *cell) cordonOthers(ctx context.Context, m *member, verb string) error {
	for _, other := range c.members {
		if other == m {
			continue
		}
		if _, err := c.api().HostAction(ctx, other.name, verb); err != nil {
			return err
		}
	}
	return nil
}

// allAnswer waits until every group has been measured by its agent.
func (c *cell) allAnswer(ctx context.Context, prefix string, n int) error {
	api := c.api()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(16)
	for i := range n {
		g.Go(func() error {
			return until(gctx, readyPatience, func() error {
				id := fmt.Sprint(prefix, i)
				s, err := api.Stats(gctx, "", id)
				if err == nil && len(s.Containers) == 0 {
					err = fmt.Errorf("group %s has no containers", id)
				}
				return err
			})
		})
	}
	return g.Wait()
}

// measureLeaderKills kills the server that leads and takes the time until another accepts a write.
func (c *cell) measureLeaderKills(ctx context.Context, o Options, r *Report) error {
	var took sample
	for i := range o.leaderKills() {
		lead, err := c.leader(ctx)
		if err != nil {
			return err
		}
		killed := now()
		c.servers[lead].p.kill()
		c.servers[lead].p = nil
		names := c.alive()
		api := c.servers[names[i%len(names)]].api
		if err := until(ctx, readyPatience, func() error { return write(ctx, api, fmt.Sprint("after-", i)) }); err != nil {
			return fmt.Errorf("write after the kill of the leader: %w", err)
		}
		took = append(took, now()-killed)
		if err := c.startServer(lead); err != nil {
			return err
		}
		if err := c.allReady(ctx); err != nil {
			return err
		}
		o.progress("failover: leaders", i+1, o.leaderKills())
	}
	took.into(r.Ours, "leaderKillToWrite")
	r.Counts["leadersKilled"] = float64(len(took))
	return nil
}

// write makes a resource group.
func write(ctx context.Context, api *client.Client, name string) error {
	const patience = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := api.PutResourceGroup(ctx, name, nil)
	return err
}

// measureFalseLosses keeps every core busy with twice as many processes, and counts hosts that are declared lost: none is.
func (c *cell) measureFalseLosses(ctx context.Context, o Options, r *Report) error {
	if err := c.create(ctx, "s", movedGroups); err != nil {
		return err
	}
	declared, seen := c.lostInLogs(), 0
	var spinners []*process
	defer func() {
		for _, p := range spinners {
			p.kill()
		}
	}()
	for range 2 * runtime.NumCPU() {
		p, err := c.members[0].on.run(filepath.Join(c.dir, "spin.log"), c.self, PartCommand, "spin")
		if err != nil {
			return err
		}
		spinners = append(spinners, p)
	}
	busy, began := busyTicks(), time.Now()
	const look = 250 * time.Millisecond
	for time.Since(began) < o.Saturate && ctx.Err() == nil {
		hosts, err := c.servers["b"].api.Hosts(ctx)
		if err == nil {
			for _, h := range hosts {
				if h.State == host.Lost {
					seen++
				}
			}
		}
		time.Sleep(look)
		o.progress("failover: busy seconds", int(time.Since(began).Seconds()), int(o.Saturate.Seconds()))
	}
	r.Counts["saturatedSeconds"] = round(time.Since(began).Seconds())
	r.Counts["saturatedCores"] = round((busyTicks() - busy) * tickMs / float64(time.Since(began).Milliseconds()))
	list, err := c.api().ListGroups(ctx, "")
	if err != nil {
		return err
	}
	events := 0
	for _, g := range list {
		events += strings.Count(string(g.Raw), `"HostLost"`)
	}
	r.Counts["hostsFalselyLost"] = float64(c.lostInLogs() - declared)
	r.Counts["hostsSeenLostWhileSaturated"], r.Counts["hostLostEventsWhileSaturated"] = float64(seen), float64(events)
	return c.remove(ctx, "s", movedGroups)
}
