package client

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestTokensArePruned: every platform that was used leaves a token; those of yesterday go with the next one that is kept.
func TestTokensArePruned(t *testing.T) {
	dir := t.TempDir()
	old := time.Now().Add(-tokenLife - time.Minute)
	for name, at := range map[string]time.Time{"token-old.json": old, "token-used.json": time.Now(), "other.json": old} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	c := &Client{cachePath: filepath.Join(dir, "token-new.json")}
	c.writeToken(token{Access: "a", Expires: time.Now().Add(time.Hour)})
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{"other.json", "token-new.json", "token-used.json"}; !slices.Equal(left, want) {
		t.Errorf("%q are left, want %q", left, want)
	}
	if got := c.readToken(); got.Access != "a" || !got.fresh() {
		t.Errorf("the new token is %+v", got)
	}
}
