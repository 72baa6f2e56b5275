package tidy

import (
	"go/ast"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// purePackages decide and nothing else: no clock, no chance, no goroutine, no files.
var purePackages = []string{"internal/group", "internal/host", "internal/fault", "internal/arm", "internal/place", "internal/converge", "internal/network/overlay", "internal/seccomp"}

// impure are what pure packages must not use: a whole package, or one function of it.
var impure = []string{"time.Now", "time.Since", "time.Sleep", "time.After", "time.NewTimer", "math/rand", "math/rand/v2", "crypto/rand", "os", "net/http", "log/slog"}

func TestPurePackagesArePure(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || !slices.Contains(purePackages, s.pkg) {
			continue
		}
		for _, i := range s.imports() {
			// The table of error kinds names statuses by net/http's constants.
			if slices.Contains(impure, i) && !(s.pkg == "internal/fault" && i == "net/http") {
				t.Errorf("%s: a pure package must not import %s", s.path, i)
			}
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			if g, ok := n.(*ast.GoStmt); ok {
				t.Errorf("%s:%d: a pure package must not start goroutines", s.path, s.line(g.Pos()))
			}
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && slices.Contains(impure, x.Name+"."+sel.Sel.Name) {
					t.Errorf("%s:%d: a pure package must not use %s.%s: take it as an argument", s.path, s.line(n.Pos()), x.Name, sel.Sel.Name)
				}
			}
			return true
		})
	}
}

func TestNothingRunsBeforeMain(t *testing.T) {
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s:%d: init() runs unseen: call a function", s.path, s.line(f.Pos()))
			}
		}
	}
}

// unfinished marks work that is not done; the words are put together so that this file does not hold them.
var unfinished = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`)

// foreign are things that belong to one developer's machine, or would tie a test to the world outside.
var foreign = regexp.MustCompile(`(/home/[a-z]+/|/Users/[a-z])|\b(registry-1\.docker\.io|ghcr\.io|quay\.io|gcr\.io|mcr\.microsoft\.com|registry\.k8s\.io)\b`)

func TestTextIsFinishedAndAtHome(t *testing.T) {
	ok := allow(foreignText)
	for _, path := range files(t, ".go", ".md", ".sh", ".yaml", ".json", ".txtar", "Makefile", ".ci/run") {
		for i, l := range strings.Split(read(t, path), "\n") {
			if m := unfinished.FindString(l); m != "" {
				t.Errorf("%s:%d: %s: do it, or say in the issue tracker who will", path, i+1, m)
			}
			if m := foreign.FindString(l); m != "" && !ok.has(path+": "+m) {
				t.Errorf("%s:%d: %q does not belong here", path, i+1, m)
			}
		}
	}
	ok.stale(t)
}
