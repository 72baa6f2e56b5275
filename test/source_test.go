package test

import (
	"io/fs"
	"slices"
	"strings"
)

// sourceTree is a tree without what is not source: history and products.
type sourceTree struct{ fs.FS }

// ReadDir implements fs.ReadDirFS.
func (s sourceTree) ReadDir(name string) ([]fs.DirEntry, error) {
	list, err := fs.ReadDir(s.FS, name)
	return slices.DeleteFunc(list, func(e fs.DirEntry) bool {
		return name == "." && (e.Name() == ".git" || e.Name() == "bin" || e.Name() == "docs") || strings.HasSuffix(e.Name(), ".new") || !e.IsDir() && !e.Type().IsRegular()
	}), err
}
