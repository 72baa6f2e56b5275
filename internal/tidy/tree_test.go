package tidy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

const module = "spillway.dev/spillway"

// source is one Go file.
type source struct {
	path  string // from the root of the module
	pkg   string // directory
	name  string // package clause
	text  string
	lines int
	test  bool
	fset  *token.FileSet
	file  *ast.File
}

// imports are the paths that a file imports.
func (s *source) imports() []string {
	var list []string
	for _, i := range s.file.Imports {
		path, err := strconv.Unquote(i.Path.Value)
		if err == nil {
			list = append(list, path)
		}
	}
	return list
}

func (s *source) line(p token.Pos) int { return s.fset.Position(p).Line }

// own gives the path of a package of this module, from the root: internal/group.
func own(path string) (string, bool) { return strings.CutPrefix(path, module+"/") }

func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "go.mod")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// skipped are directories with nothing that people wrote.
var skipped = []string{".git", "bin", "build", "testdata", "node_modules"}

// files are the paths of all files whose names end in one of the suffixes.
func files(t *testing.T, suffixes ...string) []string {
	t.Helper()
	base := root(t)
	var list []string
	err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && slices.Contains(skipped, d.Name()) {
			return filepath.SkipDir
		}
		rel, err := filepath.Rel(base, path)
		if err == nil && d.Type().IsRegular() && slices.ContainsFunc(suffixes, func(s string) bool { return strings.HasSuffix(rel, s) }) {
			list = append(list, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func read(t *testing.T, path string) string {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(root(t), path))
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

var parsed struct {
	sync.Once
	list []*source
	err  error
}

// sources are all Go files, parsed once.
func sources(t *testing.T) []*source {
	t.Helper()
	parsed.Do(func() {
		for _, path := range files(t, ".go") {
			s := &source{path: path, pkg: filepath.Dir(path), text: read(t, path), test: strings.HasSuffix(path, "_test.go"), fset: token.NewFileSet()}
			s.lines = strings.Count(s.text, "\n")
			s.file, parsed.err = parser.ParseFile(s.fset, path, s.text, parser.ParseComments)
			if parsed.err != nil {
				return
			}
			s.name = s.file.Name.Name
			parsed.list = append(parsed.list, s)
		}
	})
	if parsed.err != nil {
		t.Fatal(parsed.err)
	}
	if len(parsed.list) < 100 {
		t.Fatalf("only %d Go files found", len(parsed.list))
	}
	return parsed.list
}

// allowed says whether an exception covers a thing, and marks it as used.
type allowed struct {
	reasons map[string]string
	used    map[string]bool
}

func allow(reasons map[string]string) *allowed {
	return &allowed{reasons: reasons, used: map[string]bool{}}
}

func (a *allowed) has(name string) bool {
	_, ok := a.reasons[name]
	a.used[name] = ok
	return ok
}

// stale reports exceptions that nothing needs any more, and those without a reason.
func (a *allowed) stale(t *testing.T) {
	t.Helper()
	for name, reason := range a.reasons {
		if !a.used[name] {
			t.Errorf("the exception for %s is not needed any more: remove it", name)
		}
		if len(strings.Fields(reason)) < 4 {
			t.Errorf("the exception for %s has no reason", name)
		}
	}
}
