package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

// Where and how a clone runs. The command is this program itself, inside a sandbox: own namespaces, the group's
// network, no capabilities beyond writing files, the platform's seccomp profile. Repositories are hostile input: they
// are read by a Go library that knows no hooks, no filters and no local transports, and only in there.
const (
	CloneCommand = "git-clone" // first argument of the program
	CloneTarget  = "/repo"     // where the volume is inside the sandbox
	cloneEnv     = "SPILLWAY_CLONE"
	cloneBytes   = 2 << 30 // bytes of a clone, history included
	cloneTime    = 5 * time.Minute
)

// Clone is a clone to be made. It travels in the environment, not in the arguments: the address may hold a password.
type Clone struct {
	Repository string        `json:"repository"`
	Revision   string        `json:"revision,omitempty"`
	Directory  string        `json:"directory"` // below CloneTarget; "." = itself
	MaxBytes   int64         `json:"maxBytes"`
	Timeout    time.Duration `json:"timeout"`
}

// Env is the environment variable that the command reads.
func (c *Clone) Env() (string, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("encode clone: %w", err)
	}
	return cloneEnv + "=" + string(b), nil
}

// prepareClone makes the volume's directory and says what to clone; nil when that has been done.
func prepareClone(dir string, v *group.Volume) (*Clone, error) {
	c, err := newClone(v)
	if err != nil {
		return nil, err
	}
	if err := makeDir(filepath.Join(dir, v.Name)); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(filepath.Join(dir, doneMark+v.Name)); err == nil {
		return nil, nil
	}
	return c, nil
}

func newClone(v *group.Volume) (*Clone, error) {
	r := v.GitRepo
	u, err := url.Parse(r.Repository)
	if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fault.New(fault.Invalid, "", "volume %s: repository must be an https:// or http:// URL; other ways to reach one are not allowed", v.Name)
	}
	directory := r.Directory
	if directory == "" {
		directory = strings.TrimSuffix(path.Base(path.Clean("/"+u.Path)), ".git")
	}
	if !filepath.IsLocal(directory) || strings.Contains(directory, "..") || directory == "/" {
		return nil, fault.New(fault.Invalid, "", "volume %s: directory %q must be a relative path without '..'; '.' puts the repository into the volume itself", v.Name, r.Directory)
	}
	if strings.HasPrefix(r.Revision, "-") {
		return nil, fault.New(fault.Invalid, "", "volume %s: revision %q must not begin with '-'", v.Name, r.Revision)
	}
	return &Clone{Repository: r.Repository, Revision: r.Revision, Directory: path.Clean(directory), MaxBytes: cloneBytes, Timeout: cloneTime}, nil
}

// Cloned records that a volume's clone is complete: it is not made again when the group's containers restart.
func (m *Manager) Cloned(dir, volume string) error {
	if err := checkName(volume); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, doneMark+volume), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("record clone of volume %s: %w", volume, err)
	}
	return f.Close()
}
