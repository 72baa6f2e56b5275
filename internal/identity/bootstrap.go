package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ClientFile is the name of the administrator's configuration in the data directory.
const ClientFile = "client.json"

// ClientConfig is its content; internal/client reads the same.
type ClientConfig struct {
	Endpoint       string `json:"endpoint"`
	CAFile         string `json:"caFile"`
	TenantID       string `json:"tenantId"`
	SubscriptionID string `json:"subscriptionId"`
	ClientID       string `json:"clientId"`
	ClientSecret   string `json:"clientSecret"`
	Location       string `json:"location"`
	ResourceGroup  string `json:"resourceGroup"`
}

// WriteClient keeps client.json of the data directory right: it is made on the first start, its endpoint follows the
// listener, and when it was lost the administrator gets a new secret.
func (s *Service) WriteClient(ctx context.Context, dir, endpoint, location string, first *First) (ClientConfig, error) {
	path := filepath.Join(dir, ClientFile)
	var c ClientConfig
	data, err := os.ReadFile(path)
	switch {
	case err == nil:
		if err := json.Unmarshal(data, &c); err != nil {
			return c, fmt.Errorf("read %s: %w; remove it to get a new one", path, err)
		}
	case !errors.Is(err, fs.ErrNotExist):
		return c, fmt.Errorf("read %s: %w", path, err)
	}
	if first == nil && !s.knows(c) {
		if first, err = s.ResetAdministrator(ctx); err != nil {
			return c, err
		}
	}
	if first != nil {
		c.ClientID, c.ClientSecret = first.ClientID, first.ClientSecret
	}
	if c.ResourceGroup == "" {
		c.ResourceGroup = "default"
	}
	c.Endpoint, c.CAFile, c.Location = endpoint, filepath.Join(dir, CAFile), location
	c.TenantID, c.SubscriptionID = s.tenant.ID, s.tenant.Subscriptions[0].ID
	out, err := json.MarshalIndent(c, "", "  ")
	if err != nil {
		return c, fmt.Errorf("write %s: %w", path, err)
	}
	if string(out)+"\n" == string(data) {
		return c, nil
	}
	out = append(out, '\n')
	err = writeFile(path, out, 0o600)
	if errors.Is(err, unix.ENOSPC) && data != nil {
		err = overwrite(path, out)
	}
	if err != nil {
		return c, fmt.Errorf("write %s: %w", path, err)
	}
	return c, nil
}

// overwrite writes into the blocks that a file has: a full disk must not keep the platform from starting.
func overwrite(path string, body []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(body, 0)
	return errors.Join(err, f.Truncate(int64(len(body))), f.Sync(), f.Close())
}

// knows says whether the credentials of a configuration work here.
func (s *Service) knows(c ClientConfig) bool {
	_, _, err := s.Token(c.ClientID, c.ClientSecret)
	return err == nil
}
