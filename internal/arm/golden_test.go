package arm

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"spillway.dev/spillway/internal/group"
)

var update = flag.Bool("update", false, "rewrite the golden answers")

const goldenDir = "../../api/golden"

// TestGolden renders what each request under api/golden/<version>/ asks for and compares it with the checked-in
// answer: NAME.request.json, NAME.status.json (what a host reported, when it did), NAME.response.json. The answer, put
// back, must mean the same group.
func TestGolden(t *testing.T) {
	requests, err := filepath.Glob(filepath.Join(goldenDir, "*", "*.request.json"))
	if err != nil || len(requests) == 0 {
		t.Fatalf("no golden requests under %s: %v", goldenDir, err)
	}
	for _, path := range requests {
		name := strings.TrimSuffix(path, ".request.json")
		v, err := ParseVersion(filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		t.Run(v.Name+"/"+filepath.Base(name), func(t *testing.T) { golden(t, name, v) })
	}
}

func golden(t *testing.T, name string, v Version) {
	body, err := os.ReadFile(name + ".request.json")
	if err != nil {
		t.Fatal(err)
	}
	req, err := Decode(body, v, filepath.Base(name))
	if err != nil {
		t.Fatalf("Decode = %v", err)
	}
	g := &group.Group{
		Ref: group.Ref{Subscription: "00000000-0000-4000-8000-000000000001", ResourceGroup: "demo", Name: filepath.Base(name)},
		UID: "0123456789abcdef01234567", Generation: 1, Epoch: 1, Location: req.Location, Tags: req.Tags, Zones: req.Zones,
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Desired: group.Run, Host: "h1", Spec: req.Spec,
	}
	view := View{Group: g}
	if data, err := os.ReadFile(name + ".status.json"); err == nil {
		view.Status = &group.Status{}
		if err := json.Unmarshal(data, view.Status); err != nil {
			t.Fatal(err)
		}
	}
	got := sameAsFile(t, name, Render(view, v, g.Created))
	if bytes.Contains(got, []byte("canary")) || bytes.Contains(got, []byte("Y2FuYXJ5")) {
		t.Error("the answer holds a secret")
	}
	again, err := Decode(got, v, filepath.Base(name))
	if err != nil {
		t.Fatalf("Decode(answer) = %v", err)
	}
	KeepSecrets(&req.Spec, &again.Spec)
	if again.Spec.IP != nil {
		again.Spec.IP.Requested = req.Spec.IP.Requested // the answer shows the address in use
	}
	if diff := cmp.Diff(req, again); diff != "" {
		t.Errorf("the answer put back means another group (-want +got):\n%s", diff)
	}
}

// sameAsFile compares an answer with the file of the right one, or writes that when it is to be updated, and gives its text.
func sameAsFile(t *testing.T, path string, answer any) []byte {
	t.Helper()
	got, err := json.MarshalIndent(answer, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	if *update {
		if err := os.WriteFile(path+".response.json", got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path + ".response.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("answer differs (-want +got):\n%s", diff)
	}
	return got
}
