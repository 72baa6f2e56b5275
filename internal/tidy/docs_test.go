package tidy

import (
	"bytes"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/cli"
)

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func TestLinksOfDocumentsResolve(t *testing.T) {
	n := 0
	for _, doc := range files(t, ".md") {
		for i, l := range strings.Split(read(t, doc), "\n") {
			for _, m := range link.FindAllStringSubmatch(l, -1) {
				target, _, _ := strings.Cut(m[1], "#")
				if target == "" || strings.Contains(target, "://") {
					continue
				}
				n++
				if _, err := os.Stat(filepath.Join(root(t), filepath.Dir(doc), target)); err != nil {
					t.Errorf("%s:%d: there is no %s", doc, i+1, target)
				}
			}
		}
	}
	if n == 0 {
		t.Error("no links found")
	}
}

func TestArchitectureIsShortAndComplete(t *testing.T) {
	text := read(t, "ARCHITECTURE.md")
	if n := strings.Count(text, "\n"); n > 200 {
		t.Errorf("ARCHITECTURE.md has %d lines, at most 200", n)
	}
	mapped := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `((?:cmd|internal|hack|kubernetes)(?:/[a-z/-]+)?)` \\|").FindAllStringSubmatch(text, -1) {
		mapped[m[1]] = true
	}
	exist := map[string]bool{}
	for _, s := range sources(t) {
		exist[s.pkg] = true
		if !mapped[s.pkg] && s.pkg != "test" {
			t.Errorf("the code map in ARCHITECTURE.md lacks %s", s.pkg)
			mapped[s.pkg] = true
		}
	}
	for pkg := range mapped {
		if !exist[pkg] {
			t.Errorf("the code map in ARCHITECTURE.md has %s, which does not exist", pkg)
		}
	}
}

// required are the modules that the go.mod of a source asks for, by directory.
func required(t *testing.T, dir string, known map[string][]string) []string {
	for dir != "." {
		if _, err := os.Stat(filepath.Join(root(t), dir, "go.mod")); err == nil {
			break
		}
		dir = filepath.Dir(dir)
	}
	list, ok := known[dir]
	if !ok {
		for _, m := range regexp.MustCompile(`(?m)^(?:require )?\s*([a-z0-9.-]+\.[a-z]+/\S+) v\S+`).FindAllStringSubmatch(read(t, filepath.Join(dir, "go.mod")), -1) {
			list = append(list, m[1])
		}
		known[dir] = list
	}
	return list
}

func TestDependenciesHaveTheirReason(t *testing.T) {
	doc, known := read(t, "docs/dependencies.md"), map[string][]string{}
	named := map[string]bool{}
	for _, s := range sources(t) {
		modules := required(t, s.pkg, known)
		for _, i := range s.imports() {
			module := ""
			for _, m := range modules {
				if (i == m || strings.HasPrefix(i, m+"/")) && len(m) > len(module) {
					module = m
				}
			}
			if module != "" && !named[module] && !strings.Contains(doc, "| "+module+" |") {
				t.Errorf("%s imports %s, of which docs/dependencies.md says nothing", s.path, module)
			}
			named[module] = true
		}
	}
	for _, m := range regexp.MustCompile(`(?m)^\| (\S+\.\S+/\S+) \|`).FindAllStringSubmatch(doc, -1) {
		if !named[m[1]] {
			t.Errorf("docs/dependencies.md explains %s, which nothing imports", m[1])
		}
	}
}

// shellLines are the lines of the documents' code blocks.
func shellLines(t *testing.T, doc string) []string {
	var list []string
	inside := false
	for _, l := range strings.Split(read(t, doc), "\n") {
		if strings.HasPrefix(strings.TrimSpace(l), "```") {
			inside = !inside
			continue
		}
		if inside {
			list = append(list, strings.TrimPrefix(strings.TrimSpace(l), "$ "))
		}
	}
	return list
}

// help is what a command says of itself; "" when there is no such command.
func help(t *testing.T, args ...string) string {
	var out, errs bytes.Buffer
	for _, a := range args { // a flag could take --help for its value, and the command would run
		if !commandShape.MatchString(a) {
			return ""
		}
	}
	code := cli.Run(t.Context(), append(slices.Clone(args), "--help"), func(string) string { return "" }, strings.NewReader(""), &out, &errs)
	if code != 0 || !strings.Contains(out.String(), "spillway "+strings.Join(args, " ")) {
		return ""
	}
	return out.String()
}

var (
	commandShape = regexp.MustCompile(`^[a-z]+$`)
	flagShape    = regexp.MustCompile(`^--?[a-z][a-z-]*`)
	targetShape  = regexp.MustCompile(`(?m)^([a-z][a-z-]*):`)
)

// TestDocumentedCommandsExist reads every command line in a code block: its command and its flags are there.
func TestDocumentedCommandsExist(t *testing.T) {
	targets := map[string]bool{}
	for _, m := range targetShape.FindAllStringSubmatch(read(t, "Makefile"), -1) {
		targets[m[1]] = true
	}
	n := 0
	for _, doc := range append(files(t, ".md"), "README.md") {
		for _, l := range shellLines(t, doc) {
			words := strings.Fields(strings.TrimPrefix(l, "sudo "))
			if len(words) < 2 {
				continue
			}
			switch path.Base(words[0]) {
			case "make":
				if n++; !targets[words[1]] {
					t.Errorf("%s: %q: the Makefile has no %s", doc, l, words[1])
				}
			case "spillway":
				n++
				checkCommand(t, doc, l, words[1:])
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d command lines found", n)
	}
}

func checkCommand(t *testing.T, doc, line string, words []string) {
	name := words[:1]
	text := help(t, name...)
	if len(words) > 1 {
		if sub := help(t, words[0], words[1]); sub != "" && !strings.HasPrefix(sub, text[:min(len(text), 20)]) {
			text = sub
		}
	}
	if text == "" {
		t.Errorf("%s: %q: there is no such command", doc, line)
		return
	}
	for _, w := range words[1:] {
		if w == "--" || w == "|" || w == "#" || strings.HasPrefix(w, ">") {
			return
		}
		flag := flagShape.FindString(w)
		if strings.HasPrefix(flag, "--") && !strings.Contains(text, flag+" ") && !strings.Contains(text, flag+"\n") {
			t.Errorf("%s: %q: the command has no %s", doc, line, flag)
		}
	}
}

func TestAPIVersionsAreDescribed(t *testing.T) {
	doc, spec := read(t, "docs/api.md"), read(t, "api/openapi.yaml")
	for _, v := range arm.Versions() {
		if !strings.Contains(doc, v) {
			t.Errorf("docs/api.md says nothing of api-version %s", v)
		}
		if !strings.Contains(spec, v) {
			t.Errorf("api/openapi.yaml says nothing of api-version %s", v)
		}
	}
}
