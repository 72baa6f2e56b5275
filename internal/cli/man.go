package cli

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"spillway.dev/spillway/internal/volume"
)

func (a *app) manCommand() *cobra.Command {
	return &cobra.Command{
		Use: "man DIR", Short: "Write the manual pages into a directory", Hidden: true, Args: names("a DIR", 1, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := os.MkdirAll(args[0], 0o755); err != nil {
				return fmt.Errorf("write manual pages: %w", err)
			}
			root := c.Root()
			root.DisableAutoGenTag = true // the same bytes from the same source
			return doc.GenManTree(root, &doc.GenManHeader{Title: "SPILLWAY", Section: "1", Source: "Spillway"}, args[0])
		},
	}
}

// cloneCommand is run by the platform inside a sandbox, to fill a gitRepo volume.
func (a *app) cloneCommand() *cobra.Command {
	return &cobra.Command{
		Use: volume.CloneCommand, Hidden: true, Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			if code := volume.CloneMain(context.WithoutCancel(c.Context()), a.getenv, a.stderr); code != 0 {
				return &exitError{code}
			}
			return nil
		},
	}
}
