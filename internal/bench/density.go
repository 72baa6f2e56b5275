package bench

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// density measures what idle groups cost beyond their payload, and what a platform without any costs.
func density(ctx context.Context, o Options) (*Report, error) {
	r := newReport("density")
	image, err := archive()
	if err != nil {
		return nil, err
	}
	platform, err := openOurs(ctx, filepath.Join(o.Dir, "density"), image)
	if err != nil {
		return nil, err
	}
	defer platform.close()
	quiet(ctx)
	platform.idle(r)
	before := platform.weigh()
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i := range o.Density {
		g.Go(func() error {
			id := fmt.Sprintf("d%d", i)
			if _, err := platform.api.PutGroup(gctx, "", id, platform.group()); err != nil {
				return err
			}
			_, err := platform.api.WaitFor(gctx, "", id, started)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	quiet(ctx)
	after := platform.weigh()
	n := float64(o.Density)
	r.Ours["groups"] = n
	r.Ours["processesMiBPerGroup"] = round((after.processes - before.processes) / n)
	r.Ours["kernelMiBPerGroup"] = round((after.kernel - before.kernel) / n)
	r.Ours["payloadMiBPerGroup"] = round(after.payload / n)
	r.Ours["miBPerGroupBeyondPayload"] = round((after.processes + after.kernel - before.processes - before.kernel) / n)
	r.Counts["processesPerGroup"] = round((after.count - before.count) / n)
	rm, rctx := errgroup.WithContext(ctx)
	rm.SetLimit(16)
	for i := range o.Density {
		rm.Go(func() error { return platform.remove(rctx, fmt.Sprintf("d%d", i)) })
	}
	return r, rm.Wait()
}

// idle measures a platform with nothing running.
func (e *ours) idle(r *Report) {
	const span = 10 * time.Second
	pid := strconv.Itoa(e.cmd.Process.Pid)
	cpu := processTicks(pid)
	time.Sleep(span)
	r.Ours["idleCPUPercent"] = round((processTicks(pid) - cpu) * tickMs / float64(span.Milliseconds()) * 100)
	r.Ours["idleRSSMiB"] = round(field("/proc/"+pid+"/status", "VmRSS:") / 1024)
}

// processTicks is the processor time of a process in clock ticks.
func processTicks(pid string) float64 {
	body, _ := os.ReadFile("/proc/" + pid + "/stat")
	fields := strings.Fields(string(body[strings.LastIndexByte(string(body), ')')+1:]))
	const user, system = 11, 12 // fields 14 and 15 of proc(5), counted from the third
	if len(fields) <= system {
		return 0
	}
	u, _ := strconv.ParseFloat(fields[user], 64)
	s, _ := strconv.ParseFloat(fields[system], 64)
	return u + s
}

// weight is memory in MiB: proportional set size of processes (the platform's own and, apart, the payloads), and what
// the kernel holds (slab, page tables, stacks, per-CPU).
type weight struct{ processes, payload, kernel, count float64 }

func (e *ours) weigh() weight {
	var w weight
	// What the kernel only caches is not held by anyone: it goes first.
	const everything = "3"
	_ = os.WriteFile("/proc/sys/vm/drop_caches", []byte(everything), 0o644)
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, err := os.ReadFile(dir + "/cmdline")
		if err != nil || len(line) == 0 {
			continue
		}
		pss := field(dir+"/smaps_rollup", "Pss:") / 1024
		name := strings.ReplaceAll(strings.TrimRight(string(line), "\x00"), "\x00", " ")
		switch {
		case name == "/payload":
			w.payload += pss
		case strings.HasPrefix(name, "spillway-keeper"), strings.HasPrefix(name, "spillway-init"), isPid(dir, e.cmd.Process.Pid):
			w.processes += pss
			w.count++
		}
	}
	for _, name := range []string{"Slab:", "PageTables:", "KernelStack:", "Percpu:"} {
		w.kernel += field("/proc/meminfo", name) / 1024
	}
	return w
}

func isPid(dir string, pid int) bool { return filepath.Base(dir) == strconv.Itoa(pid) }

// field reads a number from a file of "name: value kB" lines.
func field(path, name string) float64 {
	body, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(body)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			n, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return n
		}
	}
	return 0
}
