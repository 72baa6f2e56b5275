package cli

import (
	"strconv"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/client"
)

func (a *app) usageCommand() *cobra.Command {
	return &cobra.Command{
		Use: "usage", Short: "Show what the subscription uses, and its quotas", Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			list, err := api.Usages(c.Context())
			if err != nil {
				return err
			}
			if list == nil {
				list = []client.Usage{}
			}
			v := view{data: list, header: []string{"NAME", "CURRENT", "LIMIT", "UNIT"}}
			for _, u := range list {
				v.rows = append(v.rows, []string{u.Name.Localized, strconv.FormatInt(u.Current, 10), strconv.FormatInt(u.Limit, 10), u.Unit})
			}
			return a.emit(v)
		},
	}
}
