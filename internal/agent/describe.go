package agent

import (
	"context"
	"fmt"
	"io"
	"math"
	goruntime "runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/image"
	"spillway.dev/spillway/internal/keeper"
)

// reserve is the part of the machine's memory that is kept for the platform and the system: a twentieth, at most 1 GiB.
func reserve(total int64) int64 { return min(total/20, 1<<30) }

func (a *Agent) measureHost() host.Host {
	h := host.Host{Name: a.cfg.Name, Pool: "default", Zone: a.cfg.Zone, Version: a.cfg.Version, CgroupMode: string(a.tree.Mode()),
		Runtime: a.cfg.Runtime, Underlay: a.cfg.Underlay, Spaces: true, Isolation: []group.Isolation{group.IsolationShared}}
	if h.Runtime == "" {
		h.Runtime = "parked"
	}
	own, err := a.cfg.Network.OwnAddresses()
	if err != nil {
		a.cfg.Log.Error("list the machine's addresses", "error", err)
	}
	h.Addresses = own
	if a.cfg.GVisor != "" {
		h.Isolation = append(h.Isolation, group.IsolationGVisor)
	}
	var info unix.Sysinfo_t
	if unix.Sysinfo(&info) == nil {
		total := int64(info.Totalram) * int64(info.Unit)
		h.Capacity = group.Resources{MilliCPU: int64(goruntime.NumCPU()) * 1000, Memory: total - reserve(total)}
	}
	var fs unix.Statfs_t
	if unix.Statfs(a.cfg.DataDir, &fs) == nil {
		total := int64(fs.Blocks) * fs.Bsize
		h.Capacity.EphemeralStorage = total - min(total/fullPart, fullBytes)
	}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		h.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	return h
}

// Introduce says where the machine stands, before the first Describe.
func (a *Agent) Introduce(pool, zone, faultDomain string, labels map[string]string) {
	if pool != "" {
		a.describe.Pool = pool
	}
	a.describe.Zone, a.describe.FaultDomain, a.describe.Labels = zone, faultDomain, labels
}

// Describe implements host.Link.
func (a *Agent) Describe() host.Host {
	h := a.describe
	h.DiskFull, h.Overlay = a.diskFull.Load(), a.span.done.Load()
	return h
}

// PoolCounts are the starts that found a parked slot and those that did not.
func (a *Agent) PoolCounts() (hits, misses int64) { return a.pool.hits.Load(), a.pool.misses.Load() }

// Joins counts the netlink changes made on the start path.
func (a *Agent) Joins() int64 { return a.joins.Load() }

// KeeperCounters are what starts have cost since the keeper began.
func (a *Agent) KeeperCounters(ctx context.Context) (keeper.Counters, error) {
	return a.keeper.Load().Counters(ctx)
}

// Disk: below full new groups are refused, below tight unused images are collected, in parts of the whole and at most
// in bytes.
const (
	diskEvery  = time.Second
	usageEvery = 10 // measurements of the disk between two of the groups' files
	fullPart   = 20 // a twentieth
	tightPart  = 10 // a tenth
	fullBytes  = 1 << 30
	tightBytes = 10 << 30
)

// watchDisk measures the data directory's file system and the groups' volumes now and then.
func (a *Agent) watchDisk(ctx context.Context) {
	tick := time.NewTicker(diskEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		free, total := a.measureDisk()
		if n%usageEvery == 0 {
			a.collect(ctx, free, total)
			a.measureGroups(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (a *Agent) measureDisk() (free, total int64) {
	var fs unix.Statfs_t
	if err := unix.Statfs(a.cfg.DataDir, &fs); err != nil {
		return math.MaxInt64, 0
	}
	free, total = int64(fs.Bavail)*fs.Bsize, int64(fs.Blocks)*fs.Bsize
	full := free < min(total/fullPart, fullBytes)
	if full != a.diskFull.Swap(full) {
		a.cfg.Log.Warn("disk", "full", full, "freeBytes", free)
	}
	return free, total
}

// collect removes unused images when room is short.
func (a *Agent) collect(ctx context.Context, free, total int64) {
	if tight := min(total/tightPart, tightBytes); free < tight && a.usersKnown() {
		removed, err := a.cfg.Images.Collect(ctx, image.CollectOptions{Free: tight, InUse: func(digest string) bool { return a.imageUsers()[digest] > 0 }})
		if err != nil || len(removed) > 0 {
			a.cfg.Log.Info("images collected", "removed", removed, "error", err)
		}
	}
}

func (a *Agent) measureGroups(ctx context.Context) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, w := range a.workers {
		w.post(func() { w.measure(ctx) })
	}
}

// measure looks whether a group's files on disk are within their limits; a group that is over is stopped for good.
func (w *worker) measure(ctx context.Context) {
	if w.m.Slot == nil || w.m.Outcome != "" || !w.limited() {
		return
	}
	dir, spec, uid := w.a.path("volumes", w.m.UID), w.g.Spec, w.m.UID
	w.a.wg.Go(func() {
		over, err := w.a.overLimit(ctx, uid, dir, &spec)
		if err == nil && over != "" {
			w.post(func() { w.m.Evict(over, time.Now()) })
		}
	})
}

func (w *worker) limited() bool {
	for _, v := range w.g.Spec.Volumes {
		if v.EmptyDir != nil && v.EmptyDir.SizeLimit > 0 && !v.EmptyDir.Memory {
			return true
		}
	}
	return w.g.Spec.EphemeralStorage > 0
}

// usersKnown says whether every group has told what it uses: not yet after our start, when images in use would look
// unused.
func (a *Agent) usersKnown() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for uid := range a.workers {
		if _, ok := a.statuses[uid]; !ok {
			return false
		}
	}
	return a.retained
}

// imageUsers counts the groups that use each image digest.
func (a *Agent) imageUsers() map[string]int {
	users := map[string]int{}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.statuses {
		for _, c := range s.All() {
			if _, digest, ok := strings.Cut(c.Image, "@"); ok && (!s.State.Ended() || c.Current.State == group.Started) {
				users[digest]++
			}
		}
	}
	return users
}

// Images implements host.Images.
func (a *Agent) Images(context.Context) ([]host.Image, error) {
	users := a.imageUsers()
	var list []host.Image
	for _, img := range a.cfg.Images.Images() {
		list = append(list, describeImage(img, users))
	}
	return list, nil
}

func describeImage(img image.Image, users map[string]int) host.Image {
	return host.Image{Ref: img.Ref, Digest: img.Digest, Size: img.Size, Created: img.Created, InUse: users[img.Digest]}
}

// PullImage implements host.Images.
func (a *Agent) PullImage(ctx context.Context, ref string, creds []group.RegistryCredential, progress func(host.Progress)) (host.Image, error) {
	img, err := a.cfg.Images.Pull(ctx, image.Request{Ref: ref, Credentials: creds, Progress: progress})
	return describeImage(img, nil), err
}

// ImportImage implements host.Images.
func (a *Agent) ImportImage(ctx context.Context, r io.Reader) ([]host.Image, error) {
	imgs, err := a.cfg.Images.Import(ctx, r)
	var list []host.Image
	for _, img := range imgs {
		list = append(list, describeImage(img, nil))
	}
	return list, err
}

// RemoveImage implements host.Images.
func (a *Agent) RemoveImage(ctx context.Context, ref string) error {
	img, ok := a.cfg.Images.Get(ref)
	if !ok {
		return fault.New(fault.NotFound, "ResourceNotFound", "The image '%s' is not on this host.", ref)
	}
	if !a.usersKnown() {
		return fault.New(fault.Unavailable, "", "The image '%s' cannot be removed yet: the host is still taking stock of its container groups. Try again in a moment.", ref)
	}
	if n := a.imageUsers()[img.Digest]; n > 0 {
		return fault.New(fault.Conflict, "ImageInUse", "The image '%s' is used by %d container groups; delete or stop them first.", ref, n)
	}
	return a.cfg.Images.Remove(ctx, ref)
}

// unmountRun lets go of a root that an OCI runtime's container had mounted.
func unmountRun(dir string) error {
	err := unix.Unmount(dir+"/rootfs", unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err == nil || err == unix.EINVAL || err == unix.ENOENT || err == unix.ENOTDIR {
		return nil
	}
	return fmt.Errorf("unmount %s: %w", dir, err)
}
