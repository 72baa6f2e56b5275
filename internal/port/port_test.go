package port

import (
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTakeWaitsForAPortInUse(t *testing.T) {
	held, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listen := func() (net.Listener, error) { return net.Listen("tcp", held.Addr().String()) }
	if l, err := Take(t.Context(), 50*time.Millisecond, listen); !errors.Is(err, unix.EADDRINUSE) {
		t.Errorf("a port in use = %v, %v, want in use", l, err)
	}
	time.AfterFunc(50*time.Millisecond, func() { held.Close() })
	l, err := Take(t.Context(), 10*time.Second, listen)
	if err != nil {
		t.Fatalf("a port that is given back = %v, want it", err)
	}
	l.Close()
}

func TestTakePassesOtherErrorsOn(t *testing.T) {
	tries := 0
	_, err := Take(t.Context(), time.Minute, func() (int, error) { tries++; return 0, unix.EACCES })
	if tries != 1 || err != unix.EACCES {
		t.Errorf("%d tries, %v, want one, and the error itself", tries, err)
	}
}
