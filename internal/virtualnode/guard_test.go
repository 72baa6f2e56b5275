package virtualnode

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// TestPermissions is the table of what the kubelet API asks of its callers.
func TestPermissions(t *testing.T) {
	g := &guard{node: "virtual-1"}
	for _, c := range []struct{ method, path, want string }{
		{"GET", "/pods", "get pods get proxy"},
		{"GET", "/pods/", "get pods get proxy"},
		{"GET", "/runningpods/", "get pods get proxy"},
		{"GET", "/healthz", "get healthz get proxy"},
		{"GET", "/healthz/ping", "get healthz get proxy"},
		{"GET", "/configz", "get configz get proxy"},
		{"GET", "/stats/summary", "get stats"},
		{"POST", "/stats/summary", "create stats"},
		{"GET", "/metrics", "get metrics"},
		{"GET", "/metrics/resource", "get metrics"},
		{"GET", "/containerLogs/shop/front/main", "get proxy"},
		{"GET", "/exec/shop/front/main", "create proxy"}, // a WebSocket is opened by GET, and runs a command all the same
		{"POST", "/exec/shop/front/main", "create proxy"},
		{"GET", "/attach/shop/front/main", "create proxy"},
		{"GET", "/portForward/shop/front", "create proxy"},
		{"POST", "/run/shop/front/main", "create proxy"},
		{"GET", "//exec/shop/front/main", "get proxy"}, // no such route
		{"GET", "/", "get proxy"},
		{"DELETE", "/anything", "delete proxy"},
	} {
		var got []string
		for _, a := range g.attributes(&user.DefaultInfo{Name: "anna"}, httptest.NewRequest(c.method, c.path, nil)) {
			got = append(got, a.GetVerb()+" "+a.GetSubresource())
			if a.GetResource() != "nodes" || a.GetName() != "virtual-1" || a.GetAPIGroup() != "" || !a.IsResourceRequest() || a.GetUser().GetName() != "anna" {
				t.Errorf("%s %s asks for %+v, want a right on the node", c.method, c.path, a)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s %s needs %v, want %s", c.method, c.path, got, c.want)
		}
	}
}

// judge knows callers by a header, and allows by subresource.
type judge struct {
	allow []string
	err   error
}

func (j *judge) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	if name := r.Header.Get("X-Test"); name != "" {
		return &authenticator.Response{User: &user.DefaultInfo{Name: name}}, true, nil
	}
	return nil, false, nil
}

func (j *judge) authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if j.err != nil {
		return authorizer.DecisionNoOpinion, "", j.err
	}
	for _, s := range j.allow {
		if a.GetVerb()+" "+a.GetSubresource() == s {
			return authorizer.DecisionAllow, "", nil
		}
	}
	return authorizer.DecisionNoOpinion, "", nil
}

func TestNothingIsOpen(t *testing.T) {
	for _, c := range []struct {
		name, who, path string
		judge           judge
		want            int
	}{
		{"nobody", "", "/healthz", judge{allow: []string{"get healthz"}}, http.StatusUnauthorized},
		{"nobody, whatever is allowed", "", "/pods", judge{allow: []string{"get pods", "get proxy"}}, http.StatusUnauthorized},
		{"no right", "anna", "/pods", judge{}, http.StatusForbidden},
		{"the narrow right", "anna", "/pods", judge{allow: []string{"get pods"}}, http.StatusOK},
		{"the wide right", "anna", "/pods", judge{allow: []string{"get proxy"}}, http.StatusOK},
		{"to read is not to run", "anna", "/exec/a/b/c", judge{allow: []string{"get proxy"}}, http.StatusForbidden},
		{"a cluster that does not say", "anna", "/pods", judge{err: errors.New("away")}, http.StatusInternalServerError},
	} {
		g := &guard{who: &c.judge, may: authorizer.AuthorizerFunc(c.judge.authorize), node: "virtual-1"}
		served := false
		r := httptest.NewRequest("GET", c.path, nil)
		r.Header.Set("X-Test", c.who)
		w := httptest.NewRecorder()
		g.protect(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served = true })).ServeHTTP(w, r)
		if w.Code != c.want || served != (c.want == http.StatusOK) {
			t.Errorf("%s: status %d, served %v, want %d", c.name, w.Code, served, c.want)
		}
	}
}

// TestEveryRouteIsGuarded: the whole surface answers nobody.
func TestEveryRouteIsGuarded(t *testing.T) {
	s := &server{n: &Node{}, guard: &guard{who: &judge{}, may: authorizer.AuthorizerFunc((&judge{}).authorize), node: "virtual-1"}}
	h := s.guard.protect(s.routes())
	for _, path := range []string{"/", "/healthz", "/pods", "/runningpods/", "/containerLogs/a/b/c", "/exec/a/b/c", "/attach/a/b/c", "/portForward/a/b", "/run/a/b/c", "/metrics", "/metrics/resource",
		"/stats/summary", "/configz", "/logs/"} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if w.Code != http.StatusUnauthorized {
			t.Errorf("GET %s = %d, want 401", path, w.Code)
		}
	}
}
