package test

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

// harm is one kind of fault: it is done, and undone.
type harm struct {
	name string
	do   func(*chaos) (undo func() error, err error)
}

func nothing() error { return nil }

func (c *chaos) host() *fleetHost { return c.hosts[c.rng.IntN(len(c.hosts))] }

// server is any server, or the one that leads.
func (c *chaos) server(leads bool) string {
	if leads {
		return c.leader()
	}
	names := slices.Sorted(maps.Keys(c.running))
	return names[c.rng.IntN(len(names))]
}

// control are the machines of servers.
func (c *chaos) control() []*machine {
	return slices.Collect(maps.Values(c.on))
}

// others are the machines of all hosts but one.
func (c *chaos) others(h *fleetHost) (out []*machine) {
	for _, o := range c.hosts {
		if o != h {
			out = append(out, o.on)
		}
	}
	return out
}

// faults are all kinds.
var faults = []harm{
	{"an agent is killed", func(c *chaos) (func() error, error) {
		h := c.host()
		if h.down {
			return nothing, nil
		}
		h.signal(syscall.SIGKILL)
		h.down = true
		return func() error { h.down = false; h.start(); return nil }, nil
	}},
	{"a keeper is killed", func(c *chaos) (func() error, error) {
		h := c.host()
		id, _, err := instanceOf(h.dir)
		if pid := (&process{id: id}).keeperPid(); err == nil && pid > 0 {
			err = syscall.Kill(pid, syscall.SIGKILL)
		}
		return nothing, err
	}},
	{"an agent is stopped for a while", func(c *chaos) (func() error, error) {
		h := c.host()
		if h.down {
			return nothing, nil
		}
		return func() error { return h.cmd.Process.Signal(syscall.SIGCONT) }, h.cmd.Process.Signal(syscall.SIGSTOP)
	}},
	{"the leader is killed", func(c *chaos) (func() error, error) { return c.killServer(true), nil }},
	{"a server is killed", func(c *chaos) (func() error, error) { return c.killServer(false), nil }},
	{"the leader is stopped for a while", func(c *chaos) (func() error, error) {
		if len(c.running) < len(c.on) {
			return nothing, nil
		}
		name := c.server(true)
		r := c.running[name]
		if err := r.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			return nothing, err
		}
		delete(c.running, name) // nobody asks it meanwhile
		return func() error {
			c.running[name] = r
			return r.cmd.Process.Signal(syscall.SIGCONT)
		}, nil
	}},
	{"a host is cut off from all servers", func(c *chaos) (func() error, error) { return c.cut(c.host(), c.control(), true, true) }},
	{"a host does not reach the servers, they reach it", func(c *chaos) (func() error, error) { return c.cut(c.host(), c.control(), true, false) }},
	{"the servers do not reach a host, it reaches them", func(c *chaos) (func() error, error) { return c.cut(c.host(), c.control(), false, true) }},
	{"a host is cut off from the other hosts", func(c *chaos) (func() error, error) {
		h := c.host()
		return c.cut(h, c.others(h), true, true)
	}},
	{"a host loses a fifth of its packets", func(c *chaos) (func() error, error) {
		h := c.host()
		return func() error { return h.on.lossy(0) }, h.on.lossy(20)
	}},
	{"a host's clock jumps", func(c *chaos) (func() error, error) { return c.jump(c.host().clock()) }},
	{"the leader's clock jumps", func(c *chaos) (func() error, error) { return c.jump(c.clock(c.server(true))) }},
	{"the store is slow", func(c *chaos) (func() error, error) {
		stop := make(chan struct{})
		done := make(chan error)
		go func() { // it writes nothing for most of the time
			var err error
			for more := true; more && err == nil; {
				err = errors.Join(c.store.Signal(syscall.SIGSTOP), sleepThen(150*time.Millisecond), c.store.Signal(syscall.SIGCONT))
				select {
				case <-stop:
					more = false
				case <-time.After(50 * time.Millisecond):
				}
			}
			done <- err
		}()
		return func() error { close(stop); return <-done }, nil
	}},
	{"a host's disk is full", func(c *chaos) (func() error, error) {
		path := filepath.Join(c.hosts[0].dir, "ballast")
		if _, err := os.Stat(path); err == nil {
			return nothing, nil
		}
		if err := fill(path, smallDisk<<20); err == nil {
			return nothing, errors.New("the small disk never became full")
		}
		return func() error { return os.Remove(path) }, nil
	}},
}

// jump lets a clock jump by up to a day in either direction, and back.
func (c *chaos) jump(clock string) (func() error, error) {
	by := time.Duration(c.rng.Int64N(int64(48*time.Hour))) - 24*time.Hour
	return func() error { return os.RemoveAll(clock) }, os.WriteFile(clock, []byte(by.String()), 0o600)
}

func sleepThen(d time.Duration) error { time.Sleep(d); return nil }

// killServer kills a server while there are two more.
func (c *chaos) killServer(leads bool) func() error {
	if len(c.running) < len(c.on) {
		return nothing
	}
	name := c.server(leads)
	c.kill(name)
	return func() error { c.start(name); return nil }
}

// cut lets everything be lost that a host sends to some machines, or that they send to it, or both.
func (c *chaos) cut(h *fleetHost, from []*machine, out, in bool) (func() error, error) {
	change := func(change func(m *machine, to ...*machine) error) error {
		var errs []error
		if out {
			errs = append(errs, change(h.on, from...))
		}
		if in {
			for _, m := range from {
				errs = append(errs, change(m, h.on))
			}
		}
		return errors.Join(errs...)
	}
	return func() error { return change((*machine).find) }, change((*machine).lose)
}
