package platform

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/httpapi"
	"spillway.dev/spillway/internal/identity"
	"spillway.dev/spillway/internal/store"
)

// serverPlace is where a server is, as it tells the others when it leads.
type serverPlace struct {
	ID    string `json:"id"` // one per process
	API   string `json:"api"`
	Hosts string `json:"hosts"`
}

// leaderPatience is how long a request waits for somebody to lead.
const leaderPatience = 10 * time.Second

// electorate knows who leads.
type electorate struct {
	self  serverPlace
	ask   func(ctx context.Context) (string, error) // etcd's word
	mu    sync.Mutex                                // guards what follows
	known serverPlace
	until time.Time
	fresh time.Duration // how long an answer is used again
	log   *slog.Logger
}

// How long an answer is used again: when nobody tells of changes, and when somebody does, who may have fallen silent. A wrong
// one costs one attempt.
const (
	leaderFresh = 200 * time.Millisecond
	leaderTold  = 10 * time.Second
)

// follow forgets who leads whenever etcd tells that it may be another.
func (e *electorate) follow(ctx context.Context, watch func(ctx context.Context, changed func()) error) error {
	for {
		err := watch(ctx, func() { e.forgetFor(leaderTold) })
		e.forgetFor(leaderFresh)
		if ctx.Err() != nil {
			return nil
		}
		e.log.Debug("who leads is asked more often", "error", err)
		pause(ctx, time.Second)
	}
}

// forgetFor forgets who leads, and notes how long the next answer is used again.
func (e *electorate) forgetFor(fresh time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.fresh, e.until = fresh, time.Time{}
}

// leader is the server that leads; ok is false when nobody does, or only a former life of this one.
func (e *electorate) leader(ctx context.Context) (serverPlace, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if time.Now().Before(e.until) {
		return e.known, e.known.ID != ""
	}
	text, err := e.ask(ctx)
	e.known = serverPlace{}
	if err == nil {
		err = json.Unmarshal([]byte(text), &e.known)
	}
	if err != nil && !errors.Is(err, store.ErrNotFound) && ctx.Err() == nil {
		e.log.Warn("ask who leads", "error", err)
	}
	if e.known.ID == e.self.ID {
		e.known = serverPlace{}
	}
	if e.known.ID != "" {
		e.until = time.Now().Add(e.fresh)
	}
	return e.known, e.known.ID != ""
}

// forget makes the next question a real one.
func (e *electorate) forget() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.until = time.Time{}
}

// follower passes requests on to the server that leads. It remembers nothing: any server answers any request.
type follower struct {
	*electorate
	transport http.RoundTripper
	// led gives this server's own API while it leads.
	led func() http.Handler
}

func newFollower(e *electorate, authority *identity.Authority, led func() http.Handler) *follower {
	return &follower{electorate: e, led: led, transport: &http.Transport{ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute,
		DialContext:     (&net.Dialer{Timeout: time.Second}).DialContext,
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: authority.Pool()}}}
}

// retryPause is the time between two looks for a leader.
const retryPause = 50 * time.Millisecond

// ServeHTTP implements http.Handler.
func (f *follower) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := f.led(); h != nil && r.Method == http.MethodGet {
		h.ServeHTTP(w, r)
		return
	}
	body, whole, err := keepBody(r)
	if err != nil {
		http.Error(w, "the body could not be read", http.StatusBadRequest)
		return
	}
	for deadline := time.Now().Add(leaderPatience); ; {
		if h := f.led(); h != nil && lead(h, w, withBody(r, body, whole), whole) {
			return
		}
		if to, ok := f.leader(r.Context()); ok && f.pass(w, withBody(r, body, whole), to) {
			return
		}
		f.forget()
		if r.Context().Err() != nil || time.Now().After(deadline) || !whole {
			w.Header().Set("Retry-After", "1")
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = io.WriteString(w, `{"error":{"code":"ServiceUnavailable","message":"No server leads at the moment. Try again."}}`)
			return
		}
		pause(r.Context(), retryPause)
	}
}

// lead answers a request as the server that leads. It is false when another leads by now, nothing was written, and nothing
// answered: the request may go there.
func lead(h http.Handler, w http.ResponseWriter, r *http.Request, whole bool) bool {
	if !whole {
		h.ServeHTTP(w, r)
		return true
	}
	a := &answer{ResponseWriter: w}
	h.ServeHTTP(a, r)
	return !a.fenced
}

// answer holds back that another server leads.
type answer struct {
	http.ResponseWriter
	begun, fenced bool
}

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	if !a.begun && a.Header().Get(httpapi.ErrorCodeHeader) == store.CodeFenced {
		a.fenced = true
		clear(a.Header())
		return
	}
	a.begun = true
	a.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (a *answer) Write(body []byte) (int, error) {
	if a.fenced {
		return len(body), nil
	}
	a.begun = true
	return a.ResponseWriter.Write(body)
}

// Unwrap is for streams, which need more than an answer.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

// keepBody holds a body so that the request can be sent twice; whole is false for one that is too large for that.
func keepBody(r *http.Request) (body []byte, whole bool, err error) {
	if r.Body == nil || r.Body == http.NoBody {
		return nil, true, nil
	}
	if r.ContentLength < 0 || r.ContentLength > group.MaxBody {
		return nil, false, nil
	}
	body, err = io.ReadAll(io.LimitReader(r.Body, group.MaxBody))
	return body, true, err
}

func withBody(r *http.Request, body []byte, whole bool) *http.Request {
	if whole {
		r.Body = io.NopCloser(bytes.NewReader(body))
		r.ContentLength = int64(len(body))
	}
	return r
}

// pass sends a request to the leader and its answer to the caller. It is false when nothing was answered and another
// attempt can do no harm.
func (f *follower) pass(w http.ResponseWriter, r *http.Request, to serverPlace) (done bool) {
	target, err := url.Parse(to.API)
	if err != nil {
		return false
	}
	done = true
	proxy := &httputil.ReverseProxy{Transport: f.transport, FlushInterval: -1, ErrorLog: slog.NewLogLogger(f.log.Handler(), slog.LevelDebug),
		Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(target)
			p.Out.Host = p.In.Host // answers name the address that the caller used
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if r.Context().Err() == nil && repeatable(r, err) {
				done = false
				return
			}
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
		}}
	proxy.ServeHTTP(w, r)
	return done
}

// repeatable says whether a request that failed may be sent again: it changes nothing, or changes the same thing to the
// same state, or it never left.
func repeatable(r *http.Request, err error) bool {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return true
	}
	return r.Method != http.MethodPost
}
