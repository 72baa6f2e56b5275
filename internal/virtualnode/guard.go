package virtualnode

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/authenticatorfactory"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/apiserver/pkg/server/dynamiccertificates"
)

// Where every cluster says which authority signs its clients' certificates.
const (
	authConfigMap = "extension-apiserver-authentication"
	authCAKey     = "client-ca-file"
)

// How long the cluster's answers are remembered: a kubelet's defaults.
const (
	tokenTTL = 2 * time.Minute
	allowTTL = 5 * time.Minute
	denyTTL  = 30 * time.Second
)

// guard asks the cluster who a caller is and what he may do.
type guard struct {
	who  authenticator.Request
	may  authorizer.Authorizer
	node string
}

func newGuard(ctx context.Context, n *Node) (*guard, error) {
	ca, err := dynamiccertificates.NewDynamicCAFromConfigMapController("client-ca", metav1.NamespaceSystem, authConfigMap, authCAKey, n.kube)
	if err != nil {
		return nil, fmt.Errorf("authority of the cluster's clients: %w", err)
	}
	if err := ca.RunOnce(ctx); err != nil {
		return nil, fmt.Errorf("read the authority of the cluster's clients: %w", err)
	}
	go ca.Run(ctx, 1)
	backoff := wait.Backoff{Duration: 500 * time.Millisecond, Factor: 1.5, Jitter: 0.2, Steps: 5}
	who, _, err := authenticatorfactory.DelegatingAuthenticatorConfig{TokenAccessReviewClient: n.kube.AuthenticationV1(), TokenAccessReviewTimeout: 10 * time.Second,
		WebhookRetryBackoff: &backoff, CacheTTL: tokenTTL, ClientCertificateCAContentProvider: ca}.New()
	if err != nil {
		return nil, fmt.Errorf("authentication by the cluster: %w", err)
	}
	may, err := authorizerfactory.DelegatingAuthorizerConfig{SubjectAccessReviewClient: n.kube.AuthorizationV1(), AllowCacheTTL: allowTTL, DenyCacheTTL: denyTTL,
		WebhookRetryBackoff: &backoff}.New()
	if err != nil {
		return nil, fmt.Errorf("authorization by the cluster: %w", err)
	}
	return &guard{who, may, n.cfg.Name}, nil
}

// protect lets a request through when the cluster allows it.
func (g *guard) protect(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, ok, err := g.who.AuthenticateRequest(r)
		if err != nil || !ok {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		for _, a := range g.attributes(info.User, r) {
			decision, _, err := g.may.Authorize(r.Context(), a)
			if err != nil {
				http.Error(w, "authorization: "+err.Error(), http.StatusInternalServerError)
				return
			}
			if decision == authorizer.DecisionAllow {
				next.ServeHTTP(w, r)
				return
			}
		}
		a := g.attributes(info.User, r)[0]
		http.Error(w, fmt.Sprintf("Forbidden (user=%s, verb=%s, resource=%s, subresource=%s)", info.User.GetName(), a.GetVerb(), a.GetResource(), a.GetSubresource()), http.StatusForbidden)
	})
}

// attributes are the permissions of which one is needed, the narrowest first. Whoever may run commands in every pod
// has the right to create on nodes/proxy, whichever way the stream is opened.
func (g *guard) attributes(who user.Info, r *http.Request) []authorizer.Attributes {
	verb := map[string]string{http.MethodPost: "create", http.MethodGet: "get", http.MethodPut: "update", http.MethodPatch: "patch", http.MethodDelete: "delete"}[r.Method]
	subresources := []string{"proxy"}
	first, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	switch first {
	case "stats":
		subresources = []string{"stats"}
	case "metrics":
		subresources = []string{"metrics"}
	case "pods", "runningpods":
		subresources = []string{"pods", "proxy"}
	case "healthz":
		subresources = []string{"healthz", "proxy"}
	case "configz":
		subresources = []string{"configz", "proxy"}
	case "exec", "attach", "portForward", "run":
		verb = "create"
	}
	var out []authorizer.Attributes
	for _, s := range subresources {
		out = append(out, authorizer.AttributesRecord{User: who, Verb: verb, APIVersion: "v1", Resource: "nodes", Subresource: s, Name: g.node, ResourceRequest: true, Path: r.URL.Path})
	}
	return out
}
