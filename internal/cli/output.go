package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jmespath/go-jmespath"
	"sigs.k8s.io/yaml"
)

// view is what a command has to show: data for machines, a table for people.
type view struct {
	data   any // marshals to the API's own JSON
	header []string
	rows   [][]string
}

func (a *app) checkOutput() error {
	if !slices.Contains([]string{"table", "json", "yaml", "tsv"}, a.output) {
		return usagef("output format %q does not exist; use table, json, yaml or tsv", a.output)
	}
	if a.query != "" {
		if _, err := jmespath.Compile(a.query); err != nil {
			return usagef("--query %q is not a JMESPath expression: %v", a.query, err)
		}
	}
	return nil
}

// emit prints a view in the format that was asked for.
func (a *app) emit(v view) error {
	if a.query != "" {
		return a.emitQuery(v.data)
	}
	switch a.output {
	case "json", "yaml":
		return a.emitData(v.data)
	case "tsv":
		return writeTSV(a.stdout, v.rows)
	}
	return writeTable(a.stdout, v.header, v.rows)
}

func (a *app) emitData(data any) error {
	var out []byte
	var err error
	if a.output == "yaml" {
		out, err = yaml.Marshal(data)
	} else {
		out, err = json.MarshalIndent(data, "", "  ")
		out = append(out, '\n')
	}
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	_, err = a.stdout.Write(out)
	return err
}

// emitQuery prints what the query finds. Objects become rows whose columns are their keys.
func (a *app) emitQuery(data any) error {
	raw, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("write output: %w", err)
	}
	var plain any
	if err := json.Unmarshal(raw, &plain); err != nil {
		return fmt.Errorf("read output: %w", err)
	}
	found, err := jmespath.Search(a.query, plain)
	if err != nil {
		return usagef("--query %q: %v", a.query, err)
	}
	switch a.output {
	case "json", "yaml":
		return a.emitData(found)
	case "tsv":
		_, rows := tabulate(found)
		return writeTSV(a.stdout, rows)
	}
	header, rows := tabulate(found)
	return writeTable(a.stdout, header, rows)
}

// tabulate makes rows of any JSON value.
func tabulate(v any) (header []string, rows [][]string) {
	list, ok := v.([]any)
	if !ok {
		if v == nil {
			return nil, nil
		}
		list = []any{v}
	}
	keys := map[string]bool{}
	for _, e := range list {
		if object, ok := e.(map[string]any); ok {
			for k := range object {
				keys[k] = true
			}
		}
	}
	columns := slices.Sorted(maps.Keys(keys))
	for _, e := range list {
		switch e := e.(type) {
		case map[string]any:
			var row []string
			for _, k := range columns {
				row = append(row, cell(e[k]))
			}
			rows = append(rows, row)
		case []any:
			var row []string
			for _, x := range e {
				row = append(row, cell(x))
			}
			rows = append(rows, row)
		default:
			rows = append(rows, []string{cell(e)})
		}
	}
	for _, k := range columns {
		header = append(header, strings.ToUpper(k))
	}
	return header, rows
}

func cell(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Sprint(v)
	}
	return strings.TrimSpace(b.String())
}

func writeTSV(w io.Writer, rows [][]string) error {
	clean := strings.NewReplacer("\t", " ", "\n", " ")
	for _, r := range rows {
		for i := range r {
			r[i] = clean.Replace(r[i])
		}
		if _, err := fmt.Fprintln(w, strings.Join(r, "\t")); err != nil {
			return err
		}
	}
	return nil
}

func writeTable(w io.Writer, header []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	clean := strings.NewReplacer("\t", " ", "\n", " ")
	for i, r := range append([][]string{header}, rows...) {
		if i == 0 && len(header) == 0 {
			continue
		}
		line := make([]string, len(r))
		for j, c := range r {
			if line[j] = clean.Replace(c); line[j] == "" {
				line[j] = "-"
			}
		}
		if _, err := fmt.Fprintln(t, strings.Join(line, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}

// age is a duration as people say it.
func age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// bytesText is an amount of bytes as people say it.
func bytesText(n int64) string {
	const k = 1024
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	v, i := float64(n), 0
	for v >= k && i < len(units)-1 {
		v /= k
		i++
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

func parseTime(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}
	}
	return t
}
