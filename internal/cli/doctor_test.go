package cli

import (
	"bytes"
	"encoding/json"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"spillway.dev/spillway/internal/doctor"
)

// TestDoctor examines the machine that the test runs on: what is found differs, its shape does not.
func TestDoctor(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	run := func(args ...string) (int, string) {
		var out bytes.Buffer
		args = append([]string{"doctor", "--data-dir", dir, "--listen", "127.0.0.1:0"}, args...)
		return Run(t.Context(), args, func(string) string { return "" }, strings.NewReader(""), &out, io.Discard), out.String()
	}
	code, text := run("-o", "json")
	var list []doctor.Finding
	if err := json.Unmarshal([]byte(text), &list); err != nil || len(list) < 8 {
		t.Fatalf("doctor -o json = %s, %v", text, err)
	}
	want := 0
	if doctor.Worst(list) == doctor.Error {
		want = 1
	}
	if code != want {
		t.Errorf("exit code %d with %s", code, text)
	}
	if last := list[len(list)-1]; last.Check != "platform" || !strings.Contains(last.Finding, "none was started in "+dir) {
		t.Errorf("last finding = %+v", last)
	}
	if _, text = run(); !strings.HasPrefix(text, "CHECK") || !strings.Contains(text, "\nin all ") {
		t.Errorf("table = %s", text)
	}
	if _, text = run("-o", "tsv"); strings.Count(strings.Split(text, "\n")[0], "\t") != 3 {
		t.Errorf("tsv = %s", text)
	}
}
