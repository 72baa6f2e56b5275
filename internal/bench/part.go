package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// PartCommand is the hidden command under which this program plays a part in its own benchmarks: see ServeEtcd and Spin.
const PartCommand = "benchpart"

// ServeEtcd is one member of etcd, as its own defaults have it, that answers at a URL (http or unix) until ctx ends. It says
// "ready" when it does.
func ServeEtcd(ctx context.Context, dir, at string, out io.Writer) error {
	listen, err := url.Parse(at)
	if err != nil {
		return fmt.Errorf("listen at %q: %w", at, err)
	}
	cfg := embed.NewConfig()
	cfg.Dir = dir
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	cfg.QuotaBackendBytes = 8 << 30
	peer := url.URL{Scheme: "http", Host: net.JoinHostPort("127.0.0.1", "0")} // nobody dials it
	cfg.ListenClientUrls, cfg.ListenPeerUrls = []url.URL{*listen}, []url.URL{peer}
	cfg.AdvertiseClientUrls = []url.URL{{Scheme: "http", Host: "127.0.0.1:0"}}
	if listen.Scheme != "unix" {
		cfg.AdvertiseClientUrls = cfg.ListenClientUrls
	}
	cfg.AdvertisePeerUrls = cfg.ListenPeerUrls
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	e, err := embed.StartEtcd(cfg)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer e.Close()
	select {
	case <-e.Server.ReadyNotify():
	case err := <-e.Err():
		return fmt.Errorf("start etcd: %w", err)
	case <-ctx.Done():
		return nil
	}
	fmt.Fprintln(out, "ready")
	select {
	case err := <-e.Err():
		if ctx.Err() == nil {
			return errors.Join(errors.New("etcd has ended"), err)
		}
	case <-ctx.Done():
	}
	return nil
}

// Spin uses up a processor until ctx ends.
func Spin(ctx context.Context) {
	for ctx.Err() == nil {
		for range 1 << 20 { // long enough that asking costs nothing
			spun++
		}
	}
}

var spun uint64 // so that the loop is not empty
