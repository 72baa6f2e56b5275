// Command spillway is the whole platform and its command line; what it does is in internal/cli.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"spillway.dev/spillway/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, os.Args[1:], os.Getenv, os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
