package test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"

	"spillway.dev/spillway/internal/keeper"
)

// records are what the keeper of this platform has written down of its containers.
func (p *process) records() ([]keeper.Container, error) {
	files, err := filepath.Glob("/run/spillway/" + p.id + "/containers/*.json")
	if err != nil {
		return nil, err
	}
	var all []keeper.Container
	for _, path := range files {
		body, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		var c keeper.Container
		if err := json.Unmarshal(body, &c); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}
