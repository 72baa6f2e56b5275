// Package httpapi is the HTTP surface of the platform: the Azure Container Instances API, the few neighbours that
// Azure's clients need, and Spillway's own additions.
//
// It translates and checks; it decides nothing and remembers nothing but tickets of streams. It must answer every input
// with a status below 500 unless the platform itself is broken. Start reading at routes.go, the whole surface.
package httpapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/identity"
)

// Limits of the server.
const (
	requestTimeout = 90 * time.Second // of a call that is no stream
	bodyTimeout    = 30 * time.Second // to send a body
	headerTimeout  = 10 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeader      = 64 << 10
	maxStreams     = 4096 // watches, logs, execs and attaches at once
)

// Config is what the API needs.
type Config struct {
	Controller *controller.Controller
	Identity   *identity.Service
	Log        *slog.Logger
	Version    string           // of the program
	Allow      group.Allowance  // what of hosts the administrator gives to groups
	Fleet      *Fleet           // nil: no host can join
	Metrics    http.Handler     // nil: none
	Now        func() time.Time // nil: time.Now
	Rate       Rate             // zero: DefaultRate
	Stopping   <-chan struct{}  // closed when the server stops: streams end; nil: never
}

type api struct {
	Config
	root    *node
	buckets *buckets
	tickets *tickets
	streams atomic.Int64
}

// New makes the handler of the whole API.
func New(cfg Config) http.Handler {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Rate == (Rate{}) {
		cfg.Rate = DefaultRate
	}
	return &api{Config: cfg, root: build(routes()), buckets: newBuckets(cfg.Rate), tickets: newTickets(cfg.Now)}
}

// Server wraps the handler in a server that slow clients cannot hold up. TLS is the caller's.
func Server(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: connectionStreams, MaxReceiveBufferPerStream: streamBuffer, MaxReceiveBufferPerConnection: connectionStreams * streamBuffer},
	}
}

// Bounds of one HTTP/2 connection. The connection holds as much as all of its streams together: a body that is read
// slowly, an image that is imported say, must not keep the bodies of other requests from arriving.
const (
	connectionStreams = 128
	streamBuffer      = 256 << 10 // bytes
)

// call is one request on its way.
type call struct {
	w         http.ResponseWriter
	r         *http.Request
	route     *route
	params    map[string]string
	version   arm.Version
	principal identity.Principal
	id        string // request id
}

// correlation is what a client may send as its own correlation id.
var correlation = regexp.MustCompile(`^[0-9a-zA-Z-]{1,64}$`)

// ServeHTTP implements http.Handler.
func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{w: w, r: r, id: requestID()}
	h := w.Header()
	h.Set("X-Ms-Request-Id", c.id)
	h.Set("X-Ms-Correlation-Request-Id", c.id)
	if own := r.Header.Get("X-Ms-Correlation-Request-Id"); correlation.MatchString(own) {
		h.Set("X-Ms-Correlation-Request-Id", own)
	}
	h.Set("Cache-Control", "no-cache")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Strict-Transport-Security", "max-age=31536000; includeSubDomains")
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler { //nolint:errorlint // a sentinel that is panicked with
				panic(p)
			}
			a.Log.Error("request broke an invariant", "request", c.id, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			a.fail(c, errors.New("broken invariant"))
		}
	}()
	if err := a.serve(c); err != nil {
		a.fail(c, err)
	}
}

// serve checks a call step by step and hands it to its route.
func (a *api) serve(c *call) error {
	route, params, allow, err := a.root.match(c.r.Method, c.r.URL.EscapedPath())
	if allow != "" {
		c.w.Header().Set("Allow", allow)
	}
	if err != nil {
		return err
	}
	c.route, c.params = route, params
	if err := a.admit(c); err != nil {
		return err
	}
	if route.flags&streaming != 0 {
		ctx, cancel := context.WithCancel(c.r.Context())
		defer cancel()
		go func() {
			select {
			case <-a.Stopping:
				cancel()
			case <-ctx.Done():
			}
		}()
		c.r = c.r.WithContext(ctx)
	} else {
		ctx, cancel := context.WithTimeout(c.r.Context(), requestTimeout)
		defer cancel()
		if c.r.Method != http.MethodGet && c.r.Method != http.MethodHead {
			// What was begun is brought to its end, also when the caller hangs up.
			ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
			defer cancel()
		}
		c.r = c.r.WithContext(ctx)
	}
	return route.handle(a, c)
}

// admit checks who calls, whether that is allowed and not too often, and the api-version.
func (a *api) admit(c *call) error {
	if c.route.flags&public == 0 {
		principal, err := a.Identity.Authenticate(bearer(c.r))
		if err != nil {
			c.w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer authorization_uri="https://%s/%s", error="invalid_token"`, c.r.Host, a.Identity.Tenant().ID))
			return err
		}
		c.principal = principal
		if err := a.limit(c); err != nil {
			return err
		}
		if err := a.authorize(c); err != nil {
			return err
		}
	}
	return c.checkVersion()
}

func bearer(r *http.Request) string {
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(token)
}

// authorize checks the action of the route on the scope that the path names.
func (a *api) authorize(c *call) error {
	scope := "/"
	if sub, ok := c.params["subscription"]; ok {
		if !a.knowsSubscription(sub) {
			return fault.New(fault.NotFound, "SubscriptionNotFound", "The subscription '%.80s' could not be found.", sub)
		}
		scope = "/subscriptions/" + sub
		if rg, ok := c.params["resourceGroup"]; ok {
			scope = arm.ResourceGroupID(sub, rg)
		}
		if _, ok := c.params["group"]; ok {
			scope = arm.ID(c.ref())
		}
		if _, ok := c.params["address"]; ok {
			scope = arm.AddressID(c.addressRef())
		}
		if _, ok := c.params["network"]; ok {
			scope = arm.NetworkID(c.networkRef())
		}
	}
	if c.route.action == "" {
		return nil
	}
	return a.Identity.Authorize(c.principal, c.route.action, scope)
}

func (a *api) knowsSubscription(id string) bool {
	for _, s := range a.Identity.Tenant().Subscriptions {
		if strings.EqualFold(s.ID, id) {
			return true
		}
	}
	return false
}

// anyDate is the shape of an api-version.
var anyDate = regexp.MustCompile(`^\d{4}-\d{2}-\d{2}(-[a-z]+)?$`)

func (c *call) checkVersion() error {
	name := c.query("api-version")
	var err error
	switch c.route.version {
	case groupVersion:
		c.version, err = arm.ParseVersion(name)
	case ownVersion:
		if c.version, err = arm.ParseVersion(name); err == nil && !c.version.Superset {
			err = fault.New(fault.Invalid, "InvalidApiVersionParameter", "The api-version '%s' does not have this operation. It exists in api-version %s.", c.version.Name, arm.Superset)
		}
	case anyVersion:
		if name == "" {
			_, err = arm.ParseVersion(name)
		} else if !anyDate.MatchString(strings.ToLower(name)) {
			err = fault.New(fault.Invalid, "InvalidApiVersionParameter", "The api-version '%.40s' is invalid. The supported versions are dates such as '2021-04-01'.", name)
		}
	}
	return err
}

// query is a query parameter; names of parameters do not mind case.
func (c *call) query(name string) string {
	values := c.r.URL.Query()
	if v, ok := values[name]; ok && len(v) > 0 {
		return v[0]
	}
	for k, v := range values {
		if strings.EqualFold(k, name) && len(v) > 0 {
			return v[0]
		}
	}
	return ""
}

// ref is the group that the path names.
func (c *call) ref() group.Ref {
	return group.Ref{Subscription: c.params["subscription"], ResourceGroup: c.params["resourceGroup"], Name: c.params["group"]}
}

// base is the address by which the caller reached the platform.
func (c *call) base() string { return "https://" + c.r.Host }

func requestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}
