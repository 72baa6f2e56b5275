package main

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMutantsFit: a rule that has been written otherwise must still be broken by somebody.
func TestMutantsFit(t *testing.T) {
	for _, m := range mutants {
		body, err := os.ReadFile(filepath.Join("..", "..", m.file))
		if err == nil {
			err = m.fits(string(body))
		}
		if err != nil {
			t.Errorf("%s: %v", m.name, err)
		}
	}
}
