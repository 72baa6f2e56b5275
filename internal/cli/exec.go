package cli

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
)

func (a *app) execCommand() *cobra.Command {
	var container string
	var tty, stdin bool
	c := &cobra.Command{
		Use:     "exec NAME [-it] -- COMMAND ARG...",
		Short:   "Run a command in a container",
		Long:    "Run a command in a running container. Its exit code becomes the exit code of this command.",
		Example: "  spillway exec web -- ls -l /\n  spillway exec web -it -- sh",
		Args: func(c *cobra.Command, args []string) error {
			if dash := c.ArgsLenAtDash(); dash != 1 || len(args) < 2 {
				return usagef("'spillway exec' needs the NAME of a group and a command behind --, as in: spillway exec web -- ls -l")
			}
			return nil
		},
		ValidArgsFunction: a.first(a.groupNames),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			req := host.ExecRequest{Command: args[1:], TTY: tty, Stdin: stdin}
			s, size, restore, err := a.streams(c.Context(), tty, stdin)
			if err != nil {
				return err
			}
			req.Size = size
			code, err := api.Exec(c.Context(), client.Target{Group: args[0], Container: container}, req, s)
			restore()
			if err == nil && code != 0 {
				return &exitError{code}
			}
			return err
		},
	}
	c.Flags().StringVarP(&container, "container", "c", "", "container (default: the first)")
	c.Flags().BoolVarP(&tty, "tty", "t", false, "with a terminal")
	c.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input on")
	a.complete(c, "container", a.containerNames)
	return c
}

func (a *app) attachCommand() *cobra.Command {
	var container string
	var tty, stdin bool
	c := &cobra.Command{
		Use:               "attach NAME",
		Short:             "Connect to the standard streams of a container",
		Args:              names("the NAME of a group", 1, 1),
		ValidArgsFunction: a.first(a.groupNames),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.client()
			if err != nil {
				return err
			}
			s, _, restore, err := a.streams(c.Context(), tty, stdin)
			if err != nil {
				return err
			}
			defer restore()
			return api.Attach(c.Context(), client.Target{Group: args[0], Container: container}, s)
		},
	}
	c.Flags().StringVarP(&container, "container", "c", "", "container (default: the first)")
	c.Flags().BoolVarP(&tty, "tty", "t", false, "the container has a terminal")
	c.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input on")
	a.complete(c, "container", a.containerNames)
	return c
}

// streams are the ends of this process for one in a container. With a terminal, it is put into raw mode until restore,
// and its changes of size go along until ctx ends.
func (a *app) streams(ctx context.Context, tty, stdin bool) (host.Streams, host.Size, func(), error) {
	s := host.Streams{Stdout: a.stdout, Stderr: a.stderr}
	if stdin {
		s.Stdin = a.stdin
	}
	restore := func() {}
	if !tty {
		return s, host.Size{}, restore, nil
	}
	size := host.Size{Rows: 24, Cols: 80}
	if out, ok := isTerminal(a.stdout); ok {
		size = terminalSize(out)
		s.Resize = a.resizes(ctx, out)
	}
	if in, ok := isTerminal(a.stdin); ok && stdin {
		old, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return s, size, restore, fmt.Errorf("put terminal into raw mode: %w", err)
		}
		restore = func() { term.Restore(int(in.Fd()), old) } // nothing better can be done if it fails
	}
	return s, size, restore, nil
}

func terminalSize(f *os.File) host.Size {
	cols, rows, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return host.Size{Rows: 24, Cols: 80}
	}
	return host.Size{Rows: uint16(rows), Cols: uint16(cols)}
}

// resizes gives the new size whenever the terminal changes. The channel is never closed; ctx ends the watching.
func (a *app) resizes(ctx context.Context, f *os.File) <-chan host.Size {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	out := make(chan host.Size, 1)
	go func() {
		defer signal.Stop(changed)
		for {
			select {
			case <-ctx.Done():
				return
			case <-changed:
				select {
				case out <- terminalSize(f):
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}
