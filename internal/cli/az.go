package cli

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"spillway.dev/spillway/internal/client"
	"spillway.dev/spillway/internal/fault"
)

// azCloud is what the Azure CLI calls this platform.
const azCloud = "spillway"

func (a *app) azCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "az -- ARG...",
		Short: "Run the Azure CLI against this platform",
		Long: "Run the installed Azure CLI against this platform, logged in as the configuration's client, with a configuration\n" +
			"directory of its own: what you use for Azure itself stays as it is.",
		Example: "  spillway az -- container list -o table",
		Args:    names("arguments for az behind --", 1, 0),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := client.LoadConfig(client.FindConfig(a.config, a.getenv))
			if err != nil {
				return err
			}
			return a.az(c.Context(), cfg, args)
		},
	}
}

func (a *app) az(ctx context.Context, cfg *client.Config, args []string) error {
	program := findProgram("az", a.getenv("PATH"))
	if program == "" {
		return fault.New(fault.NotFound, "", "The Azure CLI is not installed: there is no program 'az'. On Debian: apt-get install --no-install-recommends azure-cli.")
	}
	dir, err := azDirectory(a.getenv, cfg)
	if err != nil {
		return err
	}
	z := &azRun{app: a, program: program, env: azEnvironment(cfg, dir, a.group)}
	done := filepath.Join(dir, "logged-in")
	if _, err := os.Stat(done); err != nil {
		if err := z.login(ctx, cfg); err != nil {
			return err
		}
		if err := os.WriteFile(done, nil, 0o600); err != nil {
			return fmt.Errorf("remember login: %w", err)
		}
	}
	return z.exec(ctx, args, false)
}

// findProgram finds a program in a search path, "" when it is in none of its directories.
func findProgram(name, path string) string {
	for _, dir := range filepath.SplitList(path) {
		full := filepath.Join(dir, name)
		if fi, err := os.Stat(full); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return full
		}
	}
	return ""
}

// azDirectory is az's configuration for this platform and client, apart from all others.
func azDirectory(getenv func(string) string, cfg *client.Config) (string, error) {
	home := getenv("HOME")
	if home == "" {
		return "", usagef("$HOME must be set: the Azure CLI's configuration is kept under it")
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{cfg.Endpoint, cfg.TenantID, cfg.SubscriptionID, cfg.ClientID, cfg.ClientSecret}, "\n")))
	dir := filepath.Join(home, ".spillway", "az-"+hex.EncodeToString(sum[:8]))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make directory for the Azure CLI: %w", err)
	}
	return dir, nil
}

func azEnvironment(cfg *client.Config, dir, resourceGroup string) []string {
	if resourceGroup == "" {
		resourceGroup = cfg.ResourceGroup
	}
	return append(os.Environ(),
		"AZURE_CONFIG_DIR="+dir,
		"REQUESTS_CA_BUNDLE="+cfg.CAFile,
		"SSL_CERT_FILE="+cfg.CAFile,
		"WEBSOCKET_CLIENT_CA_BUNDLE="+cfg.CAFile,
		"AZURE_CORE_COLLECT_TELEMETRY=no",
		"AZURE_DEFAULTS_GROUP="+resourceGroup,
		"AZURE_DEFAULTS_LOCATION="+cfg.Location,
	)
}

type azRun struct {
	*app
	program string
	env     []string
}

// login makes az know this platform as a cloud and logs in. The login address ends in /adfs because az would otherwise
// ask Microsoft's servers about it.
func (z *azRun) login(ctx context.Context, cfg *client.Config) error {
	steps := [][]string{
		{"cloud", "register", "-n", azCloud, "--endpoint-resource-manager", cfg.Endpoint, "--endpoint-active-directory", cfg.Endpoint + "/adfs",
			"--endpoint-active-directory-resource-id", cfg.Endpoint + "/", "--endpoint-active-directory-graph-resource-id", cfg.Endpoint + "/graph"},
		{"cloud", "set", "-n", azCloud},
		{"login", "--service-principal", "-u", cfg.ClientID, "-p", cfg.ClientSecret, "--tenant", cfg.TenantID},
	}
	for i, args := range steps {
		if err := z.exec(ctx, args, true); err != nil && i > 0 { // a cloud of that name may be there from a try before
			return fault.New(fault.Unavailable, "", "The Azure CLI cannot use this platform: 'az %s' failed. What it said is above.", args[0])
		}
	}
	return nil
}

// exec runs az; quiet shows only what goes wrong.
func (z *azRun) exec(ctx context.Context, args []string, quiet bool) error {
	c := exec.CommandContext(ctx, z.program, args...)
	c.Env, c.Stdin, c.Stdout, c.Stderr = z.env, z.stdin, z.stdout, z.stderr
	if quiet {
		c.Stdin, c.Stdout = nil, nil
	}
	err := c.Run()
	if e, ok := errors.AsType[*exec.ExitError](err); ok {
		return &exitError{max(e.ExitCode(), exitFailed)}
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", z.program, err)
	}
	return nil
}
