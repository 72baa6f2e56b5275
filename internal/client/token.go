package client

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
)

// tokenMargin is how long before its end a token is renewed.
const tokenMargin = 2 * time.Minute

// token is an access token and when it ends.
type token struct {
	Access  string    `json:"access"`
	Expires time.Time `json:"expires"`
	cached  bool      // read from disk: the server may no longer know it
}

func (t token) fresh() bool { return t.Access != "" && time.Until(t.Expires) > tokenMargin }

// bearer gives a token: the one in memory, the one on disk, or a new one.
func (c *Client) bearer(ctx context.Context) (token, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token.fresh() {
		return c.token, nil
	}
	if t := c.readToken(); t.fresh() {
		c.token = t
		return t, nil
	}
	t, err := c.fetchToken(ctx)
	if err != nil {
		return token{}, err
	}
	c.token = t
	c.writeToken(t)
	return t, nil
}

// dropToken forgets a token that the server refused.
func (c *Client) dropToken(refused string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token.Access == refused {
		c.token = token{}
		if c.cachePath != "" {
			_ = os.Remove(c.cachePath) // a token that stays is refused again and fetched anew
		}
	}
}

func (c *Client) fetchToken(ctx context.Context) (token, error) {
	form := url.Values{
		"grant_type": {"client_credentials"}, "client_id": {c.cfg.ClientID}, "client_secret": {c.cfg.ClientSecret},
		"scope": {c.cfg.Endpoint + "/.default"},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.cfg.Endpoint+"/"+c.cfg.TenantID+"/oauth2/v2.0/token", strings.NewReader(form.Encode()))
	if err != nil {
		return token{}, fmt.Errorf("make token request: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := c.http.Do(req)
	if err != nil {
		return token{}, c.unreachable(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return token{}, fmt.Errorf("read token answer: %w", err)
	}
	var answer struct {
		Access      string `json:"access_token"`
		ExpiresIn   int    `json:"expires_in"`
		Description string `json:"error_description"`
	}
	if err := json.Unmarshal(body, &answer); err != nil || answer.Access == "" {
		if e := arm.ParseError(resp.StatusCode, body); e != nil {
			return token{}, e
		}
		return token{}, fault.New(fault.Unauthenticated, "", "The platform at %s gave no token to client %s: %s. Check clientId and clientSecret in the configuration.", c.cfg.Endpoint, c.cfg.ClientID, answer.Description)
	}
	return token{Access: answer.Access, Expires: time.Now().Add(time.Duration(answer.ExpiresIn) * time.Second)}, nil
}

// cacheFile is where the token of this endpoint and client is kept between commands; "" when there is no place.
func cacheFile(cfg *Config) string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	sum := sha256.Sum256([]byte(cfg.Endpoint + "\n" + cfg.TenantID + "\n" + cfg.ClientID + "\n" + cfg.ClientSecret))
	return filepath.Join(dir, "spillway", tokenPrefix+hex.EncodeToString(sum[:12])+".json")
}

const (
	tokenPrefix = "token-"
	tokenLife   = 24 * time.Hour // no token is good for longer
)

// pruneTokens removes the tokens of platforms that are not used any more.
func pruneTokens(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && strings.HasPrefix(e.Name(), tokenPrefix) && time.Since(info.ModTime()) > tokenLife {
			_ = os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

func (c *Client) readToken() token {
	var t token
	if c.cachePath == "" {
		return t
	}
	data, err := os.ReadFile(c.cachePath)
	if err != nil || json.Unmarshal(data, &t) != nil {
		return token{}
	}
	t.cached = true
	return t
}

// writeToken keeps a token for the next command. It may fail: the next command then asks for its own.
func (c *Client) writeToken(t token) {
	if c.cachePath == "" || os.MkdirAll(filepath.Dir(c.cachePath), 0o700) != nil {
		return
	}
	data, err := json.Marshal(t)
	if err != nil {
		return
	}
	f, err := os.CreateTemp(filepath.Dir(c.cachePath), ".token-*") // made with mode 0600
	if err != nil {
		return
	}
	_, err = f.Write(data)
	if cerr := f.Close(); err != nil || cerr != nil || os.Rename(f.Name(), c.cachePath) != nil {
		_ = os.Remove(f.Name())
	}
	pruneTokens(filepath.Dir(c.cachePath))
}
