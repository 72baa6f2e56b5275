// Package client is the Go client of the Spillway API: what the command line, the portal, the virtual node and the
// tests use.
//
// It knows the API and nothing of what is behind it; it must never import the server's packages. One command costs one
// TLS connection and, with a cached token, no round trip beyond its own. Start reading at Client.
package client

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"spillway.dev/spillway/internal/fault"
)

// Config is the content of client.json.
type Config struct {
	Endpoint       string `json:"endpoint"`
	CAFile         string `json:"caFile"`
	TenantID       string `json:"tenantId"`
	SubscriptionID string `json:"subscriptionId"`
	ClientID       string `json:"clientId"`
	ClientSecret   string `json:"clientSecret"`
	Location       string `json:"location"`
	ResourceGroup  string `json:"resourceGroup"`
}

// SystemConfig is where the platform's own first start leaves a configuration.
const SystemConfig = "/var/lib/spillway/client.json"

// FindConfig gives the path of the configuration: flag, else $SPILLWAY_CONFIG, else ~/.spillway/client.json, else
// SystemConfig.
func FindConfig(flag string, getenv func(string) string) string {
	if flag != "" {
		return flag
	}
	if env := getenv("SPILLWAY_CONFIG"); env != "" {
		return env
	}
	if home := getenv("HOME"); home != "" {
		path := filepath.Join(home, ".spillway", "client.json")
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	return SystemConfig
}

// LoadConfig reads a configuration. Errors: not-found, invalid.
func LoadConfig(path string) (*Config, error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fault.New(fault.NotFound, "", "There is no configuration at %s. Start the platform with 'spillway up', or name a file with --config or $SPILLWAY_CONFIG.", path)
	case errors.Is(err, fs.ErrPermission):
		return nil, fault.New(fault.Denied, "", "The configuration %s cannot be read by this user. Copy it to ~/.spillway/client.json as its owner, or name another with --config.", path)
	case err != nil:
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var c Config
	if err := json.Unmarshal(data, &c); err != nil {
		return nil, fault.New(fault.Invalid, "", "The configuration %s is not valid JSON: %v.", path, err)
	}
	if c.Endpoint == "" || c.ClientID == "" || c.SubscriptionID == "" {
		return nil, fault.New(fault.Invalid, "", "The configuration %s lacks endpoint, clientId or subscriptionId.", path)
	}
	if c.CAFile != "" && !filepath.IsAbs(c.CAFile) {
		c.CAFile = filepath.Join(filepath.Dir(path), c.CAFile)
	}
	return &c, nil
}
