// Package identity says who a caller is and what the caller may do: the certificate authority, tokens, principals and
// the table of roles.
//
// It must never log or return a secret after its creation. Start reading at Service; role.go is the table of who may
// do what, token.go the rules of tokens, authority.go the certificates.
package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/store"
)

// rotateEvery is how often keys are looked after.
const rotateEvery = 6 * time.Hour

// Tenant is whom the platform serves.
type Tenant struct {
	ID            string         `json:"id"`
	Subscriptions []Subscription `json:"subscriptions"`
}

// Subscription is a unit of isolation between groups.
type Subscription struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Principal is a caller. Its secret is stored as a hash only: it is random and long, so that one round is enough.
type Principal struct {
	ClientID    string       `json:"clientId"`
	Name        string       `json:"name"`
	SecretHash  []byte       `json:"secretHash"`
	Assignments []Assignment `json:"assignments"`
}

// Service knows tenant, principals and tokens. It is safe for concurrent use.
type Service struct {
	store  store.Store
	log    *slog.Logger
	tokens *tokens
	tenant Tenant

	mu         sync.RWMutex // guards principals
	principals map[string]Principal
}

// First is what a first start makes and says once.
type First struct {
	ClientID     string
	ClientSecret string
}

// Open reads the identities from the store. On the first start it makes tenant, subscription and administrator and
// gives the administrator's secret; later first is nil.
func Open(ctx context.Context, s store.Store, log *slog.Logger, now func() time.Time) (svc *Service, first *First, err error) {
	if now == nil {
		now = time.Now
	}
	svc = &Service{store: s, log: log, principals: map[string]Principal{}}
	e, err := s.Get(ctx, store.Tenant)
	switch {
	case errors.Is(err, store.ErrNotFound):
		if first, err = svc.bootstrap(ctx); err != nil {
			return nil, nil, err
		}
	case err != nil:
		return nil, nil, fmt.Errorf("read tenant: %w", err)
	default:
		if err := json.Unmarshal(e.Value, &svc.tenant); err != nil {
			return nil, nil, fmt.Errorf("read tenant: %w", err)
		}
	}
	if err := svc.loadPrincipals(ctx); err != nil {
		return nil, nil, err
	}
	svc.tokens = &tokens{store: s, tenant: svc.tenant.ID, audience: "urn:spillway:" + svc.tenant.ID, now: now, cache: map[[32]byte]Claims{}}
	return svc, first, svc.tokens.load(ctx)
}

// bootstrap makes everything in one commit, so that a crash leaves all or nothing.
func (s *Service) bootstrap(ctx context.Context) (*First, error) {
	s.tenant = Tenant{ID: newUUID(), Subscriptions: []Subscription{{ID: newUUID(), Name: "Spillway"}}}
	p, secret := newPrincipal("administrator", []Assignment{{Role: Administrator, Scope: "/"}})
	tenant, err := json.Marshal(s.tenant)
	if err != nil {
		return nil, fmt.Errorf("write tenant: %w", err)
	}
	principal, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("write principal: %w", err)
	}
	_, err = s.store.Commit(ctx,
		store.Op{Key: store.Tenant, Value: tenant, If: store.Absent},
		store.Op{Key: store.PrincipalKey(p.ClientID), Value: principal, If: store.Absent})
	if err != nil {
		return nil, fmt.Errorf("store first identities: %w", err)
	}
	return &First{ClientID: p.ClientID, ClientSecret: secret}, nil
}

func newPrincipal(name string, assignments []Assignment) (Principal, string) {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails
	secret := base64.RawURLEncoding.EncodeToString(b[:])
	return Principal{ClientID: newUUID(), Name: name, SecretHash: hash(secret), Assignments: assignments}, secret
}

func hash(secret string) []byte {
	sum := sha256.Sum256([]byte("spillway client secret\x00" + secret))
	return sum[:]
}

func (s *Service) loadPrincipals(ctx context.Context) error {
	page, err := s.store.List(ctx, store.Principals, 0, "")
	if err != nil {
		return fmt.Errorf("read principals: %w", err)
	}
	for _, e := range page.Entries {
		var p Principal
		if err := json.Unmarshal(e.Value, &p); err != nil {
			return fmt.Errorf("read principal %s: %w", e.Key, err)
		}
		s.principals[p.ClientID] = p
	}
	return nil
}

// AddPrincipal makes a further caller and gives its secret, which cannot be read again.
func (s *Service) AddPrincipal(ctx context.Context, name string, assignments ...Assignment) (Principal, string, error) {
	p, secret := newPrincipal(name, assignments)
	return p, secret, s.putPrincipal(ctx, p)
}

// ResetAdministrator gives the administrator a new secret, for when client.json was lost.
func (s *Service) ResetAdministrator(ctx context.Context) (*First, error) {
	s.mu.RLock()
	var admin Principal
	for _, p := range s.principals {
		if p.Name == "administrator" {
			admin = p
		}
	}
	s.mu.RUnlock()
	fresh, secret := newPrincipal("administrator", []Assignment{{Role: Administrator, Scope: "/"}})
	if admin.ClientID != "" {
		fresh.ClientID = admin.ClientID
	}
	return &First{ClientID: fresh.ClientID, ClientSecret: secret}, s.putPrincipal(ctx, fresh)
}

func (s *Service) putPrincipal(ctx context.Context, p Principal) error {
	value, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("write principal: %w", err)
	}
	if _, err := s.store.Commit(ctx, store.Op{Key: store.PrincipalKey(p.ClientID), Value: value, If: store.Any}); err != nil {
		return fmt.Errorf("store principal: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.principals[p.ClientID] = p
	return nil
}

// Tenant is whom the platform serves.
func (s *Service) Tenant() Tenant { return s.tenant }

// Token gives a token to a principal that knows its secret. Errors: unauthenticated.
func (s *Service) Token(clientID, secret string) (string, time.Duration, error) {
	s.mu.RLock()
	p, ok := s.principals[clientID]
	s.mu.RUnlock()
	if subtle.ConstantTimeCompare(hash(secret), p.SecretHash) != 1 || !ok {
		return "", 0, unauthenticated("invalid_client", "AADSTS7000215: Invalid client id or client secret provided.")
	}
	return s.tokens.issue(clientID)
}

// Authenticate finds the principal of a token. Errors: unauthenticated.
func (s *Service) Authenticate(token string) (Principal, error) {
	if token == "" {
		return Principal{}, unauthenticated("AuthenticationFailed", "Authentication failed. The 'Authorization' header is missing. Send 'Authorization: Bearer TOKEN'.")
	}
	c, err := s.tokens.verify(token)
	if err != nil {
		return Principal{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	p, ok := s.principals[c.Subject]
	if !ok {
		return Principal{}, unauthenticated("InvalidAuthenticationToken", "The access token is invalid: its principal no longer exists.")
	}
	return p, nil
}

// Authorize checks that a principal may do an action on a scope. Errors: denied.
func (s *Service) Authorize(p Principal, action Action, scope string) error {
	if Allowed(p.Assignments, action, scope) {
		return nil
	}
	return fault.New(fault.Denied, "AuthorizationFailed",
		"The client '%s' with object id '%s' does not have authorization to perform action '%s' over scope '%.300s' or the scope is invalid. If access was recently granted, please refresh your credentials.",
		p.ClientID, p.ClientID, action, scope)
}

// Run looks after the signing keys until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	t := time.NewTicker(rotateEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
			if err := s.tokens.load(ctx); err != nil {
				s.log.Error("rotate signing keys", "error", err)
			}
		}
	}
}

// newUUID makes a random UUID, version 4.
func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
