package controlplane

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

// Settings of the member: a lone one needs no real elections, so ticks are short.
const (
	etcdTick    = 100 // ms
	etcdQuota   = 8 << 30
	etcdTimeout = 30 * time.Second
)

// member is the etcd of this process; its sockets are in a directory that only this user can enter.
type member struct {
	etcd     *embed.Etcd
	endpoint string
}

func startEtcd(ctx context.Context, dir string) (*member, error) {
	sockets := filepath.Join(dir, "sockets")
	if err := errors.Join(os.RemoveAll(sockets), os.MkdirAll(sockets, 0o700)); err != nil {
		return nil, err
	}
	c := embed.NewConfig()
	c.Name, c.Dir, c.LogLevel = "kubernetes", filepath.Join(dir, "data"), "error"
	client := url.URL{Scheme: "unix", Path: filepath.Join(sockets, "client")}
	c.ListenClientUrls, c.ListenPeerUrls = []url.URL{client}, []url.URL{{Scheme: "unix", Path: filepath.Join(sockets, "peer")}}
	// What is advertised is part of the member's record and must stay the same; nobody dials it.
	c.AdvertiseClientUrls, c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "localhost:2379"}}, []url.URL{{Scheme: "http", Host: "localhost:2380"}}
	c.InitialCluster = c.Name + "=http://localhost:2380"
	c.TickMs, c.ElectionMs, c.QuotaBackendBytes = etcdTick, etcdTick*5, etcdQuota
	c.AutoCompactionMode, c.AutoCompactionRetention = "periodic", "5m"
	e, err := embed.StartEtcd(c)
	if err != nil {
		return nil, fmt.Errorf("start etcd on %s: %w", dir, err)
	}
	select {
	case <-e.Server.ReadyNotify():
		return &member{e, client.String()}, nil
	case err = <-e.Err():
	case <-ctx.Done():
		err = ctx.Err()
	case <-time.After(etcdTimeout):
		err = fmt.Errorf("not ready after %s", etcdTimeout)
	}
	e.Close()
	return nil, fmt.Errorf("start etcd on %s: %w", dir, err)
}
