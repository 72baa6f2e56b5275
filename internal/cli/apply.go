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
		Short: "Create or update groups and service addresses from a file",
		Long: "Create or update container groups from Azure's YAML or JSON, as `az container create --file` takes it and\n" +
			"`spillway export` writes it. ${VAR} is replaced by the environment variable, if there is one. Documents are\n" +
			"separated by ---; - is standard input. A document of type Microsoft.ContainerInstance/serviceAddresses is a\n" +
			"service address.",
		Args: none,
		RunE: func(c *cobra.Command, _ []string) error {
			if file == "" {
				return usagef("'spillway apply' needs -f FILE")
			}
			return a.apply(c.Context(), applyFlags{file, arm.GroupType, wait, timeout})
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "file to read, - for standard input")
	c.Flags().BoolVar(&wait, "wait", false, "return when the groups run, or have run")
	c.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait for each")
	return c
}

// applyFlags say what is applied, and how.
type applyFlags struct {
	file    string
	kind    string // of documents that name no type
	wait    bool
	timeout time.Duration
}

func (a *app) apply(ctx context.Context, f applyFlags) error {
	data, err := a.readFile(f.file)
	if err != nil {
		return err
	}
	docs, err := a.parseDocuments(f.file, data)
	if err != nil {
		return err
	}
	api, err := a.client()
	if err != nil {
		return err
	}
	var done applied
	for _, d := range docs {
		switch {
		case d.kind == "":
			d.kind = f.kind
		case !strings.EqualFold(d.kind, arm.GroupType) && !strings.EqualFold(d.kind, arm.AddressType):
			return usagef("%s: %q has the type %q; 'spillway apply' takes %s and %s", f.file, d.name, d.kind, arm.GroupType, arm.AddressType)
		}
		if err := a.applyOne(ctx, api, d, &done, f); err != nil {
			return err
		}
	}
	return a.emit(done.view(time.Now()))
}

// applied is what came of the documents.
type applied struct {
	all       []any // in their order
	groups    []*client.Group
	addresses []*client.ServiceAddress
}

// view is a table of groups, of service addresses, or of what both have.
func (r *applied) view(now time.Time) view {
	switch {
	case len(r.addresses) == 0:
		return groupsView(r.groups, r.groups, now)
	case len(r.groups) == 0:
		return addressesView(r.addresses, r.addresses)
	}
	v := view{data: r.all, header: []string{"NAME", "TYPE", "STATE", "ADDRESS"}}
	for _, one := range r.all {
		switch one := one.(type) {
		case *client.Group:
			v.rows = append(v.rows, []string{one.Name, "containerGroups", stateText(one), addressText(one)})
		case *client.ServiceAddress:
			v.rows = append(v.rows, []string{one.Name, "serviceAddresses", one.Properties.ProvisioningState, one.Properties.Address})
		}
	}
	return v
}

func (a *app) applyOne(ctx context.Context, api *client.Client, d document, done *applied, f applyFlags) error {
	if strings.EqualFold(d.kind, arm.AddressType) {
		s, err := api.PutServiceAddress(ctx, "", d.name, d.body)
		done.addresses, done.all = append(done.addresses, s), append(done.all, s)
		return err
	}
	g, err := a.applyGroup(ctx, api, d)
	if err == nil && f.wait {
		g, err = a.await(ctx, api, g, d.name, f.timeout)
	}
	done.groups, done.all = append(done.groups, g), append(done.all, g)
	return err
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

// document is one group or service address of a file.
type document struct {
	kind    string // type; "" = not said
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
		d.kind, _ = body["type"].(string)
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
		return nil, usagef("%s holds no container group and no service address", file)
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

func (a *app) applyGroup(ctx context.Context, api *client.Client, d document) (*client.Group, error) {
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
