package cgroup

import (
	"os"
	"strconv"
	"strings"
)

// Stat measures a cgroup. What the machine does not tell is zero.
func (t *Tree) Stat(path string) Stat {
	if t.mode == V2 {
		memory := keyed(read(t.file("memory", path, "memory.stat")))
		return Stat{
			CPUNanos: keyed(read(t.file("cpu", path, "cpu.stat")))["usage_usec"] * 1000,
			Memory:   max(number(read(t.file("memory", path, "memory.current")))-memory["inactive_file"], 0),
			Pids:     number(read(t.file("pids", path, "pids.current"))),
			OOMKills: t.OOMKills(path),
		}
	}
	memory := keyed(read(t.file("memory", path, "memory.stat")))
	return Stat{
		CPUNanos: number(read(t.file("cpuacct", path, "cpuacct.usage"))),
		Memory:   max(number(read(t.file("memory", path, "memory.usage_in_bytes")))-memory["total_inactive_file"], 0),
		Pids:     number(read(t.file("pids", path, "pids.current"))),
		OOMKills: t.OOMKills(path),
	}
}

// OOMKills counts the processes of a cgroup that were killed for want of memory.
func (t *Tree) OOMKills(path string) int64 {
	file := "memory.oom_control"
	if t.mode == V2 {
		file = "memory.events"
	}
	return keyed(read(t.file("memory", path, file)))["oom_kill"]
}

func read(path string) string {
	body, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(body)
}

func number(text string) int64 {
	n, _ := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	return n
}

// keyed reads lines of "name number".
func keyed(text string) map[string]int64 {
	values := map[string]int64{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, " "); ok {
			values[name] = number(value)
		}
	}
	return values
}
