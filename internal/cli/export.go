package cli

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/client"
)

func (a *app) exportCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:               "export NAME",
		Short:             "Write a group as a file for 'spillway apply'",
		Long:              "Write the definition of a group as YAML (-o json: JSON), without its state. Secrets are not in it: the platform\nnever shows them.",
		Args:              names("the NAME of a group", 1, 1),
		ValidArgsFunction: a.first(a.groupNames),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			g, err := api.GetGroup(c.Context(), "", args[0])
			if err != nil {
				return err
			}
			out, err := exported(g, a.output == "json")
			if err != nil {
				return err
			}
			if file == "" {
				_, err = a.stdout.Write(out)
				return err
			}
			if err := os.WriteFile(file, out, 0o600); err != nil {
				return fmt.Errorf("export group %s: %w", args[0], err)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "file to write (default: standard output)")
	return c
}

// exported is a group's definition: what came, without what only the platform says.
func exported(g *client.Group, asJSON bool) ([]byte, error) {
	var body object
	if err := json.Unmarshal(g.Raw, &body); err != nil {
		return nil, fmt.Errorf("read group: %w", err)
	}
	delete(body, "id")
	body["apiVersion"] = arm.Superset
	props, _ := body["properties"].(object)
	for _, key := range []string{"instanceView", "provisioningState", "provisioningTimeoutInSeconds", "isCustomProvisioningTimeout", "uid", "generation", "epoch", "host", "desired", "created"} {
		delete(props, key)
	}
	for _, kind := range []string{"containers", "initContainers"} {
		list, _ := props[kind].([]any)
		for _, c := range list {
			if container, ok := c.(object); ok {
				if p, ok := container["properties"].(object); ok {
					delete(p, "instanceView")
				}
			}
		}
		if len(list) == 0 {
			delete(props, kind)
		}
	}
	if ip, ok := props["ipAddress"].(object); ok {
		delete(ip, "ip")
		delete(ip, "fqdn")
	}
	if asJSON {
		out, err := json.MarshalIndent(body, "", "  ")
		return append(out, '\n'), err
	}
	return yaml.Marshal(body)
}
