package bench

import (
	"context"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

func TestStampAfter(t *testing.T) {
	const log = "2026 nothing\n0000000000000010\n0000000000000020\n"
	for after, want := range map[time.Duration]time.Duration{0: 16, 16: 32} {
		if got, err := stampAfter(log, after); err != nil || got != want {
			t.Errorf("stampAfter(%d) = %d, %v; want %d", after, got, err, want)
		}
	}
	if got, err := stampAfter(log, 32); err == nil {
		t.Errorf("stampAfter(32) = %d, want an error", got)
	}
}

// TestSite talks to a machine from here, until its cable is pulled out.
func TestSite(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	s, err := newSite()
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	near, err := s.machine("near")
	if err != nil {
		t.Fatal(err)
	}
	far, err := s.machine("far")
	if err != nil {
		t.Fatal(err)
	}
	if err := far.do(func() error { return accept(far.addr+echoPort, echo) }); err != nil {
		t.Fatal(err)
	}
	answers := func() error {
		var conn net.Conn
		err := near.do(func() (err error) {
			conn, err = net.DialTimeout("tcp4", far.addr+echoPort, 300*time.Millisecond)
			return err
		})
		if err == nil {
			conn.Close()
		}
		return err
	}
	for _, in := range []bool{true, false, true} {
		if err := far.plug(in); err != nil {
			t.Fatal(err)
		}
		patience := time.Duration(0)
		if in {
			patience = 10 * time.Second // switches take their time with a new cable
		}
		if err := until(t.Context(), patience, answers); (err == nil) != in {
			t.Errorf("a machine whose cable is in (%t) answers another: %v", in, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	at, err := far.reach(ctx, echoPort[1:])
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp4", at)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 1)
	if _, err := io.ReadFull(conn, got); err != nil || got[0] != 'x' {
		t.Errorf("the relay gave back %q, %v", got, err)
	}
}
