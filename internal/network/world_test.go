package network

import "time"

// carries waits until a new link takes packets both ways: what is sent in the moment after it came up is lost, and
// these tests are less patient than TCP.
func (w *world) carries(to string) {
	w.t.Helper()
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		var name string
		if name, _, err = w.who(w.host, "tcp4", to); err == nil && name != "" {
			return
		}
	}
	w.t.Fatalf("no packet comes through to %s: %v", to, err)
}
