// Package embedded runs one etcd member inside this process, under a data directory.
//
// It opens no port: its listeners are unix sockets in the data directory, and the client of this process calls the
// member directly. Start at Start.
package embedded

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/types"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Settings of the member. A lone member needs no real elections, so ticks are short (the start waits for one to five
// of them) but not so short that an idle platform burns processor time.
const (
	tick          = 150      // ms
	electionTicks = 5        // etcd's least
	quota         = 4 << 30  // bytes of the database
	maxRequest    = 16 << 20 // bytes: a body of 4 MB grows in the record
	maxOps        = 1024     // of one commit
	snapshots     = 5_000    // commits between snapshots: memory against write load
	retention     = "10m"    // history that a watch can resume from
	startTimeout  = 30 * time.Second
	cluster       = "spillway"
)

// Member is a running member.
type Member struct {
	etcd   *embed.Etcd
	client *clientv3.Client
	socket string // directory of the sockets
}

// Start runs a member on dir and returns when it can commit.
func Start(ctx context.Context, dir string) (*Member, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make store directory: %w", err)
	}
	sockets, err := socketDir(dir)
	if err != nil {
		return nil, err
	}
	e, err := embed.StartEtcd(config(dir, sockets))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start etcd on %s: %w", dir, err), os.RemoveAll(sockets))
	}
	m := &Member{etcd: e, socket: sockets}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		return nil, errors.Join(fmt.Errorf("start etcd on %s: %w", dir, err), m.Close())
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("start etcd on %s: %w", dir, ctx.Err()), m.Close())
	}
	reserve(filepath.Join(dir, "etcd", "member", "snap", "db"))
	m.client = v3client.New(e.Server)
	return m, nil
}

// reserved is room on disk beyond the database's size, in bytes, that belongs to it before it is needed.
const reserved = 64 << 20

// reserve allocates the blocks that the database grows into. A member that cannot write ends its process, so a tenant
// who fills the disk must not be able to take them; the log's segments are allocated ahead by etcd itself. A file
// system that cannot do it, or is full already, goes without.
func reserve(path string) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil {
		_ = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, info.Size()+reserved)
	}
}

// socketDir makes an empty directory for the sockets that only this user can enter. A unix socket's path has at most
// 107 bytes and a data directory may have more: then they live under a short name, always the same for one data
// directory, so that a killed process leaves nothing that its successor does not take over.
func socketDir(dir string) (string, error) {
	const longest = 90
	sockets := filepath.Join(dir, "sockets")
	if len(sockets) > longest {
		sum := sha256.Sum256([]byte(dir))
		sockets = filepath.Join(os.TempDir(), "spillway-"+hex.EncodeToString(sum[:8]))
	}
	if err := errors.Join(os.RemoveAll(sockets), os.Mkdir(sockets, 0o700)); err != nil {
		return "", fmt.Errorf("make socket directory: %w", err)
	}
	return sockets, nil
}

func config(dir, sockets string) *embed.Config {
	c := embed.NewConfig()
	c.Name = cluster
	c.Dir = filepath.Join(dir, "etcd")
	peer := url.URL{Scheme: "unix", Path: filepath.Join(sockets, "peer")}
	client := url.URL{Scheme: "unix", Path: filepath.Join(sockets, "client")}
	c.ListenPeerUrls, c.ListenClientUrls = []url.URL{peer}, []url.URL{client}
	// What is advertised is stored in the member's record and must stay the same over restarts; nobody dials it.
	c.AdvertisePeerUrls = types.MustNewURLs([]string{"http://localhost:2380"})
	c.AdvertiseClientUrls = types.MustNewURLs([]string{"http://localhost:2379"})
	c.InitialCluster = cluster + "=http://localhost:2380"
	c.TickMs, c.ElectionMs = tick, tick*electionTicks
	c.QuotaBackendBytes = quota
	c.MaxRequestBytes = maxRequest
	c.MaxTxnOps = maxOps
	c.SnapshotCount = snapshots
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, retention
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	c.Logger = "zap"
	return c
}

// Client calls the member without a network.
func (m *Member) Client() *clientv3.Client { return m.client }

// Err tells when the member has failed for good.
func (m *Member) Err() <-chan error { return m.etcd.Err() }

// Close stops the member.
func (m *Member) Close() error {
	var err error
	if m.client != nil {
		err = m.client.Close()
		if errors.Is(err, context.Canceled) { // how an in-process client says goodbye
			err = nil
		}
	}
	m.etcd.Close()
	return errors.Join(err, os.RemoveAll(m.socket))
}
