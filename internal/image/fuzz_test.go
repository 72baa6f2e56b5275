package image

import (
	"strings"
	"testing"
)

// FuzzCanonical reads any image reference: it is refused, or its canonical form is its own canonical form and says
// where the image comes from.
func FuzzCanonical(f *testing.F) {
	for _, s := range []string{"nginx", "nginx:1.25", "registry.test:5000/a/b:c", "a@sha256:" + strings.Repeat("0", 64), "a:b@sha256:" + strings.Repeat("1", 64),
		"[::1]:5000/x", "localhost/x", "UPPER", ":", "@", "a//b", "../x", "a b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := canonical(s)
		if err != nil {
			return
		}
		if again, err := canonical(name); err != nil || again != name {
			t.Errorf("canonical(canonical(%q)) = %q, %v, want %q", s, again, err, name)
		}
		if host := registryOf(name); host == "" || host == name || strings.Contains(name, "..") {
			t.Errorf("canonical(%q) = %q, of registry %q", s, name, host)
		}
	})
}
