package keeper

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/sandbox"
)

// ErrGone is a connection to a keeper that has ended: reconnect, and list what is there.
var ErrGone = errors.New("keeper is gone")

// Client is one connection to a keeper. Calls run concurrently; it is safe for use by many goroutines.
type Client struct {
	dir  string
	conn *conn

	mu    sync.Mutex // guards calls and next
	calls map[uint64]chan response
	next  uint64
	gone  chan struct{}
}

// Dial connects to the keeper of a run directory. Exits are sent to onExit, in order, from the first call on; onExit
// must not block for long. When the connection ends, Gone is closed.
func Dial(dir string, onExit func(Container)) (*Client, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: Socket(dir), Net: "unix"})
	if err != nil {
		return nil, err
	}
	k := &Client{dir: dir, conn: &conn{UnixConn: c}, calls: map[uint64]chan response{}, gone: make(chan struct{})}
	go k.read(onExit)
	if _, err := k.call(context.Background(), &request{Watch: &struct{}{}}); err != nil {
		c.Close()
		return nil, err
	}
	return k, nil
}

// Gone is closed when the keeper, or the connection to it, has ended.
func (k *Client) Gone() <-chan struct{} { return k.gone }

// Close ends the connection. Containers and keeper go on.
func (k *Client) Close() error { return k.conn.Close() }

func (k *Client) read(onExit func(Container)) {
	defer close(k.gone)
	for {
		body, err := sandbox.ReadFrame(k.conn)
		if err != nil {
			return
		}
		var r response
		if err := json.Unmarshal(body, &r); err != nil {
			return
		}
		if r.Event != nil {
			onExit(*r.Event)
			continue
		}
		k.mu.Lock()
		c := k.calls[r.ID]
		delete(k.calls, r.ID)
		k.mu.Unlock()
		if c != nil {
			c <- r
		}
	}
}

func (k *Client) call(ctx context.Context, q *request) (response, error) {
	answer := make(chan response, 1)
	k.mu.Lock()
	k.next++
	q.ID = k.next
	k.calls[q.ID] = answer
	k.mu.Unlock()
	if err := k.conn.send(q); err != nil {
		return response{}, fmt.Errorf("%w: %w", ErrGone, err)
	}
	select {
	case r := <-answer:
		if r.Error != nil {
			return r, r.Error
		}
		return r, nil
	case <-k.gone:
		return response{}, ErrGone
	case <-ctx.Done():
		return response{}, ctx.Err()
	}
}

// Counters are what starts have cost.
func (k *Client) Counters(ctx context.Context) (Counters, error) {
	r, err := k.call(ctx, &request{Hello: &struct{}{}})
	if err != nil || r.Counters == nil {
		return Counters{}, err
	}
	return *r.Counters, nil
}

// Version identifies the keeper's program, see ProgramVersion.
func (k *Client) Version(ctx context.Context) (string, error) {
	r, err := k.call(ctx, &request{Hello: &struct{}{}})
	return r.Version, err
}

// Upgrade puts another program in the keeper's place. Containers go on; parked slots and streams end. The connection
// ends with it: nil means that it has.
func (k *Client) Upgrade(ctx context.Context, path string) error {
	_, err := k.call(ctx, &request{Upgrade: &path})
	if errors.Is(err, ErrGone) {
		return nil
	}
	return err
}

// Park makes a slot and gives the pid of its init.
func (k *Client) Park(ctx context.Context, p Park) (int, error) {
	r, err := k.call(ctx, &request{Park: &p})
	return r.Pid, err
}

// SetLabel replaces a slot's label.
func (k *Client) SetLabel(ctx context.Context, slot string, label json.RawMessage) error {
	_, err := k.call(ctx, &request{Label: &Label{slot, label}})
	return err
}

// Unpark gives a slot up. A slot that does not exist is fine; one with running containers is refused.
func (k *Client) Unpark(ctx context.Context, slot string) error {
	_, err := k.call(ctx, &request{Unpark: &slot})
	return err
}

// Dismiss ends a slot's waiting init, so that all its containers get cgroups of their own. One that is not there is
// fine.
func (k *Client) Dismiss(ctx context.Context, slot string) error {
	_, err := k.call(ctx, &request{Dismiss: &slot})
	return err
}

// Start runs a container. It returns when the container's program has been executed. An *Error carries the exit code
// of a program that could not be.
func (k *Client) Start(ctx context.Context, s Start) (Container, error) {
	r, err := k.call(ctx, &request{Start: &s})
	if err != nil {
		return Container{}, err
	}
	return *r.Container, nil
}

// Signal sends a signal to a container's first process; one that has ended is fine.
func (k *Client) Signal(ctx context.Context, id string, number int) error {
	_, err := k.call(ctx, &request{Signal: &Signal{id, number}})
	return err
}

// Lease tells the keeper until when, by Boottime, the host has a lease. An older one than the newest is fine.
func (k *Client) Lease(ctx context.Context, until time.Duration) error {
	_, err := k.call(ctx, &request{Lease: &until})
	return err
}

// Forget drops the record of an ended container; one that does not exist is fine.
func (k *Client) Forget(ctx context.Context, id string) error {
	_, err := k.call(ctx, &request{Forget: &id})
	return err
}

// List gives every slot and every container, ended ones until they are forgotten.
func (k *Client) List(ctx context.Context) ([]Slot, []Container, error) {
	r, err := k.call(ctx, &request{List: &struct{}{}})
	return r.Slots, r.Containers, err
}

// Quit ends the keeper. It is refused while containers run.
func (k *Client) Quit(ctx context.Context) error {
	_, err := k.call(ctx, &request{Quit: &struct{}{}})
	if errors.Is(err, ErrGone) {
		return nil // it was faster than its answer
	}
	return err
}

// Exec runs a command in a container and gives its exit code. When ctx ends the command is killed.
func (k *Client) Exec(ctx context.Context, q ExecRequest, s host.Streams) (int, error) {
	q.Stdin = s.Stdin != nil
	return k.stream(ctx, &request{Exec: &q}, s)
}

// Attach connects to a container's streams until ctx or the container ends.
func (k *Client) Attach(ctx context.Context, id string, s host.Streams) (int, error) {
	return k.stream(ctx, &request{Attach: &AttachRequest{id}}, s)
}

// stream opens a connection of its own and carries the streams over it.
func (k *Client) stream(ctx context.Context, q *request, s host.Streams) (int, error) {
	uc, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: Socket(k.dir), Net: "unix"})
	if err != nil {
		return 0, fmt.Errorf("%w: %w", ErrGone, err)
	}
	c := &conn{UnixConn: uc}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	if err := c.send(q); err != nil {
		return 0, err
	}
	done := make(chan struct{})
	defer close(done)
	if s.Stdin != nil {
		go sendInput(c, s.Stdin)
	}
	go sendSizes(c, s.Resize, done)
	for {
		body, err := sandbox.ReadFrame(c)
		if err != nil {
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			return 0, fmt.Errorf("%w: %w", ErrGone, err)
		}
		if len(body) == 0 {
			continue
		}
		switch body[0] {
		case frameStdout:
			_, err = s.Stdout.Write(body[1:])
		case frameStderr:
			if s.Stderr != nil {
				_, err = s.Stderr.Write(body[1:])
			}
		case frameExit:
			var e exit
			if err := json.Unmarshal(body[1:], &e); err != nil {
				return 0, err
			}
			if e.Error != nil {
				return e.Error.ExitCode, e.Error
			}
			return e.Code, nil
		}
		if err != nil {
			return 0, err
		}
	}
}

func sendInput(c *conn, from io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 && c.frame(frameStdin, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = c.frame(frameEOF, nil)
			return
		}
	}
}

func sendSizes(c *conn, sizes <-chan host.Size, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			var body [4]byte
			binary.BigEndian.PutUint16(body[:2], size.Rows)
			binary.BigEndian.PutUint16(body[2:], size.Cols)
			if c.frame(frameResize, body[:]) != nil {
				return
			}
		}
	}
}
