package cli

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/client"
)

// maxFile bounds a file of groups, in bytes.
const maxFile = 64 << 20

func (a *app) applyCommand() *cobra.Command {
	var file string
	var wait bool
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Create or update groups from a file",
		Long: "Create or update container groups from Azure's YAML or JSON, as `az container create --file` takes it and\n" +
			"`spillway export` writes it. ${VAR} is replaced by the environment variable, if there is one. Documents are\n" +
			"separated by ---; - is standard input.",
		Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("'spillway apply' needs -f FILE")
			}
			return a.apply(c.Context(), file, wait, timeout)
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "file to read, - for standard input")
	c.Flags().BoolVar(&wait, "wait", false, "return when the groups run, or have run")
	c.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait for each")
	return c
}

func (a *app) apply(ctx context.Context, file string, wait bool, timeout time.Duration) error {
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
	var groups []*client.Group
	for _, d := range docs {
		g, err := a.applyOne(ctx, api, d)
		if err == nil && wait {
			g, err = a.await(ctx, api, g, d.name, timeout)
		}
		if err != nil {
			return err
		}
		groups = append(groups, g)
	}
	return a.emit(groupsView(groups, groups, time.Now()))
}

func (a *app) readFile(file string) ([]byte, error) {
	r := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, usagef("file %s cannot be read: %v", file, errors.Unwrap(err))
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, maxFile))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	return data, nil
}

// document is one group of a file.
type document struct {
	name    string
	version string
	body    object
}

var variable = regexp.MustCompile(`\$\{([A-Za-z_][A-Za-z0-9_]*)\}`)

// expand replaces ${VAR}; one that the environment has not stays as it is, for it may be meant for a shell inside.
func (a *app) expand(text []byte) []byte {
	return variable.ReplaceAllFunc(text, func(m []byte) []byte {
		if v := a.getenv(string(m[2 : len(m)-1])); v != "" {
			return []byte(v)
		}
		return m
	})
}

func (a *app) parseDocuments(file string, data []byte) ([]document, error) {
	var out []document
	for i, text := range splitYAML(a.expand(data)) {
		var body object
		if err := yaml.UnmarshalStrict(text, &body); err != nil {
			return nil, usagef("%s, document %d is not valid YAML or JSON: %v", file, i+1, err)
		}
		if len(body) == 0 {
			continue
		}
		d := document{body: body}
		d.name, _ = body["name"].(string)
		d.version, _ = body["apiVersion"].(string)
		if d.name == "" {
			return nil, usagef("%s, document %d has no name", file, i+1)
		}
		// What az adds or needs, and the platform's address already says.
		for _, key := range []string{"apiVersion", "additional_properties", "extended_location", "name", "type", "id"} {
			delete(body, key)
		}
		out = append(out, d)
	}
	if len(out) == 0 {
		return nil, usagef("%s holds no container group", file)
	}
	return out, nil
}

// splitYAML cuts at lines of three hyphens.
func splitYAML(data []byte) [][]byte {
	var out [][]byte
	var doc bytes.Buffer
	scan := bufio.NewScanner(bytes.NewReader(data))
	scan.Buffer(nil, maxFile)
	for scan.Scan() {
		if strings.TrimRight(scan.Text(), " \t\r") == "---" {
			out = append(out, bytes.Clone(doc.Bytes()))
			doc.Reset()
			continue
		}
		doc.Write(scan.Bytes())
		doc.WriteByte('\n')
	}
	return append(out, doc.Bytes())
}

func (a *app) applyOne(ctx context.Context, api *client.Client, d document) (*client.Group, error) {
	if d.body["location"] == nil {
		d.body["location"] = api.Config().Location
	}
	query := url.Values{}
	if d.version != "" {
		query.Set("api-version", d.version)
	}
	var g client.Group
	if err := api.Do(ctx, client.Call{Method: http.MethodPut, Path: api.GroupPath("", d.name), Query: query, Body: d.body}, &g); err != nil {
		return nil, err
	}
	if d.version != "" && d.version != arm.Superset {
		return api.GetGroup(ctx, "", d.name) // with all that waiting and printing look at
	}
	return &g, nil
}
