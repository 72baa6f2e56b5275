package wholefile

import (
	"os"
	"path/filepath"
	"testing"
)

// TestReplaces: what cannot be written leaves the old content, and a half-written file of a killed process is no obstacle.
func TestReplaces(t *testing.T) {
	for name, write := range map[string]func(string, []byte) error{"Write": Write, "WriteSynced": WriteSynced} {
		path := filepath.Join(t.TempDir(), "f")
		if err := os.WriteFile(path+".new", []byte("half of a longer text"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := write(path, []byte("one")); err != nil {
			t.Errorf("%s = %v", name, err)
		}
		if err := os.Mkdir(path+".new", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := write(path, []byte("two")); err == nil {
			t.Errorf("%s over a directory succeeds", name)
		}
		if body, err := os.ReadFile(path); err != nil || string(body) != "one" {
			t.Errorf("%s left %q, %v", name, body, err)
		}
	}
}
