// Command spillway-keeper is the parent of a host's containers, and the init that becomes each of them. It is part of
// the spillway binary, which unpacks and runs it; it is not called by hand.
package main

import (
	"fmt"
	"log/slog"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/sandbox"
)

func main() {
	nameProcess(os.Args[0])
	if os.Args[0] == "spillway-init" {
		os.Exit(sandbox.Main(os.Args[1:]))
	}
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: spillway-keeper RUN-DIRECTORY")
		os.Exit(2)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	if err := keeper.Serve(keeper.Config{Dir: os.Args[1], Log: log}); err != nil {
		log.Error("keeper", "error", err)
		os.Exit(1)
	}
}

// nameProcess gives the process a name for ps and pgrep: it was executed from memory, by a number.
func nameProcess(name string) {
	text, err := unix.BytePtrFromString(name)
	if err == nil {
		_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(text)), 0, 0, 0)
	}
}
