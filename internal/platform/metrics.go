package platform

import (
	"context"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"spillway.dev/spillway/internal/keeper"
)

// metrics serves the store's own figures and what starts have cost. They are counted where they happen and read here.
func metrics(h *machine) http.Handler {
	registry := prometheus.NewRegistry()
	counter := func(name, help string, read func() float64) {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, read))
	}
	counter("spillway_netlink_changes_total", "Changes made to links, addresses, routes and rules.", func() float64 { return float64(h.network.Changes()) })
	counter("spillway_network_joins_total", "Changes made when groups joined their network: those on the start path.", func() float64 { return float64(h.agent.Joins()) })
	counter("spillway_pool_hits_total", "Starts that found a parked slot.", func() float64 { hits, _ := h.agent.PoolCounts(); return float64(hits) })
	counter("spillway_pool_misses_total", "Starts that had to make their slot.", func() float64 { _, misses := h.agent.PoolCounts(); return float64(misses) })
	counter("spillway_keeper_starts_total", "Containers started.", func() float64 { return float64(keeperCounters(h).Starts) })
	counter("spillway_keeper_cgroup_moves_total", "Processes moved into a cgroup while a container was being started.", func() float64 { return float64(keeperCounters(h).CgroupMoves) })
	counter("spillway_keeper_processes_total", "Processes started for a container beside its own.", func() float64 { return float64(keeperCounters(h).Processes) })
	return promhttp.HandlerFor(prometheus.Gatherers{prometheus.DefaultGatherer, registry}, promhttp.HandlerOpts{})
}

func keeperCounters(h *machine) keeper.Counters {
	const patience = time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, _ := h.agent.KeeperCounters(ctx)
	return c
}
