package runtime

import (
	"embed"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

//go:embed all:embed
var embedded embed.FS

// ErrNoKeeper is a binary that was built without its keeper.
var ErrNoKeeper = errors.New("this binary carries no keeper: build it with make build")

// KeeperProgram gives the keeper's program as an open file that is executed by its path: the embedded one, in memory,
// so that nothing on disk can be swapped under it. SPILLWAY_KEEPER names another file, for tests and development.
func KeeperProgram(getenv func(string) string) (*os.File, error) {
	if path := getenv("SPILLWAY_KEEPER"); path != "" {
		return os.Open(filepath.Clean(path))
	}
	body, err := embedded.ReadFile("embed/spillway-keeper")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNoKeeper
	}
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("spillway-keeper", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "spillway-keeper")
	_, err = f.Write(body)
	return f, err
}
