package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
)

// maxAnswer bounds an answer that is read whole, in bytes.
const maxAnswer = 64 << 20

// Client talks to one platform as one principal. It is safe for concurrent use.
type Client struct {
	cfg       Config
	tls       *tls.Config
	http      *http.Client
	cachePath string // of the token; "" = not cached

	mu    sync.Mutex // guards token
	token token
}

// New makes a client; it connects at the first call.
func New(cfg Config) (*Client, error) {
	cfg.Endpoint = strings.TrimRight(cfg.Endpoint, "/")
	tlsConfig := &tls.Config{MinVersion: tls.VersionTLS12}
	if cfg.CAFile != "" {
		pem, err := os.ReadFile(cfg.CAFile)
		if err != nil {
			return nil, fault.New(fault.Invalid, "", "The certificate authority file %s cannot be read: %v.", cfg.CAFile, err)
		}
		tlsConfig.RootCAs = x509.NewCertPool()
		if !tlsConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fault.New(fault.Invalid, "", "The certificate authority file %s holds no certificate.", cfg.CAFile)
		}
	}
	transport := &http.Transport{
		TLSClientConfig: tlsConfig, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16, IdleConnTimeout: time.Minute,
		DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
	}
	return &Client{cfg: cfg, tls: tlsConfig, http: &http.Client{Transport: transport}, cachePath: cacheFile(&cfg)}, nil
}

// DialWith has the client connect in another way, as into a network that is not this process's. It is called before the
// first call.
func (c *Client) DialWith(dial func(ctx context.Context, network, addr string) (net.Conn, error)) {
	c.http.Transport.(*http.Transport).DialContext = dial
}

// Config is the configuration that the client was made with.
func (c *Client) Config() Config { return c.cfg }

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// request is one call of the API.
type request struct {
	method string
	path   string     // escaped
	query  url.Values // api-version is added when absent
	body   io.Reader  // nil, or a *bytes.Reader that can be sent again
	kind   string     // content type; default application/json
}

// Call is one call of the API.
type Call struct {
	Method string
	Path   string     // escaped
	Query  url.Values // api-version is added when absent
	Body   any        // JSON; nil: none; []byte and json.RawMessage go out as they are
}

// Do calls the API and reads the answer's JSON into out (nil: what it says does not matter).
func (c *Client) Do(ctx context.Context, call Call, out any) error {
	r := request{method: call.Method, path: call.Path, query: call.Query}
	switch b := call.Body.(type) {
	case nil:
	case []byte:
		r.body = bytes.NewReader(b)
	case json.RawMessage:
		r.body = bytes.NewReader(b)
	default:
		data, err := json.Marshal(call.Body)
		if err != nil {
			return fmt.Errorf("write request body: %w", err)
		}
		r.body = bytes.NewReader(data)
	}
	resp, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	return readJSON(resp, out)
}

func readJSON(resp *http.Response, out any) error {
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	if out == nil || len(data) == 0 {
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("read answer: %w", err)
	}
	return nil
}

// send makes one call and gives an answer with a status below 400; others become *fault.Error. A token that the
// server no longer knows is renewed once.
func (c *Client) send(ctx context.Context, r request) (*http.Response, error) {
	if r.query == nil {
		r.query = url.Values{}
	}
	if r.query.Get("api-version") == "" {
		r.query.Set("api-version", arm.Superset)
	}
	if err := c.checkStream(ctx, r); err != nil {
		return nil, err
	}
	for attempt := 0; ; attempt++ {
		t, err := c.bearer(ctx)
		if err != nil {
			return nil, err
		}
		resp, err := c.once(ctx, r, t)
		if err != nil {
			return nil, err
		}
		if resp.StatusCode == http.StatusUnauthorized && attempt == 0 && r.rewind() {
			_ = resp.Body.Close()
			c.dropToken(t.Access)
			continue
		}
		if resp.StatusCode >= 400 {
			return nil, refusal(resp)
		}
		return resp, nil
	}
}

// rewind makes the body ready to be sent again.
func (r request) rewind() bool {
	if r.body == nil {
		return true
	}
	s, ok := r.body.(io.Seeker)
	if !ok {
		return false
	}
	_, err := s.Seek(0, io.SeekStart)
	return err == nil
}

// checkStream proves a token from the disk before a body is sent that cannot be sent twice.
func (c *Client) checkStream(ctx context.Context, r request) error {
	if _, again := r.body.(io.Seeker); again || r.body == nil {
		return nil
	}
	if t, err := c.bearer(ctx); err != nil || !t.cached {
		return err
	}
	return c.Do(ctx, Call{Method: http.MethodGet, Path: "/subscriptions"}, nil)
}

func (c *Client) once(ctx context.Context, r request, t token) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, r.method, c.cfg.Endpoint+r.path+"?"+r.query.Encode(), r.body)
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Authorization", "Bearer "+t.Access)
	if r.body != nil {
		req.Header.Set("Content-Type", "application/json")
		if r.kind != "" {
			req.Header.Set("Content-Type", r.kind)
		}
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unreachable(err)
	}
	return resp, nil
}

// refusal reads the error of an answer and closes it.
func refusal(resp *http.Response) error {
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return fmt.Errorf("read refusal: %w", err)
	}
	if e := arm.ParseError(resp.StatusCode, body); e != nil {
		return e
	}
	return &fault.Error{Kind: fault.ForStatus(resp.StatusCode), Status: resp.StatusCode, Message: fmt.Sprintf("The platform answered %s.", resp.Status)}
}

// unreachable explains a call that got no answer.
func (c *Client) unreachable(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fault.New(fault.Unavailable, "", "The certificate of %s does not come from the authority in %s. Use the client.json of that platform.", c.cfg.Endpoint, c.cfg.CAFile)
	}
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err
	}
	return fault.New(fault.Unavailable, "", "The platform at %s cannot be reached: %v. Start it with 'spillway up', or name another configuration with --config.", c.cfg.Endpoint, err)
}
