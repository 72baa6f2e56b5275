// Command summary reads `go test -json` and prints one summary: failures with their output, skipped tests with what
// they miss, and counts. It must never hide a failure: a stream that ends early counts as one. Start at read.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"
)

func main() {
	r, err := read(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "summary:", err)
		os.Exit(1)
	}
	r.print(os.Stdout)
	if !r.fine() {
		os.Exit(1)
	}
}

// event is one line of test2json.
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

func (e event) name() string {
	pkg := e.Package[strings.LastIndex(e.Package, "spillway/")+1:]
	if _, short, ok := strings.Cut(e.Package, "/spillway/"); ok {
		pkg = short
	}
	if e.Test == "" {
		return pkg
	}
	return pkg + " " + e.Test
}

type result struct {
	passed, failed, skipped int
	failures                []string
	misses                  map[string]int // reason → tests
	open                    map[string]bool
	began                   time.Time
	slow                    []string
}

func (r *result) fine() bool { return len(r.failures) == 0 && len(r.open) == 0 && r.passed > 0 }

// slowTest is when a test is worth a line, in seconds.
const slowTest = 30

// read follows the stream; packages are named as they end, failures shown at once.
func read(in io.Reader, out io.Writer) (*result, error) {
	r := &result{misses: map[string]int{}, open: map[string]bool{}, began: time.Now()}
	output := map[string][]string{}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		if len(line) > 0 && json.Unmarshal(line, &e) != nil {
			fmt.Fprintf(out, "%s", line) // not of the stream: a message of go itself
		} else if len(line) > 0 {
			r.take(e, output, out)
		}
		if err == io.EOF {
			return r, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read results: %w", err)
		}
	}
}

func (r *result) take(e event, output map[string][]string, out io.Writer) {
	key := e.Package + "\x00" + e.Test
	switch e.Action {
	case "start":
		r.open[e.Package] = true
	case "output":
		output[key] = append(output[key], e.Output)
	case "build-output":
		fmt.Fprint(out, e.Output)
	case "build-fail":
		r.failures = append(r.failures, e.ImportPath+" does not build")
	case "pass", "fail", "skip":
		r.end(e, output[key], out)
		delete(output, key)
		if e.Test == "" {
			r.unfinished(e, output, out)
		}
	}
}

// unfinishedLines is how much is shown of a test that never ended: a dump of all goroutines has no end.
const unfinishedLines = 80

// unfinished shows the tests of a package that has ended without them: they hung, or the process died.
func (r *result) unfinished(e event, output map[string][]string, out io.Writer) {
	for _, key := range slices.Sorted(maps.Keys(output)) {
		name, ok := strings.CutPrefix(key, e.Package+"\x00")
		if !ok || e.Action != "fail" {
			continue
		}
		lines := output[key]
		if last := len(lines) - 1; last < 0 || strings.HasPrefix(lines[last], "=== PAUSE") || strings.HasPrefix(lines[last], "--- ") {
			continue
		}
		r.failures = append(r.failures, e.name()+" "+name+" never ended")
		fmt.Fprintf(out, "%s never ended:\n%s", name, strings.Join(lines[:min(len(lines), unfinishedLines)], ""))
	}
}

func (r *result) end(e event, output []string, out io.Writer) {
	if e.Test == "" {
		delete(r.open, e.Package)
		fmt.Fprintf(out, "%-4s %s (%.1f s)\n", e.Action, e.name(), e.Elapsed)
		if e.Action == "fail" && !slices.ContainsFunc(r.failures, func(f string) bool { return strings.HasPrefix(f, e.name()) }) {
			r.failures = append(r.failures, e.name())
			fmt.Fprint(out, strings.Join(output, ""))
		}
		return
	}
	if e.Elapsed > slowTest {
		r.slow = append(r.slow, fmt.Sprintf("%.0f s %s", e.Elapsed, e.name()))
	}
	switch e.Action {
	case "pass":
		r.passed++
	case "fail":
		r.failed++
		r.failures = append(r.failures, e.name())
		fmt.Fprint(out, strings.Join(output, ""))
	case "skip":
		r.skipped++
		r.misses[reason(output)]++
	}
}

// reason is what a skipped test says.
func reason(output []string) string {
	for _, line := range output {
		if _, text, ok := strings.Cut(line, ".go:"); ok {
			_, text, _ = strings.Cut(text, ": ")
			return strings.TrimSpace(text)
		}
	}
	return "no reason given"
}

func (r *result) print(out io.Writer) {
	fmt.Fprintf(out, "\n== %d passed, %d failed, %d skipped in %s\n", r.passed, r.failed, r.skipped, time.Since(r.began).Round(time.Second))
	for why, n := range r.misses {
		fmt.Fprintf(out, "skipped %d: %s\n", n, why)
	}
	for _, line := range r.slow {
		fmt.Fprintln(out, "slow:", line)
	}
	for pkg := range r.open {
		fmt.Fprintln(out, "FAILED:", pkg, "never ended")
	}
	for _, name := range r.failures {
		fmt.Fprintln(out, "FAILED:", name)
	}
}
