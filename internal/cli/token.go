package cli

import (
	"time"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/client"
)

func (a *app) tokenCommand() *cobra.Command {
	return family("token", "Tokens with which hosts join", a.tokenCreateCommand())
}

func (a *app) tokenCreateCommand() *cobra.Command {
	var t client.JoinToken
	var life time.Duration
	c := &cobra.Command{
		Use: "create", Short: "Make a token with which one host can join, once", Args: none,
		Long: "The token is shown this once. On the new machine:\n\n    spillway agent --server URL --token TOKEN",
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			made, err := api.CreateToken(c.Context(), t, life)
			if err != nil {
				return err
			}
			return a.emit(view{data: made, header: []string{"EXPIRES", "TOKEN"}, rows: [][]string{{made.Expires.Local().Format(time.DateTime), made.Token}}})
		},
	}
	f := c.Flags()
	f.StringVar(&t.Host, "host", "", "the only name that a host can take with it (default: any)")
	f.StringVar(&t.Pool, "pool", "", "pool that the host will be in (default: as it says itself)")
	f.DurationVar(&life, "life", time.Hour, "how long the token is good, at most a week")
	return c
}
