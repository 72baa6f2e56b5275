package image

import (
	"context"
	"sync"

	"spillway.dev/spillway/internal/host"
)

// flights lets callers that want the same thing at the same time share one attempt. The attempt ends early only when
// every caller has gone.
type flights struct {
	mu   sync.Mutex // guards open and the waiters of each flight
	open map[string]*flight
	base context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
}

type flight struct {
	done    chan struct{}
	cancel  context.CancelFunc
	waiters int

	telling   sync.Mutex // guards listeners and next; held while they are told, taken after flights.mu is released
	listeners map[int]func(host.Progress)
	next      int

	image Image // result, valid after done
	err   error
}

func newFlights() *flights {
	f := &flights{open: map[string]*flight{}}
	f.base, f.stop = context.WithCancel(context.Background())
	return f
}

// close ends all attempts and waits for them.
func (f *flights) close() {
	f.stop()
	f.wg.Wait()
}

// do joins the attempt for key, or starts one with run.
func (f *flights) do(ctx context.Context, key string, progress func(host.Progress), run func(context.Context, func(host.Progress)) (Image, error)) (Image, error) {
	f.mu.Lock()
	fl, ok := f.open[key]
	if !ok {
		fl = f.start(ctx, key, run)
	}
	fl.waiters++
	f.mu.Unlock()
	stopListening := fl.listen(progress)
	defer func() {
		stopListening()
		f.mu.Lock()
		defer f.mu.Unlock()
		if fl.waiters--; fl.waiters == 0 {
			fl.cancel()
			if f.open[key] == fl {
				delete(f.open, key) // it is ending: the next caller needs a fresh one
			}
		}
	}()
	select {
	case <-fl.done:
		return fl.image, fl.err
	case <-ctx.Done():
		return Image{}, ctx.Err()
	}
}

func (f *flights) start(ctx context.Context, key string, run func(context.Context, func(host.Progress)) (Image, error)) *flight {
	// Values of the first caller's context (traces) stay, its end does not count.
	runCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	unlink := context.AfterFunc(f.base, cancel)
	fl := &flight{done: make(chan struct{}), cancel: cancel, listeners: map[int]func(host.Progress){}}
	f.open[key] = fl
	f.wg.Add(1)
	go func() {
		defer f.wg.Done()
		defer unlink()
		defer cancel()
		img, err := run(runCtx, fl.tell)
		f.mu.Lock()
		if f.open[key] == fl {
			delete(f.open, key)
		}
		fl.image, fl.err = img, err
		f.mu.Unlock()
		close(fl.done)
	}()
	return fl
}

// listen adds a listener; none is told anything after its stop has returned.
func (fl *flight) listen(progress func(host.Progress)) (stop func()) {
	if progress == nil {
		return func() {}
	}
	fl.telling.Lock()
	defer fl.telling.Unlock()
	id := fl.next
	fl.next++
	fl.listeners[id] = progress
	return func() {
		fl.telling.Lock()
		defer fl.telling.Unlock()
		delete(fl.listeners, id)
	}
}

func (fl *flight) tell(p host.Progress) {
	fl.telling.Lock()
	defer fl.telling.Unlock()
	for _, tell := range fl.listeners {
		tell(p)
	}
}

// keyedLocks is one lock per key, so that a blob or layer that two pulls share is fetched and unpacked once.
type keyedLocks struct {
	mu   sync.Mutex // guards held
	held map[string]*keyedLock
}

type keyedLock struct {
	token chan struct{}
	users int
}

func newKeyedLocks() *keyedLocks { return &keyedLocks{held: map[string]*keyedLock{}} }

// Lock waits for the key or the end of ctx.
func (k *keyedLocks) Lock(ctx context.Context, key string) error {
	k.mu.Lock()
	l, ok := k.held[key]
	if !ok {
		l = &keyedLock{token: make(chan struct{}, 1)}
		k.held[key] = l
	}
	l.users++
	k.mu.Unlock()
	select {
	case l.token <- struct{}{}:
		return nil
	case <-ctx.Done():
		k.leave(key, l)
		return ctx.Err()
	}
}

// Unlock gives the key to the next.
func (k *keyedLocks) Unlock(key string) {
	k.mu.Lock()
	l := k.held[key]
	k.mu.Unlock()
	<-l.token
	k.leave(key, l)
}

func (k *keyedLocks) leave(key string, l *keyedLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.held, key)
	}
}
