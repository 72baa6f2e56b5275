package httpapi

import (
	"os"
	"sort"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// TestOpenAPI compares the surface with the checked-in description.
func TestOpenAPI(t *testing.T) {
	data, err := os.ReadFile("../../api/openapi.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Info struct {
			Version string `json:"version"`
		} `json:"info"`
		Paths map[string]map[string]any `json:"paths"`
	}
	if err := yaml.Unmarshal(data, &doc); err != nil {
		t.Fatal(err)
	}
	var described, served []string
	for path, methods := range doc.Paths {
		for m := range methods {
			described = append(described, strings.ToUpper(m)+" "+path)
		}
	}
	for _, r := range routes() {
		served = append(served, r.method+" "+r.pattern)
	}
	sort.Strings(described)
	sort.Strings(served)
	if diff := cmp.Diff(described, served); diff != "" {
		t.Errorf("api/openapi.yaml and routes.go differ (-described +served):\n%s", diff)
	}
}

func TestSplitCommand(t *testing.T) {
	for line, want := range map[string][]string{
		"/bin/sh":               {"/bin/sh"},
		"  ls  -l\t/ ":          {"ls", "-l", "/"},
		`sh -c 'echo "a b"' ""`: {"sh", "-c", `echo "a b"`, ""},
		`echo "it's" a'b c'd`:   {"echo", "it's", "ab cd"},
		"":                      nil,
		`echo "open`:            {"echo", "open"},
	} {
		if diff := cmp.Diff(want, splitCommand(line)); diff != "" {
			t.Errorf("splitCommand(%q) differs (-want +got):\n%s", line, diff)
		}
	}
}
