package cli

import (
	"context"
	"fmt"
	"sort"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// usageLine is what one container uses.
type usageLine struct {
	Group     string  `json:"group"`
	Container string  `json:"container"`
	CPU       float64 `json:"cpuPercent"` // of one core
	CPUNanos  int64   `json:"cpuNanos"`
	Memory    int64   `json:"memoryBytes"`
	Pids      int64   `json:"pids"`
	NetworkRx int64   `json:"networkRxBytes"`
	NetworkTx int64   `json:"networkTxBytes"`
}

func (a *app) topCommand() *cobra.Command {
	interval := time.Second
	c := &cobra.Command{
		Use:               "top [NAME...]",
		Short:             "Show what containers use",
		Args:              names("names of groups", 0, 0),
		ValidArgsFunction: a.groupNames,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			all := len(args) == 0
			if all {
				if args, err = runningGroups(c.Context(), api); err != nil {
					return err
				}
			}
			lines, err := measure(c.Context(), api, args, interval, all)
			if err != nil {
				return err
			}
			return a.emit(topView(lines))
		},
	}
	c.Flags().DurationVar(&interval, "interval", interval, "time over which processor use is measured")
	return c
}

func runningGroups(ctx context.Context, api *client.Client) ([]string, error) {
	groups, err := api.ListGroups(ctx, "")
	var out []string
	for _, g := range groups {
		if group.State(g.State()) == group.Running {
			out = append(out, g.Name)
		}
	}
	return out, err
}

const topAtOnce = 8 // calls in flight

// measure takes two samples of each group. With skipGone, groups that went away meanwhile are left out.
func measure(ctx context.Context, api *client.Client, groups []string, interval time.Duration, skipGone bool) ([]usageLine, error) {
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex // guards lines and failed
		lines = []usageLine{}
		err   error
		slots = make(chan struct{}, topAtOnce)
	)
	for _, name := range groups {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			got, e := measureOne(ctx, api, name, interval)
			mu.Lock()
			defer mu.Unlock()
			if e != nil && !(skipGone && fault.KindOf(e) == fault.NotFound) && err == nil {
				err = e
			}
			lines = append(lines, got...)
		})
	}
	wg.Wait()
	sort.Slice(lines, func(i, j int) bool {
		return lines[i].Group+"\x00"+lines[i].Container < lines[j].Group+"\x00"+lines[j].Container
	})
	return lines, err
}

func measureOne(ctx context.Context, api *client.Client, name string, interval time.Duration) ([]usageLine, error) {
	first, err := api.Stats(ctx, "", name)
	if err != nil {
		return nil, err
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(interval):
	}
	second, err := api.Stats(ctx, "", name)
	if err != nil {
		return nil, err
	}
	return usageLines(name, first, second), nil
}

func usageLines(name string, first, second *host.Stats) []usageLine {
	before := map[string]int64{}
	for _, c := range first.Containers {
		before[c.Name] = c.CPUNanos
	}
	var out []usageLine
	for _, c := range second.Containers {
		l := usageLine{Group: name, Container: c.Name, CPUNanos: c.CPUNanos, Memory: c.Memory, Pids: c.Pids, NetworkRx: second.NetworkRx, NetworkTx: second.NetworkTx}
		if d := second.Time.Sub(first.Time); d > 0 && c.CPUNanos >= before[c.Name] {
			l.CPU = 100 * float64(c.CPUNanos-before[c.Name]) / float64(d)
		}
		out = append(out, l)
	}
	return out
}

func topView(lines []usageLine) view {
	v := view{data: lines, header: []string{"GROUP", "CONTAINER", "CPU", "MEMORY", "PROCESSES", "NET IN", "NET OUT"}}
	for _, l := range lines {
		v.rows = append(v.rows, []string{l.Group, l.Container, fmt.Sprintf("%.1f%%", l.CPU), bytesText(l.Memory), strconv.FormatInt(l.Pids, 10), bytesText(l.NetworkRx), bytesText(l.NetworkTx)})
	}
	return v
}
