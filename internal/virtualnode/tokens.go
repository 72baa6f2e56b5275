package virtualnode

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

// tokenCache asks for service account tokens, bound to their pods, and renews them when a fifth of their life is left
// or after a day, as a kubelet does.
type tokenCache struct {
	kube kubernetes.Interface
	ctx  context.Context

	mu     sync.Mutex // guards tokens
	tokens map[tokenKey]issuedToken
}

type tokenKey struct {
	uid, audience string
	seconds       int64
}

type issuedToken struct {
	text  string
	renew time.Time
}

const (
	tokenDay     = 24 * time.Hour
	tokenJitter  = 10 * time.Second
	tokenTimeout = 10 * time.Second
)

func newTokenCache(ctx context.Context, kube kubernetes.Interface) *tokenCache {
	return &tokenCache{kube: kube, ctx: ctx, tokens: map[tokenKey]issuedToken{}}
}

// token implements tokens.
func (c *tokenCache) token(pod *corev1.Pod, p *corev1.ServiceAccountTokenProjection) (string, error) {
	seconds := int64(3600)
	if p.ExpirationSeconds != nil {
		seconds = *p.ExpirationSeconds
	}
	key := tokenKey{string(pod.UID), p.Audience, seconds}
	c.mu.Lock()
	known, ok := c.tokens[key]
	c.mu.Unlock()
	if ok && time.Now().Before(known.renew) {
		return known.text, nil
	}
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds,
		BoundObjectRef: &authenticationv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: pod.Name, UID: pod.UID}}}
	if p.Audience != "" {
		request.Spec.Audiences = []string{p.Audience}
	}
	ctx, cancel := context.WithTimeout(c.ctx, tokenTimeout)
	defer cancel()
	issued, err := c.kube.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, pod.Spec.ServiceAccountName, request, metav1.CreateOptions{})
	if err != nil {
		if ok {
			return known.text, nil // the old one is good for a while
		}
		return "", fmt.Errorf("request token of service account %s/%s: %w", pod.Namespace, pod.Spec.ServiceAccountName, err)
	}
	life := time.Until(issued.Status.ExpirationTimestamp.Time)
	renew := min(life*4/5, tokenDay) - rand.N(tokenJitter)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tokens[key] = issuedToken{issued.Status.Token, time.Now().Add(max(renew, 0))}
	return issued.Status.Token, nil
}

// drop forgets the tokens of a pod that is gone.
func (c *tokenCache) drop(uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.tokens {
		if k.uid == uid {
			delete(c.tokens, k)
		}
	}
}
