package bench

import (
	"fmt"
	"os/exec"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// peerNet is a network namespace for the peers: their bridges and rules stay in there and go with it, instead of
// staying on the machine. It is one thread that lives in the namespace and starts programs from there.
type peerNet struct{ jobs chan func() }

// enclosed is made when the first peer needs it.
var enclosed = sync.OnceValues(newPeerNet)

func newPeerNet() (*peerNet, error) {
	p := &peerNet{jobs: make(chan func())}
	ready := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the program
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = loopbackUp()
		}
		ready <- err
		for f := range p.jobs {
			f()
		}
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("network namespace for peers: %w", err)
	}
	return p, nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// start starts a program in the peers' network.
func (p *peerNet) start(c *exec.Cmd) error {
	done := make(chan error, 1)
	p.jobs <- func() { done <- c.Start() }
	return <-done
}
