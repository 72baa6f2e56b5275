package cli

import (
	"strings"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/client"
)

func (a *app) placeCommand() *cobra.Command {
	var file string
	var explain bool
	c := &cobra.Command{
		Use:   "place -f FILE",
		Short: "Say where a group would go, without creating it",
		Long: "Say on which host the container group of a file, as `spillway apply` takes it, would run if it were created\n" +
			"now. With --explain every host says why it would or would not take it. Nothing is created.",
		Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("'spillway place' needs -f FILE")
			}
			return a.place(c, file, explain)
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "file to read, - for standard input")
	c.Flags().BoolVar(&explain, "explain", false, "say why each host would or would not take the group")
	return c
}

// placement is the answer about one group of a file.
type placement struct {
	Name string `json:"name"`
	*client.Explanation
}

func (a *app) place(c *cobra.Command, file string, explain bool) error {
	data, err := a.readFile(file)
	if err != nil {
		return err
	}
	docs, err := a.parseDocuments(file, data)
	if err != nil {
		return err
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	var list []placement
	for _, d := range docs {
		if d.kind != "" && !strings.EqualFold(d.kind, arm.GroupType) {
			return usagef("%s: %q has the type %q; 'spillway place' takes %s", file, d.name, d.kind, arm.GroupType)
		}
		if d.body["location"] == nil {
			d.body["location"] = api.Config().Location
		}
		x, err := api.ExplainPlacement(c.Context(), "", d.name, d.body)
		if err != nil {
			return err
		}
		list = append(list, placement{d.name, x})
	}
	return a.emit(placeView(list, explain))
}

// placeView is a line per group, or with explain per group and host.
func placeView(list []placement, explain bool) view {
	v := view{data: list, header: []string{"NAME", "HOST", "REASON"}}
	if explain {
		v.header = []string{"NAME", "HOST", "ANSWER", "REASON"}
	}
	for _, p := range list {
		if !explain {
			reason := p.Reason
			if len(p.Victims) > 0 {
				reason += "; Spot groups on " + p.Victim + " would have to give way: " + strings.Join(p.Victims, ", ")
			}
			v.rows = append(v.rows, []string{p.Name, p.Host, reason})
			continue
		}
		for _, h := range p.Hosts {
			answer := "no"
			switch {
			case h.Host == p.Host:
				answer = "chosen"
			case h.Fits:
				answer = "yes"
			}
			v.rows = append(v.rows, []string{p.Name, h.Host, answer, h.Reason})
		}
	}
	return v
}
