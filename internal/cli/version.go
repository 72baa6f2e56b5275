package cli

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/arm"
)

// versionInfo is what `version` shows.
type versionInfo struct {
	Version     string   `json:"version"`
	Revision    string   `json:"revision,omitempty"`
	Go          string   `json:"go"`
	Platform    string   `json:"platform"`
	APIVersions []string `json:"apiVersions"`
}

// Version is the version of this binary: the module's, as the build recorded it.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" || info.Main.Version == "(devel)" {
		return "dev"
	}
	return info.Main.Version
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: none,
		RunE: func(*cobra.Command, []string) error {
			v := versionInfo{Version: Version(), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH, APIVersions: arm.Versions()}
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v.Revision = s.Value
					}
				}
			}
			return a.emit(view{data: v, rows: [][]string{{"spillway " + v.Version, v.Platform, v.Go}}})
		},
	}
}
