package virtualnode

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/certificate"
)

// servingCertificate is a certificate of the cluster's own, asked for by a signing request and renewed in time. It
// lives in memory: a new process asks for a new one.
type servingCertificate struct {
	n       *Node
	manager certificate.Manager
	ctx     context.Context
	cancel  context.CancelFunc
	once    sync.Once
}

func newServingCertificate(n *Node) (*servingCertificate, error) {
	s := &servingCertificate{n: n}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	ip := net.ParseIP(n.cfg.Address)
	if ip == nil {
		return nil, fmt.Errorf("--address %q must be an IP address", n.cfg.Address)
	}
	var err error
	s.manager, err = certificate.NewManager(&certificate.Config{
		Name:        "serving",
		ClientsetFn: func(*tls.Certificate) (kubernetes.Interface, error) { return n.kube, nil },
		GetTemplate: func() *x509.CertificateRequest {
			return &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:" + n.cfg.Name, Organization: []string{"system:nodes"}},
				DNSNames: []string{n.cfg.Name}, IPAddresses: []net.IP{ip}}
		},
		SignerName: certificatesv1.KubeletServingSignerName,
		GetUsages: func(any) []certificatesv1.KeyUsage {
			return []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}
		},
		CertificateStore: &memoryStore{},
	})
	return s, err
}

func (s *servingCertificate) start() {
	s.once.Do(func() {
		s.manager.Start()
		go s.approve()
	})
}

func (s *servingCertificate) stop() {
	s.cancel()
	s.manager.Stop()
}

func (s *servingCertificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := s.manager.Current(); c != nil {
		return c, nil
	}
	return nil, errors.New("the cluster has not signed this node's serving certificate yet")
}

// How often the node looks for its own requests: at once when it has just asked, then less and less often.
const (
	approveFirst = 100 * time.Millisecond
	approveEvery = 5 * time.Second
)

// approve approves this node's own requests, where the node has the right to. Where it has not, an administrator or a
// controller of the cluster does it, as for a kubelet. The request must be the very one that this node would make.
func (s *servingCertificate) approve() {
	requests := s.n.kube.CertificatesV1().CertificateSigningRequests()
	for wait := approveFirst; s.ctx.Err() == nil; wait = min(2*wait, approveEvery) {
		pause(s.ctx, wait)
		if c := s.manager.Current(); c != nil && c.Leaf != nil && time.Until(c.Leaf.NotAfter) > c.Leaf.NotAfter.Sub(c.Leaf.NotBefore)/2 {
			pause(s.ctx, time.Minute)
			continue
		}
		list, err := requests.List(s.ctx, metav1.ListOptions{FieldSelector: "spec.signerName=" + certificatesv1.KubeletServingSignerName})
		if err != nil {
			continue
		}
		for i := range list.Items {
			r := &list.Items[i]
			if len(r.Status.Conditions) > 0 || !s.own(r) {
				continue
			}
			r.Status.Conditions = append(r.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: certificatesv1.CertificateApproved,
				Status: corev1.ConditionTrue, Reason: "VirtualNodeApprove", Message: "the virtual node approves its own serving certificate"})
			if _, err := requests.UpdateApproval(s.ctx, r.Name, r, metav1.UpdateOptions{}); apierrors.IsForbidden(err) {
				s.n.log.Info("the serving certificate waits for an approval", "request", r.Name, "do", "kubectl certificate approve "+r.Name)
			}
		}
	}
}

// own says whether a signing request asks for what this node is, and nothing else.
func (s *servingCertificate) own(r *certificatesv1.CertificateSigningRequest) bool {
	req, err := parseRequest(r.Spec.Request)
	if err != nil || req.Subject.CommonName != "system:node:"+s.n.cfg.Name || len(req.DNSNames) != 1 || req.DNSNames[0] != s.n.cfg.Name {
		return false
	}
	return len(req.IPAddresses) == 1 && req.IPAddresses[0].String() == s.n.cfg.Address && len(req.URIs)+len(req.EmailAddresses) == 0
}

// memoryStore keeps a certificate in memory.
type memoryStore struct {
	mu   sync.Mutex // guards cert
	cert *tls.Certificate
}

// Current implements certificate.Store.
func (m *memoryStore) Current() (*tls.Certificate, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cert == nil {
		missing := certificate.NoCertKeyError("none yet")
		return nil, &missing
	}
	return m.cert, nil
}

// Update implements certificate.Store.
func (m *memoryStore) Update(cert, key []byte) (*tls.Certificate, error) {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cert = &pair
	return &pair, nil
}
