package httpapi_test

import (
	"os"
	"path/filepath"
	"testing"

	"spillway.dev/spillway/internal/httpapi"
)

// FuzzHandler throws mutated requests at the real handler: no input may make it answer 500 or more.
func FuzzHandler(f *testing.F) {
	w := newWorld(f, httpapi.Rate{PerSecond: 1e9, Burst: 1e9})
	token, _, err := w.ids.Token(w.config.ClientID, w.config.ClientSecret)
	if err != nil {
		f.Fatal(err)
	}
	methods := []string{"GET", "PUT", "PATCH", "DELETE", "POST", "HEAD", "OPTIONS"}
	bodies, err := filepath.Glob("../../api/golden/*/*.request.json")
	if err != nil || len(bodies) == 0 {
		f.Fatalf("no golden requests: %v", err)
	}
	for _, path := range bodies {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(1, w.groupPath("full"), "api-version="+filepath.Base(filepath.Dir(path)), data)
	}
	f.Add(0, w.groupPath("x")+"/containers/main/logs", "api-version=2023-05-01&tail=5", []byte{})
	f.Add(4, w.groupPath("x")+"/containers/main/exec", "api-version=2026-11-01-spillway", []byte(`{"command":["a","b"],"tty":true,"terminalSize":{"rows":1,"cols":2}}`))
	f.Add(2, w.groupPath("full"), "api-version=2025-09-01", []byte(`{"tags":{"a":"b"}}`))
	f.Add(3, w.groupPath("full"), "api-version=2025-09-01", []byte{})
	f.Add(4, "/adfs/oauth2/token", "", []byte("grant_type=client_credentials&client_id=a&client_secret=b"))
	f.Add(4, "/providers/Spillway.Platform/images/pull", "api-version=2026-11-01-spillway", []byte(`{"image":"nginx"}`))
	f.Add(4, "/providers/Spillway.Platform/images/import", "api-version=2026-11-01-spillway", []byte("nginx\nxxx"))
	f.Fuzz(func(t *testing.T, method int, path, query string, body []byte) {
		if !requestable(path, query) {
			return
		}
		w.t = t
		kind := "application/json"
		if path == "/adfs/oauth2/token" {
			kind = "application/x-www-form-urlencoded"
		}
		a := w.raw(methods[uint(method)%uint(len(methods))], path+"?"+query, map[string]string{"Authorization": "Bearer " + token, "Content-Type": kind}, body)
		if a.status >= 500 {
			t.Errorf("%s %s?%s = %d %s", methods[uint(method)%uint(len(methods))], path, query, a.status, a.text)
		}
	})
}
