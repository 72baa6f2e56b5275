package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/store"
	"spillway.dev/spillway/internal/store/mem"
)

// clock is a settable time.
type clock struct{ now time.Time }

func (c *clock) read() time.Time { return c.now }

func open(t testing.TB, s store.Store, c *clock) (*Service, *First) {
	t.Helper()
	svc, first, err := Open(t.Context(), s, slog.New(slog.DiscardHandler), c.read)
	if err != nil {
		t.Fatalf("Open = %v", err)
	}
	return svc, first
}

func TestFirstStartAndNext(t *testing.T) {
	s, c := mem.New(), &clock{time.Now()}
	svc, first := open(t, s, c)
	if first == nil || len(svc.Tenant().Subscriptions) != 1 {
		t.Fatalf("first start gave %+v and %+v", first, svc.Tenant())
	}
	raw, life, err := svc.Token(first.ClientID, first.ClientSecret)
	if err != nil || life > time.Hour {
		t.Fatalf("Token = %v for %v", err, life)
	}
	again, second := open(t, s, c)
	if second != nil || again.Tenant().ID != svc.Tenant().ID {
		t.Errorf("second start made %+v", second)
	}
	p, err := again.Authenticate(raw)
	if err != nil || p.ClientID != first.ClientID {
		t.Errorf("a token of the first start = %v, %v", p, err)
	}
	page, err := s.List(t.Context(), store.Principals, 0, "")
	if err != nil || bytes.Contains(page.Entries[0].Value, []byte(first.ClientSecret)) {
		t.Errorf("the stored principal holds its secret: %s, %v", page.Entries[0].Value, err)
	}
}

func TestWriteClient(t *testing.T) {
	s, c, dir := mem.New(), &clock{time.Now()}, t.TempDir()
	svc, first := open(t, s, c)
	path := filepath.Join(dir, ClientFile)
	write := func(endpoint string, f *First) ClientConfig {
		t.Helper()
		got, err := svc.WriteClient(t.Context(), dir, endpoint, "local", f)
		if err != nil {
			t.Fatalf("WriteClient = %v", err)
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode = %v, %v, want 0600", info.Mode(), err)
		}
		return got
	}
	one := write("https://127.0.0.1:1", first)
	two := write("https://127.0.0.1:2", nil)
	if two.Endpoint != "https://127.0.0.1:2" || two.ClientSecret != one.ClientSecret || two.ResourceGroup != "default" {
		t.Errorf("second start wrote %+v after %+v", two, one)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	three := write("https://127.0.0.1:2", nil)
	if three.ClientSecret == one.ClientSecret || !svc.knows(three) || svc.knows(one) || three.ClientID != one.ClientID {
		t.Errorf("a lost client.json became %+v after %+v", three, one)
	}
}

func otherKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// TestTokensThatMustNotPass forges tokens in all the usual ways.
func TestTokensThatMustNotPass(t *testing.T) {
	c := &clock{time.Now()}
	svc, first := open(t, mem.New(), c)
	key := svc.tokens.keys[0]
	foreign := otherKey(t)
	claims := func(change func(*Claims)) Claims {
		now := c.now
		cl := Claims{Subject: first.ClientID, TenantID: svc.tenant.ID, Claims: jwt.Claims{
			Issuer: svc.tokens.audience, Audience: jwt.Audience{svc.tokens.audience}, Subject: first.ClientID,
			IssuedAt: jwt.NewNumericDate(now), NotBefore: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(TokenLife)),
		}}
		if change != nil {
			change(&cl)
		}
		return cl
	}
	sign := func(k any, alg jose.SignatureAlgorithm, id string, cl Claims) string {
		signer, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: jose.JSONWebKey{Key: k, KeyID: id}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := jwt.Signed(signer).Claims(cl).Serialize()
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	good := sign(key.private, jose.ES256, key.ID, claims(nil))
	if _, err := svc.Authenticate(good); err != nil {
		t.Fatalf("a good token = %v", err)
	}
	parts := strings.Split(good, ".")
	none := base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"none","kid":"` + key.ID + `"}`))
	public, err := x509.MarshalPKIXPublicKey(&key.private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]string{
		"empty":             "",
		"garbage":           "a.b.c",
		"no signature":      parts[0] + "." + parts[1] + ".",
		"alg none":          none + "." + parts[1] + ".",
		"changed claims":    parts[0] + "." + base64.RawURLEncoding.EncodeToString([]byte(`{"oid":"x"}`)) + "." + parts[2],
		"foreign key":       sign(foreign, jose.ES256, key.ID, claims(nil)),
		"unknown key":       sign(foreign, jose.ES256, "other", claims(nil)),
		"HMAC with the key": sign(public, jose.HS256, key.ID, claims(nil)),
		"expired":           sign(key.private, jose.ES256, key.ID, claims(func(cl *Claims) { cl.Expiry = jwt.NewNumericDate(c.now.Add(-time.Minute)) })),
		"not yet":           sign(key.private, jose.ES256, key.ID, claims(func(cl *Claims) { cl.NotBefore = jwt.NewNumericDate(c.now.Add(time.Minute * 5)) })),
		"wrong audience":    sign(key.private, jose.ES256, key.ID, claims(func(cl *Claims) { cl.Audience = jwt.Audience{"x"} })),
		"no audience":       sign(key.private, jose.ES256, key.ID, claims(func(cl *Claims) { cl.Audience = nil })),
		"wrong issuer":      sign(key.private, jose.ES256, key.ID, claims(func(cl *Claims) { cl.Issuer = "x" })),
		"other tenant":      sign(key.private, jose.ES256, key.ID, claims(func(cl *Claims) { cl.TenantID = "x" })),
		"too long a life":   sign(key.private, jose.ES256, key.ID, claims(func(cl *Claims) { cl.Expiry = jwt.NewNumericDate(c.now.Add(2 * TokenLife)) })),
		"no expiry":         sign(key.private, jose.ES256, key.ID, claims(func(cl *Claims) { cl.Expiry = nil })),
		"unknown principal": sign(key.private, jose.ES256, key.ID, claims(func(cl *Claims) { cl.Subject = "x" })),
		"huge":              strings.Repeat("a", 1<<20),
	}
	for name, raw := range tests {
		if p, err := svc.Authenticate(raw); fault.KindOf(err) != fault.Unauthenticated {
			t.Errorf("%s: Authenticate = %v, %v, want unauthenticated", name, p.ClientID, err)
		}
	}
	c.now = c.now.Add(TokenLife + time.Minute) // the verified one is in the cache; it ends all the same
	_, err = svc.Authenticate(good)
	if e, ok := errors.AsType[*fault.Error](err); !ok || e.Code != "ExpiredAuthenticationToken" {
		t.Errorf("Authenticate(ended) = %v, want ExpiredAuthenticationToken", err)
	}
}

func TestKeysRotateWithOverlap(t *testing.T) {
	c := &clock{time.Now()}
	svc, first := open(t, mem.New(), c)
	c.now = c.now.Add(newKey)
	old, _, err := svc.Token(first.ClientID, first.ClientSecret)
	if err != nil {
		t.Fatal(err)
	}
	c.now = c.now.Add(time.Minute)
	if err := svc.tokens.load(t.Context()); err != nil || len(svc.tokens.keys) != 2 {
		t.Fatalf("load = %v with %d keys, want 2", err, len(svc.tokens.keys))
	}
	if _, err := svc.Authenticate(old); err != nil {
		t.Errorf("a token of the older key = %v", err)
	}
	c.now = c.now.Add(keyKept + time.Minute)
	if err := svc.tokens.load(t.Context()); err != nil || len(svc.tokens.keys) != 1 {
		t.Errorf("load = %v with %d keys, want a fresh one only", err, len(svc.tokens.keys))
	}
}

func TestAuthority(t *testing.T) {
	dir := t.TempDir()
	a, err := OpenAuthority(dir, "spillway.example", "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	b, err := OpenAuthority(dir)
	if err != nil || !a.cert.Equal(b.cert) {
		t.Fatalf("second open = %v, want the same authority", err)
	}
	pem, err := os.ReadFile(filepath.Join(dir, CAFile))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	verify := func(c *tls.Certificate, now time.Time) {
		t.Helper()
		for _, name := range []string{"localhost", "127.0.0.1", "::1", "spillway.example", "192.0.2.1"} {
			if _, err := c.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots, CurrentTime: now}); err != nil {
				t.Errorf("certificate for %s: %v", name, err)
			}
		}
	}
	now := time.Now()
	one, err := a.certificate(now)
	if err != nil {
		t.Fatal(err)
	}
	verify(one, now)
	if two, err := a.certificate(now.Add(time.Hour)); err != nil || two != one {
		t.Errorf("an hour later = another certificate, %v", err)
	}
	late := now.Add(serverLife - time.Hour)
	three, err := a.certificate(late)
	if err != nil || three == one {
		t.Fatalf("near its end the certificate was not renewed: %v", err)
	}
	verify(three, late)
	if info, err := os.Stat(filepath.Join(dir, "ca.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the key = %v, %v, want 0600", info.Mode(), err)
	}
}

func TestScopes(t *testing.T) {
	tests := []struct {
		role         Role
		given, asked string
		action       Action
		want         bool
	}{
		{Administrator, "/", "/", WriteHosts, true},
		{Administrator, "/subscriptions/a", "/", WriteHosts, false},
		{Contributor, "/subscriptions/a", "/subscriptions/A/resourceGroups/r", WriteGroups, true},
		{Contributor, "/subscriptions/a", "/subscriptions/ab", WriteGroups, false},
		{Contributor, "/", "/", WriteHosts, false},
		{Reader, "/subscriptions/a", "/subscriptions/a", ReadLogs, true},
		{Reader, "/subscriptions/a", "/subscriptions/a", Exec, false},
		{Reader, "/subscriptions/a/resourceGroups/r", "/subscriptions/a", ReadGroups, false},
		{"Nobody", "/", "/", ReadGroups, false},
	}
	for _, test := range tests {
		if got := Allowed([]Assignment{{Role: test.role, Scope: test.given}}, test.action, test.asked); got != test.want {
			t.Errorf("Allowed(%s on %s, %s on %s) = %t, want %t", test.role, test.given, test.action, test.asked, got, test.want)
		}
	}
}

func FuzzVerify(f *testing.F) {
	svc, first := open(f, mem.New(), &clock{time.Now()})
	good, _, err := svc.Token(first.ClientID, first.ClientSecret)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add("a.b.c")
	f.Add(`{"payload":"","signatures":[]}`)
	f.Fuzz(func(t *testing.T, raw string) {
		if _, err := svc.Authenticate(raw); err == nil && raw != good {
			// The header and payload must be the signed ones; only the encoding of the signature's last bits is free.
			if !strings.HasPrefix(raw, good[:strings.LastIndex(good, ".")]) {
				t.Errorf("Authenticate(%q) = nil", raw)
			}
		}
	})
}
