package controller

import (
	"context"
	"sync"
)

// queue is a set of names with a bell: adding never blocks, and a name that waits is kept once.
type queue struct {
	mu    sync.Mutex
	names map[string]bool
	bell  chan struct{}
}

func newQueue() *queue { return &queue{names: map[string]bool{}, bell: make(chan struct{}, 1)} }

func (q *queue) add(name string) {
	q.mu.Lock()
	q.names[name] = true
	q.mu.Unlock()
	select {
	case q.bell <- struct{}{}:
	default:
	}
}

// wait returns when something was added, false when ctx ended.
func (q *queue) wait(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-q.bell:
		return true
	}
}

// take empties the queue, at most limit names of it.
func (q *queue) take(limit int) []string {
	q.mu.Lock()
	defer q.mu.Unlock()
	var out []string
	for n := range q.names {
		if len(out) == limit {
			break
		}
		out = append(out, n)
		delete(q.names, n)
	}
	return out
}
