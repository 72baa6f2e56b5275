// Package cli is the command line: one file per command, each of which reads flags, calls the API through
// internal/client and prints.
//
// It decides nothing that the platform decides: no defaults of groups, no retries of what the platform retries. It must
// never poll where the API can push. Start reading at Run.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
)

// Exit codes that the fault table does not give.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 130 // as shells do for SIGINT
)

// app is one run of the program: its surroundings, and the flags that every command has.
type app struct {
	getenv func(string) string
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer

	config string
	group  string // resource group
	output string
	query  string

	api *client.Client // see client
}

// Run carries out one command line and gives the exit code.
func Run(ctx context.Context, args []string, getenv func(string) string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{getenv: getenv, stdin: stdin, stdout: stdout, stderr: stderr}
	root := a.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if a.api != nil {
		a.api.Close()
	}
	return a.report(ctx, err)
}

// Chapters of the help text.
const (
	chapterGroups   = "groups"
	chapterMachines = "machines"
	chapterPlatform = "platform"
)

// commands are all commands by the chapters of the help text. A new one is one function in a file of its own, and one
// line here.
func (a *app) commands() []*cobra.Command {
	chapter := func(id string, list ...*cobra.Command) []*cobra.Command {
		for _, c := range list {
			c.GroupID = id
		}
		return list
	}
	return slices.Concat(
		chapter(chapterGroups, a.runCommand(), a.applyCommand(), a.placeCommand(), a.psCommand(), a.showCommand(), a.logsCommand(), a.execCommand(),
			a.attachCommand(), a.eventsCommand(), a.topCommand(), a.waitCommand(), a.stopCommand(), a.startCommand(),
			a.restartCommand(), a.rmCommand(), a.exportCommand(), a.addressCommand(), a.networkCommand()),
		chapter(chapterMachines, a.imageCommand(), a.hostCommand(), a.tokenCommand(), a.usageCommand()),
		chapter(chapterPlatform, a.platformCommands()...),
		[]*cobra.Command{a.azCommand(), a.versionCommand(), a.manCommand(), a.cloneCommand(), a.benchPartCommand()})
}

// goNoise is what Go's parsers say of themselves inside an error.
var goNoise = regexp.MustCompile(`strconv\.\w+: parsing "[^"]*": |time: `)

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "spillway",
		Short:         "Run container groups on your own machines",
		Long:          "Spillway runs container groups on your own machines through the Azure Container Instances API.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("there is no command %q; 'spillway --help' lists them", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%s; see '%s --help'", goNoise.ReplaceAllString(err.Error(), ""), c.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVar(&a.config, "config", "", "client configuration (default $SPILLWAY_CONFIG, ~/.spillway/client.json, "+client.SystemConfig+")")
	f.StringVarP(&a.group, "resource-group", "g", "", "resource group (default: the configuration's)")
	f.StringVarP(&a.output, "output", "o", "table", "table, json, yaml or tsv")
	f.StringVar(&a.query, "query", "", "JMESPath expression that chooses what is printed")
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return a.checkOutput() }
	root.AddGroup(&cobra.Group{ID: chapterGroups, Title: "Container groups:"}, &cobra.Group{ID: chapterMachines, Title: "Images and hosts:"},
		&cobra.Group{ID: chapterPlatform, Title: "The platform of this machine (as root):"})
	root.AddCommand(a.commands()...)
	a.complete(root, "output", fixed("table", "json", "yaml", "tsv"))
	a.complete(root, "resource-group", a.resourceGroupNames)
	return root
}

// client connects to the platform of the configuration.
func (a *app) client() (*client.Client, error) {
	if a.api != nil {
		return a.api, nil
	}
	cfg, err := client.LoadConfig(client.FindConfig(a.config, a.getenv))
	if err != nil {
		return nil, err
	}
	if a.group != "" {
		cfg.ResourceGroup = a.group
	}
	a.api, err = client.New(*cfg)
	return a.api, err
}

// usageError is a command line that cannot be carried out.
type usageError struct{ msg string }

func (e *usageError) Error() string { return e.msg }

func usagef(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// exitError ends the program with a code of its own and no message: the exit code of a command in a container.
type exitError struct{ code int }

func (e *exitError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// report prints what went wrong and gives the exit code.
func (a *app) report(ctx context.Context, err error) int {
	if err == nil {
		return 0
	}
	if e, ok := errors.AsType[*exitError](err); ok {
		return e.code
	}
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return exitInterrupted
	}
	fmt.Fprintf(a.stderr, "spillway: %v\n", err)
	if _, ok := errors.AsType[*usageError](err); ok || strings.HasPrefix(err.Error(), "unknown command") {
		return exitUsage
	}
	e, ok := errors.AsType[*fault.Error](err)
	if !ok {
		return exitFailed
	}
	for _, d := range e.Details {
		fmt.Fprintf(a.stderr, "  %s\n", d.Message)
	}
	if e.Code == "ResourceNotFound" {
		fmt.Fprintln(a.stderr, "  'spillway ps --all' lists the groups that there are.")
	}
	return e.Kind.Row().Exit
}

// names checks that at least low and at most high arguments are there; high 0 means any number.
func names(what string, low, high int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < low:
			return usagef("'%s' needs %s; see '%s --help'", c.CommandPath(), what, c.CommandPath())
		case high > 0 && len(args) > high:
			return usagef("'%s' takes %s, got also %q; see '%s --help'", c.CommandPath(), what, args[high], c.CommandPath())
		}
		return nil
	}
}

// none refuses arguments.
func none(c *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("'%s' takes no arguments, got %q", c.CommandPath(), args[0])
	}
	return nil
}

// family is a command that only holds others.
func family(use, short string, members ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, RunE: func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("'%s' has no command %q; see '%s --help'", c.CommandPath(), args[0], c.CommandPath())
		}
		return c.Help()
	}}
	c.AddCommand(members...)
	return c
}
