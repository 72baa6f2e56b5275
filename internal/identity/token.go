package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/store"
)

// Lifetimes of tokens and of the keys that sign them.
const (
	TokenLife = time.Hour
	keyLife   = 30 * 24 * time.Hour    // a newer key signs after it
	keyKept   = keyLife + 2*TokenLife  // an old key still verifies
	leeway    = 30 * time.Second       // between clocks
	cacheSize = 4096                   // verified tokens kept
	maxToken  = 8 << 10                // bytes
	newKey    = keyLife - 24*time.Hour // the next key is made before it is needed
)

// Claims is what a token says.
type Claims struct {
	Subject  string `json:"oid"`   // client id of the principal
	AppID    string `json:"appid"` // the same, where Azure's clients look
	TenantID string `json:"tid"`
	jwt.Claims
}

// signingKey is a stored key.
type signingKey struct {
	ID      string    `json:"id"`
	Created time.Time `json:"created"`
	DER     []byte    `json:"der"`
	private *ecdsa.PrivateKey
}

// tokens signs and verifies tokens of one tenant.
type tokens struct {
	store    store.Store
	tenant   string
	audience string
	now      func() time.Time

	mu    sync.Mutex   // guards the rest
	keys  []signingKey // oldest first
	cache map[[32]byte]Claims
}

// load reads the keys, makes one when there is none young enough, and forgets those whose tokens have all ended.
func (t *tokens) load(ctx context.Context) error {
	page, err := t.store.List(ctx, store.SigningKeys, 0, "")
	if err != nil {
		return fmt.Errorf("read signing keys: %w", err)
	}
	var keys []signingKey
	now := t.now()
	for _, e := range page.Entries {
		var k signingKey
		if err := json.Unmarshal(e.Value, &k); err != nil {
			return fmt.Errorf("read signing key %s: %w", e.Key, err)
		}
		if now.Sub(k.Created) > keyKept {
			if _, err := t.store.Commit(ctx, store.Op{Key: e.Key, Kind: store.Delete, If: e.Revision}); err != nil && !errors.Is(err, store.ErrConflict) {
				return fmt.Errorf("forget signing key: %w", err)
			}
			continue
		}
		if k.private, err = x509.ParseECPrivateKey(k.DER); err != nil {
			return fmt.Errorf("read signing key %s: %w", e.Key, err)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 || now.Sub(keys[len(keys)-1].Created) > newKey {
		k, err := t.makeKey(ctx)
		if err != nil {
			return err
		}
		keys = append(keys, k)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.keys = keys
	return nil
}

func (t *tokens) makeKey(ctx context.Context) (signingKey, error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return signingKey{}, fmt.Errorf("make signing key: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return signingKey{}, fmt.Errorf("make signing key: %w", err)
	}
	created := t.now().UTC()
	// The name sorts by age.
	k := signingKey{ID: created.Format("20060102150405") + "-" + randomHex(4), Created: created, DER: der, private: private}
	value, err := json.Marshal(k)
	if err != nil {
		return signingKey{}, fmt.Errorf("write signing key: %w", err)
	}
	if _, err := t.store.Commit(ctx, store.Op{Key: store.SigningKey(k.ID), Value: value, If: store.Absent}); err != nil {
		return signingKey{}, fmt.Errorf("store signing key: %w", err)
	}
	return k, nil
}

// issue signs a token for a principal.
func (t *tokens) issue(clientID string) (string, time.Duration, error) {
	t.mu.Lock()
	key := t.keys[len(t.keys)-1]
	t.mu.Unlock()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key.private, KeyID: key.ID}}, (&jose.SignerOptions{}).WithType("JWT"))
	if err != nil {
		return "", 0, fmt.Errorf("sign token: %w", err)
	}
	now := t.now()
	claims := Claims{
		Subject: clientID, AppID: clientID, TenantID: t.tenant,
		Claims: jwt.Claims{
			Issuer: t.audience, Audience: jwt.Audience{t.audience}, Subject: clientID, ID: randomHex(16),
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(TokenLife)),
		},
	}
	raw, err := jwt.Signed(signer).Claims(claims).Serialize()
	if err != nil {
		return "", 0, fmt.Errorf("sign token: %w", err)
	}
	return raw, TokenLife, nil
}

// verify checks a token: signature by a known key, issuer, audience and times. A token that was fine once is fine
// until it ends.
func (t *tokens) verify(raw string) (Claims, error) {
	if len(raw) > maxToken {
		return Claims{}, unauthenticated("InvalidAuthenticationToken", "The access token is too long.")
	}
	sum := sha256.Sum256([]byte(raw))
	now := t.now()
	t.mu.Lock()
	c, ok := t.cache[sum]
	keys := t.keys
	t.mu.Unlock()
	if !ok {
		var err error
		if c, err = parse(raw, keys); err != nil {
			return Claims{}, unauthenticated("InvalidAuthenticationToken", "The access token is invalid: "+err.Error()+".")
		}
	}
	expected := jwt.Expected{Issuer: t.audience, AnyAudience: jwt.Audience{t.audience}, Time: now}
	if c.Expiry == nil || c.NotBefore == nil || c.IssuedAt == nil {
		return Claims{}, unauthenticated("InvalidAuthenticationToken", "The access token is invalid: it has no time limits.")
	}
	switch err := c.ValidateWithLeeway(expected, leeway); {
	case errors.Is(err, jwt.ErrExpired):
		return Claims{}, unauthenticated("ExpiredAuthenticationToken", fmt.Sprintf("The access token expired at %s. Get a new one.", c.Expiry.Time().UTC().Format(time.RFC3339)))
	case err != nil:
		return Claims{}, unauthenticated("InvalidAuthenticationToken", "The access token is invalid: "+strings.TrimPrefix(err.Error(), "go-jose/go-jose/jwt: ")+".")
	case c.Expiry.Time().Sub(c.IssuedAt.Time()) > TokenLife || c.TenantID != t.tenant:
		return Claims{}, unauthenticated("InvalidAuthenticationToken", "The access token is invalid: it is not of this tenant, or lives too long.")
	}
	if !ok {
		t.remember(sum, c, now)
	}
	return c, nil
}

// remember keeps a verified token; a full cache first drops what has ended, then anything.
func (t *tokens) remember(sum [32]byte, c Claims, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.cache) >= cacheSize {
		for k, old := range t.cache {
			if now.After(old.Expiry.Time()) {
				delete(t.cache, k)
			}
		}
	}
	for k := range t.cache {
		if len(t.cache) < cacheSize {
			break
		}
		delete(t.cache, k)
	}
	t.cache[sum] = c
}

// parse checks the signature.
func parse(raw string, keys []signingKey) (Claims, error) {
	token, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		return Claims{}, errors.New("it is not a token signed with ES256")
	}
	if len(token.Headers) != 1 {
		return Claims{}, errors.New("it must have one signature")
	}
	for _, k := range keys {
		if k.ID != token.Headers[0].KeyID {
			continue
		}
		var c Claims
		if err := token.Claims(&k.private.PublicKey, &c); err != nil {
			return Claims{}, errors.New("its signature is wrong")
		}
		return c, nil
	}
	return Claims{}, errors.New("its signing key is unknown")
}

func unauthenticated(code, message string) error {
	return fault.New(fault.Unauthenticated, code, "%s", message)
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}
