package hostlink_test

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/hostlink"
)

// TestHostWithAWrongClock: it gets no new groups until its clock is right, and stays connected: what runs goes on.
func TestHostWithAWrongClock(t *testing.T) {
	s := newSite(t)
	var off atomic.Int64
	s.host("h1", func(cfg *hostlink.ClientConfig) {
		cfg.Now = func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
	})
	ready := func() bool { l := s.link("h1"); return l != nil && l.Describe().State == host.Ready }
	link := s.connected("h1")
	link.Retain(nil)
	s.eventually("a ready host", ready)
	for off1, says := range map[time.Duration]string{time.Hour: "1h0m0s", -time.Hour: "-1h0m0s"} {
		off.Store(int64(off1))
		s.eventually("a host that is not ready", func() bool { return link.Describe().State == host.NotReady })
		if why := link.Describe().Reason; !strings.Contains(why, "clock is "+says+" off") {
			t.Errorf("with a clock that is %s off it says %q", off1, why)
		}
		off.Store(int64(20 * time.Second))
		s.eventually("a ready host", ready)
	}
	if s.link("h1") != link || link.Describe().Reason != "" {
		t.Errorf("the host has connected anew, or still says %q", link.Describe().Reason)
	}
}
