package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/keeper"
	"spillway.dev/spillway/internal/network"
	"spillway.dev/spillway/internal/runtime"
)

func (a *Agent) keeperLog() string { return filepath.Join(a.cfg.DataDir, "keeper.log") }

// startKeeper starts the keeper as a process of its own, in no way tied to this one. ended is closed with it.
func (a *Agent) startKeeper() (ended <-chan struct{}, err error) {
	program, err := runtime.KeeperProgram(a.cfg.Getenv)
	if err != nil {
		return nil, err
	}
	defer program.Close()
	logFile, err := os.OpenFile(a.keeperLog(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer logFile.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	process, err := os.StartProcess("/proc/self/fd/"+strconv.Itoa(int(program.Fd())), []string{"spillway-keeper", a.cfg.RunDir}, &os.ProcAttr{
		Dir: "/",
		// A small heap is collected often and cheaply; the path is for OCI runtimes.
		Env:   []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "GOGC=50"},
		Files: []*os.File{null, logFile, logFile},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return nil, err
	}
	// It is waited for, so that a keeper that ends while we live leaves no zombie.
	done := make(chan struct{})
	go func() { _, _ = process.Wait(); close(done) }()
	return done, nil
}

// upgradeKeeper makes a running keeper execute our own program when it is another one's, so that what we say and what
// it understands fit.
func (a *Agent) upgradeKeeper(ctx context.Context, k *keeper.Client) (*keeper.Client, error) {
	program, err := runtime.KeeperProgram(a.cfg.Getenv)
	if err != nil {
		return k, err
	}
	defer program.Close()
	wanted, err := keeper.ProgramVersion(io.NewSectionReader(program, 0, 1<<62))
	if err != nil {
		return k, err
	}
	running, err := k.Version(ctx)
	if err != nil || running == wanted {
		return k, err
	}
	a.cfg.Log.Info("upgrading the keeper in place")
	if err := k.Upgrade(ctx, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), program.Fd())); err != nil {
		return k, fmt.Errorf("upgrade keeper: %w", err)
	}
	k.Close()
	return a.dialNew(ctx, nil)
}

// runLabel is what the keeper keeps with each run of a container.
type runLabel struct {
	UID     string `json:"uid"`
	Epoch   int64  `json:"epoch"`
	Name    string `json:"name"`
	Attempt int    `json:"attempt"`
}

func (l runLabel) id() string {
	return fmt.Sprintf("%s.%d.%s.%d", l.UID, l.Epoch, l.Name, l.Attempt)
}

func (l runLabel) json() json.RawMessage {
	body, _ := json.Marshal(l)
	return body
}

func readRunLabel(body json.RawMessage) (runLabel, error) {
	var l runLabel
	err := json.Unmarshal(body, &l)
	if err == nil && l.UID == "" {
		err = fmt.Errorf("label %s names no group", body)
	}
	return l, err
}

// slotLabel is what the keeper keeps with each slot.
type slotLabel struct {
	Index  uint32 `json:"index"`
	Addr   string `json:"addr"`
	Public string `json:"public,omitempty"`
	Ready  bool   `json:"ready,omitempty"` // its network is attached
	UID    string `json:"uid,omitempty"`   // of the group that has claimed it
	Host   bool   `json:"host,omitempty"`  // in the machine's own network, Addr is the machine's
	Own    bool   `json:"own,omitempty"`   // unlike parked ones: made for one group, and for no other
}

func (l slotLabel) json() json.RawMessage {
	body, _ := json.Marshal(l)
	return body
}

// inventory is what a keeper holds, by group.
type inventory struct {
	slots map[string]foundSlot          // by uid
	runs  map[string][]keeper.Container // by uid
	spare []foundSlot                   // unclaimed
	ids   map[string]bool               // of all slots
}

type foundSlot struct {
	id     string
	label  slotLabel
	netns  string
	parked bool
}

// slot is a found one as the pool knows them.
func (f foundSlot) slot() *slot {
	addr, _ := netip.ParseAddr(f.label.Addr)
	return &slot{id: f.id, index: f.label.Index, addr: addr, host: f.label.Host, own: f.label.Own}
}

// membership is what the network knows of a claimed slot.
func (a *Agent) foundMembership(f foundSlot, g *group.Group) network.Membership {
	addr, _ := netip.ParseAddr(f.label.Addr)
	public, _ := netip.ParseAddr(f.label.Public)
	return a.membership(g, addr, public)
}

func newInventory(slots []keeper.Slot, containers []keeper.Container) inventory {
	inv := inventory{slots: map[string]foundSlot{}, runs: map[string][]keeper.Container{}, ids: map[string]bool{}}
	for _, s := range slots {
		f := foundSlot{id: s.ID, netns: s.Namespaces["net"], parked: s.Parked}
		_ = json.Unmarshal(s.Label, &f.label)
		inv.ids[s.ID] = true
		if f.label.UID != "" {
			inv.slots[f.label.UID] = f
		} else {
			inv.spare = append(inv.spare, f)
		}
	}
	for _, c := range containers {
		if l, err := readRunLabel(c.Label); err == nil {
			inv.runs[l.UID] = append(inv.runs[l.UID], c)
		}
	}
	return inv
}

// runDirectory makes the run directory, a tmpfs of its own: what is in it must not outlive a reboot, also where /run
// does, and nothing in it should wait for a disk.
func runDirectory(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if isMountPoint(dir) {
		return nil
	}
	if err := unix.Mount("spillway", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=700"); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

// shareMount makes a directory a shared mount of its own: what is mounted below it later is then seen by the inits
// that were parked before.
func shareMount(dir string) error {
	if !isMountPoint(dir) {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share %s: %w", dir, err)
	}
	return nil
}

// isMountPoint asks the kernel, which knows bind mounts of the same file system too.
func isMountPoint(dir string) bool {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &st); err != nil {
		return false
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}
