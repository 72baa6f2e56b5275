package cli

import "github.com/spf13/cobra"

// platformCommands are the commands that run or examine the platform itself instead of calling its API.
func (a *app) platformCommands() []*cobra.Command {
	return []*cobra.Command{a.upCommand(), a.serverCommand(), a.agentCommand(), a.downCommand(), a.doctorCommand(), a.benchCommand()}
}
