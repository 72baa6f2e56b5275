package tidy

import (
	"go/ast"
	"path/filepath"
	"strings"
	"testing"
)

// Budgets. What does not fit has split into two nouns: name the second and move it.
const (
	maxFile      = 500 // lines
	maxFunction  = 70  // lines
	maxParams    = 4   // after ctx
	maxInterface = 5   // methods
)

func TestFilesAreSmall(t *testing.T) {
	ok := allow(longFiles)
	for _, s := range sources(t) {
		if s.lines > maxFile && !ok.has(s.path) {
			t.Errorf("%s has %d lines, at most %d", s.path, s.lines, maxFile)
		}
	}
	ok.stale(t)
}

// funcName is path.Receiver.Name, as exceptions name a function.
func funcName(s *source, f *ast.FuncDecl) string {
	name := f.Name.Name
	if f.Recv != nil && len(f.Recv.List) == 1 {
		at := f.Recv.List[0].Type
		if star, ok := at.(*ast.StarExpr); ok {
			at = star.X
		}
		if index, ok := at.(*ast.IndexExpr); ok {
			at = index.X
		}
		if id, ok := at.(*ast.Ident); ok {
			name = id.Name + "." + name
		}
	}
	return filepath.Base(s.pkg) + "." + name
}

// params counts parameters without a leading context or test.
func params(f *ast.FuncType) int {
	n := 0
	for i, p := range f.Params.List {
		if i == 0 && leading(p.Type) {
			n += len(p.Names) - 1 // further ones of the type count
			continue
		}
		n += max(1, len(p.Names))
	}
	return n
}

func leading(e ast.Expr) bool {
	if star, ok := e.(*ast.StarExpr); ok {
		e = star.X
	}
	sel, ok := e.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	pkg, ok := sel.X.(*ast.Ident)
	return ok && (pkg.Name == "context" && sel.Sel.Name == "Context" || pkg.Name == "testing" || pkg.Name == "testscript")
}

func TestFunctionsAreSmall(t *testing.T) {
	long, wide := allow(longFunctions), allow(manyParams)
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			name := funcName(s, f)
			if n := s.line(f.End()) - s.line(f.Pos()) + 1; n > maxFunction && !long.has(name) {
				t.Errorf("%s:%d: %s has %d lines, at most %d", s.path, s.line(f.Pos()), name, n, maxFunction)
			}
			if n := params(f.Type); n > maxParams && !wide.has(name) {
				t.Errorf("%s:%d: %s has %d parameters, at most %d: make a struct", s.path, s.line(f.Pos()), name, n, maxParams)
			}
		}
	}
	long.stale(t)
	wide.stale(t)
}

func TestInterfacesAreSmall(t *testing.T) {
	ok := allow(wideInterfaces)
	for _, s := range sources(t) {
		ast.Inspect(s.file, func(n ast.Node) bool {
			spec, is := n.(*ast.TypeSpec)
			if !is {
				return true
			}
			i, is := spec.Type.(*ast.InterfaceType)
			if name := filepath.Base(s.pkg) + "." + spec.Name.Name; is && i.Methods.NumFields() > maxInterface && !ok.has(name) {
				t.Errorf("%s:%d: %s has %d methods, at most %d", s.path, s.line(n.Pos()), name, i.Methods.NumFields(), maxInterface)
			}
			return true
		})
	}
	ok.stale(t)
}

func TestPackagesSayWhatTheyAre(t *testing.T) {
	said, any := map[string]string{}, map[string]bool{}
	for _, s := range sources(t) {
		if strings.HasSuffix(s.name, "_test") {
			continue
		}
		any[s.pkg] = true
		if s.file.Doc != nil {
			said[s.pkg] += s.file.Doc.Text()
		}
	}
	for pkg := range any {
		text := said[pkg]
		switch {
		case !strings.HasPrefix(text, "Package ") && !strings.HasPrefix(text, "Command "):
			t.Errorf("package %s has no package comment", pkg)
		case strings.HasPrefix(pkg, "internal/") && !strings.Contains(strings.ToLower(text), "start"):
			t.Errorf("the package comment of %s does not say where to start reading", pkg)
		}
	}
}
