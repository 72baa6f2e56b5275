package identity

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"spillway.dev/spillway/internal/store"
)

// sharedAuthority is the authority of servers that share a store, as it is kept there. The store is sealed.
type sharedAuthority struct {
	Certificate string `json:"certificate"` // PEM
	Key         string `json:"key"`         // PEM
}

// OpenSharedAuthority opens the authority that all servers of a store have in common, and makes it when there is none
// yet. Its certificate is put into dir for clients on this machine; names are those of this server.
func OpenSharedAuthority(ctx context.Context, s store.Store, dir string, names ...string) (*Authority, error) {
	for {
		e, err := s.Get(ctx, store.Authority)
		if err == nil {
			return readShared(e.Value, dir, names)
		}
		if !errors.Is(err, store.ErrNotFound) {
			return nil, fmt.Errorf("read the certificate authority: %w", err)
		}
		made, err := makeShared()
		if err != nil {
			return nil, err
		}
		// Another server may be faster: then its authority is the one.
		if _, err := s.Commit(ctx, store.Op{Key: store.Authority, Value: made, If: store.Absent}); err != nil && !errors.Is(err, store.ErrConflict) {
			return nil, fmt.Errorf("store the certificate authority: %w", err)
		}
	}
}

// makeShared makes an authority as it is made on one machine, in a directory that is not kept.
func makeShared() ([]byte, error) {
	dir, err := os.MkdirTemp("", "spillway-authority-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	a := &Authority{dir: dir}
	if err := a.create(); err != nil {
		return nil, fmt.Errorf("make a certificate authority: %w", err)
	}
	der, err := x509.MarshalECPrivateKey(a.key)
	if err != nil {
		return nil, err
	}
	return json.Marshal(sharedAuthority{string(a.Certificate()), string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))})
}

func readShared(value []byte, dir string, names []string) (*Authority, error) {
	var kept sharedAuthority
	if err := json.Unmarshal(value, &kept); err != nil {
		return nil, fmt.Errorf("read the certificate authority: %w", err)
	}
	cert, _ := pem.Decode([]byte(kept.Certificate))
	key, _ := pem.Decode([]byte(kept.Key))
	if cert == nil || key == nil {
		return nil, errors.New("read the certificate authority: no PEM")
	}
	a := newAuthority(dir, names)
	var err error
	if a.cert, err = x509.ParseCertificate(cert.Bytes); err == nil {
		a.key, err = x509.ParseECPrivateKey(key.Bytes)
	}
	if err == nil {
		err = writeFile(filepath.Join(dir, CAFile), []byte(kept.Certificate), 0o644)
	}
	if err != nil {
		return nil, fmt.Errorf("read the certificate authority: %w", err)
	}
	return a, nil
}
