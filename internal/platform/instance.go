package platform

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/network"
	"spillway.dev/spillway/internal/wholefile"
)

// instance is what tells this platform from others on the same machine. It is chosen once per data directory.
type instance struct {
	ID   string       `json:"id"`   // four hexadecimal digits
	CIDR netip.Prefix `json:"cidr"` // of the groups' addresses
}

// runDir is where what does not outlive a reboot is kept.
func (i *instance) runDir() string { return filepath.Join("/run/spillway", i.ID) }

func instancePath(dir string) string { return filepath.Join(dir, "instance.json") }

func readInstance(dir string) (*instance, error) {
	body, err := os.ReadFile(instancePath(dir))
	if err != nil {
		return nil, err
	}
	var i instance
	if err := json.Unmarshal(body, &i); err != nil {
		return nil, fmt.Errorf("read %s: %w", instancePath(dir), err)
	}
	return &i, nil
}

// openInstance reads the instance of the data directory, or chooses one that no other platform here uses.
func openInstance(ctx context.Context, cfg *Config) (*instance, error) {
	i, err := readInstance(cfg.DataDir)
	if err == nil {
		if cfg.Network.IsValid() && cfg.Network != i.CIDR {
			return nil, fault.New(fault.Conflict, "", "The data directory %s has groups in %s; --network %s cannot change that. Use another data directory.", cfg.DataDir, i.CIDR, cfg.Network)
		}
		return i, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for {
		if i, err = chooseInstance(cfg.Network); err != nil {
			return nil, err
		}
		err = i.claim(ctx, cfg)
		if fault.KindOf(err) != fault.Conflict || cfg.Network.IsValid() {
			return i, err
		}
	}
}

// claim writes the instance down and takes its range. Written first: what it takes can then be found and given back,
// whenever the process dies.
func (i *instance) claim(ctx context.Context, cfg *Config) error {
	body, err := json.Marshal(i)
	if err != nil {
		return err
	}
	if err := wholefile.WriteSynced(instancePath(cfg.DataDir), body); err != nil {
		return err
	}
	if err := network.Claim(ctx, network.Config{Instance: i.ID, CIDR: i.CIDR}); err != nil {
		return errors.Join(err, os.Remove(instancePath(cfg.DataDir)))
	}
	return os.MkdirAll(i.runDir(), 0o700)
}

// chooseInstance picks an id that no other platform here uses and, when none is given, a range.
func chooseInstance(cidr netip.Prefix) (*instance, error) {
	taken, err := network.Tables()
	if err != nil {
		return nil, err
	}
	for {
		var raw [2]byte
		_, _ = rand.Read(raw[:])
		id := hex.EncodeToString(raw[:])
		if slices.Contains(taken, id) {
			continue
		}
		if _, err := os.Stat(filepath.Join("/run/spillway", id)); err == nil {
			continue
		}
		if cidr.IsValid() {
			return &instance{id, cidr}, nil
		}
		used, err := network.HostPrefixes()
		if err != nil {
			return nil, err
		}
		chosen, err := network.ChooseCIDR(id, used)
		return &instance{id, chosen}, err
	}
}

// enter makes the data directory, and this process the only one that uses it.
func (c *Config) enter() (lock *os.File, err error) {
	if c.DataDir, err = filepath.Abs(c.DataDir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return nil, err
	}
	return lockDir(c.DataDir)
}

// lockDir makes sure that one platform at a time uses a data directory; the file holds its process id.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "up.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fault.New(fault.Conflict, "", "A platform runs on %s already (process %d). Stop it with 'spillway down --data-dir %s', or use another --data-dir.", dir, pidOf(dir), dir)
	}
	// Written before it is cut: a full disk must not keep the platform from starting.
	pid := []byte(strconv.Itoa(os.Getpid()))
	_, err = f.WriteAt(pid, 0)
	return f, errors.Join(err, f.Truncate(int64(len(pid))))
}

// findRuntime resolves --runtime.
func findRuntime(name string) (string, error) {
	if name == "" || name == "parked" {
		return "", nil
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fault.New(fault.Invalid, "", "--runtime %s: there is no such program. Install it (apt-get install %s), or use 'parked'.", name, filepath.Base(name))
	}
	return filepath.Abs(path)
}

// FindGVisor finds runsc. "" means that isolation gvisor is refused.
func FindGVisor(dataDir string) string { return findProgram(dataDir, "runsc") }

// findProgram finds a program that is not built in: beside the data, beside this program, then on the path.
func findProgram(dataDir, name string) string {
	if path := filepath.Join(dataDir, "bin", name); executable(path) {
		return path
	}
	if self, err := os.Executable(); err == nil {
		if path := filepath.Join(filepath.Dir(self), name); executable(path) {
			return path
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return path
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
