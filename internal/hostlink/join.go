package hostlink

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"spillway.dev/spillway/internal/fault"
)

// Token is what an administrator gives to a new host: the secret that buys its certificate, and the fingerprint by
// which it knows the servers that it has never met.
type Token struct {
	Secret      string
	Fingerprint string // see Fingerprint
}

// tokenPrefix tells people and scanners what they have found.
const tokenPrefix = "spillway-join."

func (t Token) String() string { return tokenPrefix + t.Secret + "." + t.Fingerprint }

// ParseToken reads a token.
func ParseToken(text string) (Token, error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), tokenPrefix)
	at := strings.LastIndexByte(rest, '.')
	if !ok || at <= 0 || at == len(rest)-1 {
		return Token{}, fault.New(fault.Invalid, "", "The join token is not complete. It begins with %q and is one word; 'spillway token create' makes one.", tokenPrefix)
	}
	return Token{rest[:at], rest[at+1:]}, nil
}

// Fingerprint names the certificate of an authority.
func Fingerprint(certDER []byte) string {
	sum := sha256.Sum256(certDER)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// JoinRequest asks for a host's certificate.
type JoinRequest struct {
	Token string `json:"token"`
	CSR   string `json:"csr"` // PEM
}

// JoinResponse is what a host gets for its token.
type JoinResponse struct {
	Certificate string   `json:"certificate"` // PEM
	Authority   string   `json:"authority"`   // PEM
	Servers     []string `json:"servers"`     // HOST:PORT for hosts
	Network     string   `json:"network,omitempty"`
}

// NewKey makes a host's key and the request for its certificate.
func NewKey() (keyPEM, csrPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "spillway host"}}, key)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}), nil
}

// joinTime bounds one attempt to join.
const joinTime = 30 * time.Second

// Join asks the servers' API at a URL for a host's certificate. Nothing is sent before the other end has shown a
// certificate of the authority that the token names.
func Join(ctx context.Context, url, name string, t Token, csrPEM []byte) (*JoinResponse, error) {
	if err := CheckName(name); err != nil {
		return nil, fault.New(fault.Invalid, "", "%v.", err)
	}
	body, err := json.Marshal(JoinRequest{Token: t.Secret, CSR: string(csrPEM)})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTime)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(url, "/")+"/providers/Spillway.Platform/hosts/"+name+"/join", bytes.NewReader(body))
	if err != nil {
		return nil, fault.New(fault.Invalid, "", "--server %q: %v", url, err)
	}
	q.Header.Set("Content-Type", "application/json")
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true, VerifyConnection: t.verify}}}
	defer client.CloseIdleConnections()
	resp, err := client.Do(q)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "", "The servers at %s cannot be joined: %v", url, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		var e struct {
			Error struct{ Code, Message string }
		}
		if json.Unmarshal(answer, &e) != nil || e.Error.Message == "" {
			return nil, fmt.Errorf("join at %s: %s", url, resp.Status)
		}
		return nil, fault.New(fault.ForStatus(resp.StatusCode), e.Error.Code, "%s", clean(e.Error.Message, maxErrorText))
	}
	var out JoinResponse
	if err := json.Unmarshal(answer, &out); err != nil {
		return nil, fmt.Errorf("read the answer of %s: %w", url, err)
	}
	return &out, nil
}

// verify accepts a server that shows a certificate of the token's authority.
func (t Token) verify(c tls.ConnectionState) error {
	for _, ca := range c.PeerCertificates[min(1, len(c.PeerCertificates)):] {
		if ca.IsCA && Fingerprint(ca.Raw) == t.Fingerprint {
			pool := x509.NewCertPool()
			pool.AddCert(ca)
			return verifyServer(c, pool)
		}
	}
	return errors.New("the server's authority is not the one that the join token names: wrong --server, or somebody in between")
}

func verifyServer(c tls.ConnectionState, pool *x509.CertPool) error {
	if len(c.PeerCertificates) == 0 {
		return errors.New("the server shows no certificate")
	}
	_, err := c.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	return err
}

// HostTLS is a host's configuration for its connections to servers. Any server of the authority will do, under
// whatever address it was reached: hosts' own certificates are not good for servers.
func HostTLS(authority *x509.CertPool, cert func() (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, InsecureSkipVerify: true,
		VerifyConnection:     func(c tls.ConnectionState) error { return verifyServer(c, authority) },
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert() }}
}
