package arm

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

func FuzzParseID(f *testing.F) {
	f.Add("/subscriptions/s/resourceGroups/r/providers/Microsoft.ContainerInstance/containerGroups/n")
	f.Add("//SUBSCRIPTIONS/s/resourcegroups/r/providers/microsoft.containerinstance//containergroups/n/")
	f.Add("/subscriptions/%2e%2e/x")
	f.Fuzz(func(t *testing.T, id string) {
		ref, err := ParseID(id)
		if err != nil {
			return
		}
		for _, part := range []string{ref.Subscription, ref.ResourceGroup, ref.Name} {
			if part == "" || part == "." || part == ".." || strings.ContainsAny(part, "/\\\x00") {
				t.Errorf("ParseID(%q) gave the part %q", id, part)
			}
		}
		if strings.ContainsRune(ID(ref), '%') {
			return // a literal percent sign would have to be escaped again
		}
		if again, err := ParseID(ID(ref)); err != nil || again != ref {
			t.Errorf("ParseID(ID(%v)) = %v, %v", ref, again, err)
		}
	})
}

func FuzzParseImageRef(f *testing.F) {
	for _, s := range []string{"nginx", "nginx:1.25", "registry.example.com:5000/a/b:c", "a@sha256:" + strings.Repeat("0", 64), "[::1]:5000/x", "localhost/x", "UPPER", ":", "@", "a//b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		ref, err := ParseImageRef(s)
		if err != nil {
			return
		}
		back := ref.Repository
		if ref.Registry != "" {
			back = ref.Registry + "/" + back
		}
		if ref.Tag != "" {
			back += ":" + ref.Tag
		}
		if ref.Digest != "" {
			back += "@" + ref.Digest
		}
		if back != s {
			t.Errorf("ParseImageRef(%q) = %+v, which writes %q", s, ref, back)
		}
		if strings.ContainsAny(s, " \t\n\x00") || strings.Contains(s, "..") && ref.Registry == "" && ref.Tag == "" {
			t.Errorf("ParseImageRef(%q) was accepted", s)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(valid), 1)
	golden, err := filepath.Glob(filepath.Join(goldenDir, "*", "*.request.json"))
	if err != nil {
		f.Fatal(err)
	}
	for _, path := range golden {
		body, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		for i := range version {
			f.Add(body, i)
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, n int) {
		v := version[uint(n)%uint(len(version))]
		req, err := Decode(body, v, "web")
		if err != nil {
			if e, ok := errors.AsType[*fault.Error](err); !ok || e.HTTPStatus() != 400 || e.Message == "" {
				t.Errorf("Decode = %v, want a fault with status 400", err)
			}
			return
		}
		if len(req.Spec.Containers) == 0 || len(req.Spec.Containers) > group.MaxContainers {
			t.Errorf("Decode accepted %d containers", len(req.Spec.Containers))
		}
		g := &group.Group{Ref: group.Ref{Name: "web"}, Location: req.Location, Tags: req.Tags, Zones: req.Zones, Spec: req.Spec, Desired: group.Run}
		out, err := json.Marshal(Render(View{Group: g}, v, time.Time{}))
		if err != nil {
			t.Fatalf("Render cannot be written: %v", err)
		}
		if _, err := Decode(out, v, "web"); err != nil {
			t.Errorf("Decode(Render) = %v\n%s", err, out)
		}
	})
}
