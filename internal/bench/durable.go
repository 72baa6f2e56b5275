package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/sim"
	"spillway.dev/spillway/internal/store/embedded"
	"spillway.dev/spillway/internal/store/etcd"
	"spillway.dev/spillway/internal/store/sealed"
)

// What is made durable: groups on simulated hosts, by so many writers at once.
const (
	durableHosts   = 5000
	durableGroups  = 20_000
	durableWriters = 128
)

// durable measures placements that are in etcd when they are answered: the control plane as it is, with a member of etcd in this
// process and simulated hosts, which say at once that what they are given runs. HTTP is not in it.
func durable(ctx context.Context, o Options, r *Report) (err error) {
	m, err := embedded.Start(ctx, filepath.Join(o.Dir, "store"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	key, err := sealed.LoadKey(filepath.Join(o.Dir, "store.key"))
	if err != nil {
		return err
	}
	kept, err := sealed.New(etcd.New(m.Client()), key)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c, err := controller.New(ctx, controller.Config{Store: kept, Location: "local", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-done)
	}()
	hosts := make([]*sim.Host, durableHosts)
	if err := joinAll(ctx, c, hosts); err != nil {
		return err
	}
	begin, cpu := now(), processorTime()
	if err := putAll(ctx, c); err != nil {
		return err
	}
	took := (now() - begin).Seconds()
	r.Ours[fmt.Sprintf("durablePlacementsPerSecondAt%dHosts", durableHosts)] = math.Round(durableGroups / took)
	r.Ours[fmt.Sprintf("durablePlacementsPerCPUSecondAt%dHosts", durableHosts)] = math.Round(durableGroups / (processorTime() - cpu).Seconds())
	r.Environment["durable"] = fmt.Sprintf("%d groups, %d writers at once, one commit and one fsync of etcd in this process at most for each", durableGroups, durableWriters)
	for _, h := range hosts {
		h.Close()
	}
	return nil
}

// joinAll takes the hosts into the fleet.
func joinAll(ctx context.Context, c *controller.Controller, hosts []*sim.Host) error {
	if _, _, err := c.PutResourceGroup(ctx, controller.ResourceGroup{Subscription: "bench", Name: "rg", Location: "local"}); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(durableWriters)
	for i := range hosts {
		g.Go(func() error {
			name := fmt.Sprintf("host-%06d", i)
			_, secret, err := c.CreateToken(gctx, controller.JoinToken{}, time.Hour)
			if err != nil {
				return err
			}
			if _, err := c.Join(gctx, controller.Joining{Token: secret, Name: name, Sign: func(string) ([]byte, string, error) { return []byte("certificate"), "1", nil }}); err != nil {
				return err
			}
			h := sim.NewHost(name, nil, func(s group.Status) { c.Report(name, s) })
			h.Change(func(d *host.Host) {
				d.Zone, d.Capacity = fmt.Sprint(i%fleetZones+1), group.Resources{MilliCPU: hostCores * 1000, Memory: hostMemory}
			})
			hosts[i] = h
			c.Connect(h)
			return c.Remember(gctx, h.Describe())
		})
	}
	return g.Wait()
}

// putAll places plain groups, as scheduler_perf places plain pods: 0.1 cores and 500 MB.
func putAll(ctx context.Context, c *controller.Controller) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(durableWriters)
	for i := range durableGroups {
		g.Go(func() error {
			req := &arm.Request{Location: "local", Spec: group.Spec{RestartPolicy: group.RestartAlways, SKU: "Standard", Containers: []group.Container{
				{Name: "c", Image: "app", Requests: group.Resources{MilliCPU: 100, Memory: 500 << 20}}}}}
			res, err := c.Put(gctx, group.Ref{Subscription: "bench", ResourceGroup: "rg", Name: fmt.Sprint("g", i)}, req)
			if err == nil && res.View.Group.Host == "" {
				err = errors.New("a group found no room")
			}
			return err
		})
	}
	return g.Wait()
}
