package cli

import (
	"errors"
	"testing"
)

// FuzzApplyFile reads any file of groups: it is refused as wrong usage, or every document has a name and nothing of
// what the platform's address already says.
func FuzzApplyFile(f *testing.F) {
	f.Add([]byte("apiVersion: 2023-05-01\nname: web\nlocation: local\nproperties:\n  containers: []\n"))
	f.Add([]byte(`{"name":"web","properties":{"osType":"Linux"}}`))
	f.Add([]byte("---\nname: a\n---\n---\nname: ${NAME}\n"))
	f.Add([]byte("name: a\nname: b\n"))
	f.Add([]byte("name: &x [*x]\n"))
	f.Add([]byte("- 1\n"))
	f.Add([]byte("name: [1]\n\t"))
	a := &app{getenv: func(name string) string { return map[string]string{"NAME": "b\nlocation: x"}[name] }}
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, err := a.parseDocuments("f", data)
		if err != nil {
			if _, ok := errors.AsType[*usageError](err); !ok {
				t.Errorf("parseDocuments(%q) = %v, want a usage error", data, err)
			}
			return
		}
		for _, d := range docs {
			if d.name == "" || d.body["name"] != nil || d.body["id"] != nil {
				t.Errorf("parseDocuments(%q) gave %+v", data, d)
			}
		}
	})
}
