package test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/host"
)

// TestRollingRestart restarts one server after the other while callers write and read. A caller goes to another server when
// nothing listens where it asks, as behind a load balancer; everything else has to be answered.
func TestRollingRestart(t *testing.T) {
	t.Parallel()
	s := startServers(t)
	joinHost(t, s.machine("h1"), s.running["a"].endpoint, token(t, s.at("a")))
	awaitHost(t, s.at("b"), "h1", host.Ready)
	names := []string{"a", "b", "c"}
	clients := map[string]*client.Client{}
	for _, name := range names {
		clients[name] = s.direct(name)
	}
	ctx, stop := context.WithCancel(t.Context())
	var callers sync.WaitGroup
	var answered, elsewhere atomic.Int64
	for caller := range 4 {
		callers.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				at := clients[names[(caller+i)%len(names)]]
				_, err := at.PutResourceGroup(context.Background(), fmt.Sprintf("rolling-%d-%d", caller, i%8), map[string]string{"round": fmt.Sprint(i)})
				switch {
				case err == nil:
					answered.Add(1)
				case errors.Is(err, syscall.ECONNREFUSED) || strings.Contains(err.Error(), "connection refused"):
					elsewhere.Add(1)
				default:
					t.Errorf("caller %d by way of %s: %v", caller, names[(caller+i)%len(names)], err)
				}
			}
		})
	}
	for _, name := range names {
		time.Sleep(500 * time.Millisecond)
		if err := s.running[name].cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		_ = s.running[name].cmd.Wait()
		s.start(name)
	}
	time.Sleep(500 * time.Millisecond)
	stop()
	callers.Wait()
	t.Logf("%d requests answered, %d found nobody and went elsewhere", answered.Load(), elsewhere.Load())
}

// direct is a client of a server that dials it itself, so that it hears when nobody listens.
func (s *servers) direct(name string) *client.Client {
	s.Helper()
	cfg, err := client.LoadConfig(s.admin())
	if err != nil {
		s.Fatal(err)
	}
	cfg.Endpoint = s.running[name].endpoint
	c, err := client.New(*cfg)
	if err != nil {
		s.Fatal(err)
	}
	c.DialWith(s.on[name].dialContext)
	s.Cleanup(c.Close)
	return c
}
