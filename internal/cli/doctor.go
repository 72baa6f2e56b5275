package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/doctor"
	"spillway.dev/spillway/internal/platform"
)

func (a *app) doctorCommand() *cobra.Command {
	dir, listen := defaultDataDir, "127.0.0.1:8443"
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Check this machine, and say how to fix what is wrong",
		Long: "Checks kernel, cgroups, capabilities, network, ports, disk, limits, the installed OCI runtimes and the platform of\n" +
			"the data directory. It changes nothing. The exit code is 1 when something keeps the platform from running.",
		Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			data, err := inspectData(c.Context(), dir)
			if err != nil {
				return err
			}
			list := doctor.Evaluate(doctor.Probe(c.Context(), doctor.Options{Listen: listen, Data: data,
				Runtimes: []string{"crun", "runc", platform.FindGVisor(dir)}}))
			if err := a.emit(doctorView(list, a.output)); err != nil {
				return err
			}
			if doctor.Worst(list) == doctor.Error {
				return &exitError{exitFailed}
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&dir, "data-dir", defaultDataDir, "data directory of the platform")
	f.StringVar(&listen, "listen", listen, "address that the API is to have")
	return c
}

func inspectData(ctx context.Context, dir string) (doctor.DataDir, error) {
	s, err := platform.Inspect(ctx, dir)
	if errors.Is(err, fs.ErrPermission) {
		return doctor.DataDir{Dir: dir}, nil
	}
	return doctor.DataDir{Dir: dir, Readable: true, Exists: s.Exists, PID: s.PID, Keeper: s.Keeper, Containers: s.Containers, Parked: s.Parked}, err
}

// doctorView prints fixes on lines of their own: they are sentences, and commands to copy.
func doctorView(list []doctor.Finding, output string) view {
	v := view{data: list, header: []string{"CHECK", "SEVERITY", "FINDING"}}
	shown := map[doctor.Severity]int{}
	for _, f := range list {
		shown[f.Severity]++
		if output == "tsv" {
			v.rows = append(v.rows, []string{f.Check, string(f.Severity), f.Finding, f.Fix})
			continue
		}
		v.rows = append(v.rows, []string{f.Check, string(f.Severity), f.Finding})
		if f.Fix != "" {
			v.rows = append(v.rows, []string{" ", " ", "→ " + f.Fix})
		}
	}
	if output != "tsv" {
		v.rows = append(v.rows, []string{"in all", string(doctor.Worst(list)), fmt.Sprintf("%d errors, %d warnings, %d notes, %d fine",
			shown[doctor.Error], shown[doctor.Warning], shown[doctor.Note], shown[doctor.OK])})
	}
	return v
}
